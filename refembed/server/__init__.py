"""refembed serve: one model behind the HTTP interfaces that embedding clients already speak. spec/serving.md."""
