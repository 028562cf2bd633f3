"""refembed models in other people's libraries: one module each, imported by nothing here."""
