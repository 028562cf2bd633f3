"""EmbeddingGemma on a CPU, compiled by Numba. Reached as refembed.load(..., backend="numba")."""
