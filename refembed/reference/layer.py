"""One layer: attention and a gated MLP, each between two norms, each added to the residual stream."""

from .attention import attention
from .config import Config
from .operations import gelu, linear, rms_norm
from .positions import Positions
from .trace import Array, Parameters, Trace, silent


def gated_mlp(x: Array, parameters: Parameters, index: int, trace: Trace = silent) -> Array:
    """The feed-forward part of layer `index`: down(gelu(gate x) * up x).

    x        (tokens, width)  after pre_feedforward_layernorm
    returns  (tokens, width)

    Source: MLP-1. Trap: the activation is on the gate, not on up.
    Witness: golden/twin length-ladder-1.
    """
    name, weight = f"layer.{index:02d}.mlp", f"layers.{index}.mlp.{{}}.weight".format
    gate = linear(x, parameters[weight("gate_proj")])  # (tokens, mlp)
    up = linear(x, parameters[weight("up_proj")])  # (tokens, mlp)
    gated = gelu(gate) * up  # (tokens, mlp)
    down = linear(gated, parameters[weight("down_proj")])  # (tokens, width)
    trace(f"{name}.gate", gate)
    trace(f"{name}.up", up)
    trace(f"{name}.gated", gated)
    trace(f"{name}.output", down)
    return down  # (tokens, width)


def layer(
    x: Array, parameters: Parameters, index: int, config: Config, positions: Positions, trace: Trace = silent
) -> Array:
    """Layer `index` (from 0) of the encoder.

    x        (tokens, width)  the residual stream
    returns  (tokens, width)

    Source: LAY-1. Four norms: the second and fourth stand before the addition, not after it. Trap: in float16 the
    stream overflows 65,504 around layer 22 (defect G1).
    Witness: golden/twin length-ladder-1.
    """

    def norm(rows: Array, which: str) -> Array:
        return rms_norm(rows, parameters[f"layers.{index}.{which}.weight"], config.epsilon)  # (tokens, width)

    name = f"layer.{index:02d}"
    normed = norm(x, "input_layernorm")  # (tokens, width)
    trace(f"{name}.attention.norm", normed)
    output = attention(normed, parameters, index, config, positions, trace)  # (tokens, width)
    update = norm(output, "post_attention_layernorm")  # (tokens, width)
    trace(f"{name}.attention.update", update)
    x = x + update  # (tokens, width)
    normed = norm(x, "pre_feedforward_layernorm")  # (tokens, width)
    trace(f"{name}.mlp.norm", normed)
    output = gated_mlp(normed, parameters, index, trace)  # (tokens, width)
    update = norm(output, "post_feedforward_layernorm")  # (tokens, width)
    trace(f"{name}.mlp.update", update)
    x = x + update  # (tokens, width)
    trace(f"{name}.out", x)
    return x  # (tokens, width)
