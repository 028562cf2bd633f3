"""EmbeddingGemma that you can read, check and run.

    model = refembed.load("google/embeddinggemma-300m")
    vectors = model.encode_document(["Mars is often called the Red Planet."])

refembed.reference is the model's specification in NumPy; the rest makes it usable.
"""

from .embedder import Embedder, load
from .errors import RefembedError
from .index import Index, open_index
from .vectors import nearest, quantize_vectors, similarity

__version__ = "0.1.0"
__all__ = ["Embedder", "Index", "RefembedError", "load", "nearest", "open_index", "quantize_vectors", "similarity"]
