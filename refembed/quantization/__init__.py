"""Quantised checkpoints made from float ones."""
