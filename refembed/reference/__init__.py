"""EmbeddingGemma as an executable specification: NumPy, the standard library, nothing else.

Reading order: model (the whole), config, operations, positions, attention, layer, pooling, quantize; trace names the
tensors. Then training: losses, gradients of each operation, backward through the whole; before it, ul2 and decoder, by
which a decoder-only model became an encoder. Names of the forward pass are here; those of training in their modules,
which who only runs the model need not load. Everything is generic in its float type: float64 parameters make it the
oracle, float32 ones make it a runtime.
"""

from .config import FULL, SLIDING, Config, layer_shapes, parameter_shapes, reach_of_window
from .model import dense_head, embed, embed_batch, embed_tokens, encode_tokens, truncate
from .operations import l2_normalize
from .pooling import POOLERS
from .trace import collector, silent

__all__ = [
    "FULL",
    "POOLERS",
    "SLIDING",
    "Config",
    "collector",
    "dense_head",
    "embed",
    "embed_batch",
    "embed_tokens",
    "encode_tokens",
    "l2_normalize",
    "layer_shapes",
    "parameter_shapes",
    "reach_of_window",
    "silent",
    "truncate",
]
