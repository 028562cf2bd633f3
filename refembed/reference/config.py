"""The numbers that fix a model's shape, and the shape of every parameter.

Sizes have the names used in every shape comment: tokens, width, heads, key_heads, head, mlp, dense, dimensions.
"""

from dataclasses import dataclass

SLIDING, FULL = "sliding_attention", "full_attention"  # the checkpoint's own words for the two kinds of layer


@dataclass(frozen=True)
class Config:
    """One model's sizes and constants. The defaults are EmbeddingGemma-300M's.

    Source: the released config.json, 1_Pooling/config.json and the shapes in 2_Dense and 3_Dense.
    """

    vocabulary: int = 262_144
    width: int = 768  # d_M, the residual stream
    mlp: int = 1152
    heads: int = 3
    key_heads: int = 1  # one key and value head, shared by the three query heads
    head: int = 256
    dense: int = 3072  # d_U, between the two dense matrices
    dimensions: int = 768  # d, the embedding
    layer_kinds: tuple[str, ...] = (SLIDING, SLIDING, SLIDING, SLIDING, SLIDING, FULL) * 4
    reach: int = 256  # a sliding layer sees keys with |i - j| <= reach
    context: int = 2048  # tokens, BOS and EOS counted
    sliding_base: float = 10_000.0  # rotary base of sliding layers
    full_base: float = 1_000_000.0  # rotary base of full layers
    query_scalar: float = 256.0  # scores are divided by its square root
    epsilon: float = 1e-6  # added to the mean square in every norm
    pooler: str = "mean"
    bos: int = 2
    eos: int = 1


def reach_of_window(sliding_window: int) -> int:
    """How far a bidirectional sliding layer sees, from config.json's sliding_window.

    sliding_window   as stored: the full width when even (512), or already rewritten by a library when odd (257)
    returns          the largest |i - j| seen, 256 for both

    Source: ATT-3, CFG-3. Trap: 512 is the width of both sides together, not the reach of one (defect B2); the odd 257
    is half plus one, compared with '<', and must not be halved again (defect B5).
    Witness: golden/twin length-reach-plus-two.
    """
    return sliding_window - 1 if sliding_window % 2 else sliding_window // 2


def layer_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Parameter name within one layer -> shape; matrices are stored (out, in).

    returns  by name, without the layer's number before it

    Source: CFG-5.
    Witness: tests/reference/test_reference_transformers.py test_names_and_shapes_are_those_of_their_state_dict.
    """
    queries, keys = config.heads * config.head, config.key_heads * config.head
    return {
        "input_layernorm.weight": (config.width,),
        "self_attn.q_proj.weight": (queries, config.width),
        "self_attn.k_proj.weight": (keys, config.width),
        "self_attn.v_proj.weight": (keys, config.width),
        "self_attn.o_proj.weight": (config.width, queries),
        "self_attn.q_norm.weight": (config.head,),
        "self_attn.k_norm.weight": (config.head,),
        "post_attention_layernorm.weight": (config.width,),
        "pre_feedforward_layernorm.weight": (config.width,),
        "mlp.gate_proj.weight": (config.mlp, config.width),
        "mlp.up_proj.weight": (config.mlp, config.width),
        "mlp.down_proj.weight": (config.width, config.mlp),
        "post_feedforward_layernorm.weight": (config.width,),
    }


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape: 314 tensors of the encoder and the 2 dense matrices in the released model.

    returns  by name: those in model.safetensors; a dense matrix is named by its folder and its name within the folder

    Source: CFG-5.
    Witness: tests/reference/test_reference_laws.py test_the_default_config_is_the_released_model.
    """
    layers = {
        f"layers.{index}.{name}": shape
        for index in range(len(config.layer_kinds))
        for name, shape in layer_shapes(config).items()
    }
    return {
        "embed_tokens.weight": (config.vocabulary, config.width),
        **layers,
        "norm.weight": (config.width,),
        "2_Dense.linear.weight": (config.dense, config.width),
        "3_Dense.linear.weight": (config.dimensions, config.dense),
    }
