"""EmbeddingGemma as an executable specification: NumPy, the standard library, nothing else.

Reading order: model (the whole), config, operations, positions, attention, layer, pooling, quantize; trace names the
tensors. Then training: losses, gradients of each operation, backward through the whole; before it, ul2 and decoder, by
which a decoder-only model became an encoder. Everything is generic in its float type: float64 parameters make it the
oracle, float32 ones make it a runtime.
"""

from . import decoder, losses, ul2
from .backward import embed_batch_gradients, embed_gradients
from .config import FULL, SLIDING, Config, layer_shapes, parameter_shapes, reach_of_window
from .gradients import l2_normalize_gradient, truncate_gradient
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
    "decoder",
    "dense_head",
    "embed",
    "embed_batch",
    "embed_batch_gradients",
    "embed_gradients",
    "embed_tokens",
    "encode_tokens",
    "l2_normalize",
    "l2_normalize_gradient",
    "layer_shapes",
    "losses",
    "parameter_shapes",
    "reach_of_window",
    "silent",
    "truncate",
    "truncate_gradient",
    "ul2",
]
