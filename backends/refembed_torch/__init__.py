"""EmbeddingGemma in PyTorch, for CUDA and for training. Reached as refembed.load(..., backend="torch")."""
