"""What goes wrong in ports, as small changes of the reference. defects.py names them and says where each was seen."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reference import FULL, SLIDING, Config, l2_normalize
from ..reference.operations import gelu, linear, rms_norm, softmax
from ..reference.positions import positions_of as right_positions_of
from ..tokenizer import Tokenizer
from .mutation import Functions, Mutation, Text, right_ids, right_pieces

HIDDEN = -1e30  # finite, as ports have it: a pad that sees no key weighs all keys alike, in place of 0/0
Array = NDArray[Any]
Rule = Callable[[str, Array, Array, Config], Array]


# ----------------------------------------------------------------------------------------------------------------------
# Attention: who sees whom


def seen_by(rule: Rule) -> Functions:
    """The reference with another mask: rule(kind, query place, key place, config) says who is seen."""

    def positions_of(kind: str, tokens: int, config: Config, dtype: Any) -> Any:
        place = np.arange(tokens)
        seen = np.broadcast_to(rule(kind, place[:, None], place[None, :], config), (tokens, tokens))
        return right_positions_of(kind, tokens, config, dtype)._replace(mask=np.where(seen, 0.0, -np.inf).astype(dtype))

    return {"positions_of": positions_of}


def in_window(kind: str, i: Array, j: Array, config: Config) -> Array:
    return np.asarray((kind == FULL) | (np.abs(i - j) <= config.reach))


def causal(kind: str, i: Array, j: Array, config: Config) -> Array:
    return np.asarray((j <= i) & ((kind == FULL) | (i - j < 2 * config.reach)))


def causal_in(which: str) -> Rule:
    return lambda kind, i, j, config: causal(kind, i, j, config) if kind == which else in_window(kind, i, j, config)


def window(left: Callable[[int], int], right: Callable[[int], int]) -> Rule:
    """Sliding layers that see this far back and this far ahead, each from the right reach."""
    return lambda kind, i, j, config: np.asarray(
        (kind == FULL) | ((i - j <= left(config.reach)) & (j - i <= right(config.reach)))
    )


def reach(change: Callable[[Config], int]) -> Mutation:
    return Mutation(config=lambda config: replace(config, reach=max(1, change(config))))


def shifted_layers(by: int) -> Mutation:
    return Mutation(
        config=lambda config: replace(config, layer_kinds=config.layer_kinds[by:] + config.layer_kinds[:by])
    )


# ----------------------------------------------------------------------------------------------------------------------
# Padding: a text made as long as the longest of its batch


def padded(
    ids: Array,
    batch: Sequence[int],
    keys_seen: bool,
    pads_pooled: bool,
    added: float | None = None,
    windowed: bool = True,
) -> tuple[Array, Functions]:
    """Ids with pads behind, and the functions of a port that treats pads as said.

    keys_seen     pads are attended to
    pads_pooled   pads count in the mean
    added         the mask's numbers are added to the scores: this for real keys, 0 for pads, and nothing is hidden
    windowed      sliding layers keep their window
    """
    real, total = len(ids), max(batch)

    def positions_of(kind: str, tokens: int, config: Config, dtype: Any) -> Any:
        right = right_positions_of(kind, tokens, config, dtype)
        place = np.arange(tokens)
        if added is not None:
            mask = np.where(place < real, added, 0.0)[None, :] + np.zeros((tokens, 1))
            return right._replace(mask=mask.astype(dtype))
        seen = in_window(kind, place[:, None], place[None, :], config) | (not windowed)
        seen = seen & ((place < real)[None, :] | keys_seen)
        return right._replace(mask=np.where(seen, 0.0, HIDDEN).astype(dtype))

    def pool(states: Array) -> Array:
        return np.mean(states if pads_pooled else states[:real], axis=0)

    return np.append(ids, np.zeros(total - real, ids.dtype)), {"positions_of": positions_of, "pool": pool}


def nan_padding(ids: Array, batch: Sequence[int], config: Config) -> tuple[Array, Functions]:
    """Right but for pads whose window holds only pads: they have no key, 0/0, and 0 x NaN spoils the pooled sum."""
    lost = max(batch) - len(ids) > config.reach
    return ids, {"pool": lambda states: np.mean(states, axis=0) * (np.nan if lost else 1.0)}


def equal_length_padding(ids: Array, batch: Sequence[int], config: Config) -> tuple[Array, Functions]:
    """No pads, no mask: with two or more texts of one length the window is dropped together with the padding mask."""
    dropped = len(batch) > 1 and len(set(batch)) == 1
    return ids, seen_by(lambda kind, i, j, c: np.asarray(True)) if dropped else {}


# ----------------------------------------------------------------------------------------------------------------------
# Arithmetic


def interleaved(x: Array, cos: Array, sin: Array) -> Array:
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)


def scaled_angles(factor: float) -> Functions:
    """Linear scaling of positions in full layers, as the larger Gemma 3 models have."""

    def positions_of(kind: str, tokens: int, config: Config, dtype: Any) -> Any:
        right = right_positions_of(kind, tokens, config, dtype)
        if kind == SLIDING:
            return right
        frequency = config.full_base ** (-np.arange(0, config.head, 2) / config.head)
        angle = np.outer(np.arange(tokens) / factor, frequency)
        return right._replace(cos=np.cos(angle).astype(dtype), sin=np.sin(angle).astype(dtype))

    return {"positions_of": positions_of}


def norm_after_rotation() -> Functions:
    """Rotate first, then norm query and key: rms_norm leaves its arguments to rotate, called in the same order."""
    waiting: list[tuple[Array, float]] = []

    def remember(x: Array, weight: Array, epsilon: float) -> Array:
        waiting.append((weight, epsilon))
        return x

    def rotate_then_norm(x: Array, cos: Array, sin: Array) -> Array:
        first, second = np.split(x, 2, axis=-1)
        turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return rms_norm(turned, *waiting.pop(0))

    return {"attention.rms_norm": remember, "rotate": rotate_then_norm}


def exact_gelu(x: Array) -> Array:
    erf = np.vectorize(math.erf, otypes=[x.dtype])
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def embedding_scale(factor: Callable[[Config], float]) -> Functions:
    return {"embed_tokens": lambda ids, parameters, config: parameters["embed_tokens.weight"][ids] * factor(config)}


def bfloat16(value: float) -> float:
    """The nearest bfloat16."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 256) / 256, exponent)


def swapped_mlp(x: Array, parameters: Any, index: int, trace: Any = None) -> Array:
    weight = f"layers.{index}.mlp.{{}}.weight".format
    gate, up = linear(x, parameters[weight("gate_proj")]), linear(x, parameters[weight("up_proj")])
    return linear(gate * gelu(up), parameters[weight("down_proj")])


def capped_attend(query: Array, key: Array, value: Array, mask: Array, scale: float, name: str, trace: Any) -> Array:
    shared = len(query) // len(key)
    key, value = np.repeat(key, shared, axis=0), np.repeat(value, shared, axis=0)
    scores = query @ key.swapaxes(1, 2) * scale
    return softmax(50 * np.tanh(scores / 50) + mask) @ value


def without(parameters_ending: str) -> Functions:
    """Layers whose norm of this name is left out."""

    def layer(x: Array, parameters: Any, index: int, config: Config, positions: Any, trace: Any = None) -> Array:
        from ..reference.attention import attention
        from ..reference.layer import gated_mlp

        def norm(rows: Array, which: str) -> Array:
            if which.startswith(parameters_ending):
                return rows
            return rms_norm(rows, parameters[f"layers.{index}.{which}.weight"], config.epsilon)

        update = attention(norm(x, "input_layernorm"), parameters, index, config, positions)
        x = x + norm(update, "post_attention_layernorm")
        update = gated_mlp(norm(x, "pre_feedforward_layernorm"), parameters, index)
        return x + norm(update, "post_feedforward_layernorm")

    return {"layer": layer}


def matrices(parameters: Any) -> tuple[Array, Array]:
    return parameters["2_Dense.linear.weight"], parameters["3_Dense.linear.weight"]


def swapped_dense(pooled: Array, parameters: Any, trace: Any = None) -> Array:
    up, down = matrices(parameters)
    return pooled @ down @ up


def activated_dense(activation: Callable[[Array], Array]) -> Functions:
    def dense_head(pooled: Array, parameters: Any, trace: Any = None) -> Array:
        up, down = matrices(parameters)
        return linear(activation(linear(pooled, up)), down)

    return {"dense_head": dense_head}


# ----------------------------------------------------------------------------------------------------------------------
# Prompts and tokens


def e5_prompt(text: Text, prompt: str) -> str:
    return ("passage: " if text.task == "document" else "query: ") + text.text


def instead(prompt: str) -> Mutation:
    return Mutation(prompt=lambda text, right: prompt + text.text)


def untitled(text: Text, prompt: str) -> str:
    return re.sub(r"^title: .*? \| ", "", prompt) + text.text


def capitalised(text: Text, prompt: str) -> str:
    return re.sub(r"\b(task|query|title|text):", lambda found: found[0].capitalize(), prompt) + text.text


def rewritten(change: Callable[[str], str]) -> Mutation:
    """The whole prompted text changed before it is tokenised."""
    return Mutation(prompt=lambda text, prompt: change(prompt + text.text))


def unparsed(tokenizer: Tokenizer, prompted: str) -> Array:
    """Special tokens spelled in the text taken as ordinary text."""
    tokenizer.library.encode_special_tokens = True
    try:
        return right_pieces(tokenizer, prompted)
    finally:
        tokenizer.library.encode_special_tokens = False


def cut_at(share: int) -> Mutation:
    """Texts cut at this share of the context: 4 is 512 tokens of 2,048."""

    def ids(pieces: Array, config: Config) -> Array:
        return right_ids(pieces, replace(config, context=config.context // share))

    return Mutation(ids=ids)


def cut_without_eos(pieces: Array, config: Config) -> Array:
    return np.array([config.bos, *pieces, config.eos])[: config.context]


def cut_at_the_start(pieces: Array, config: Config) -> Array:
    return np.array([config.bos, *pieces[-(config.context - 2) :], config.eos])


def between(before: str, after: str) -> Mutation:
    """Other special tokens around the pieces: letters b and e for BOS and EOS."""

    def ids(pieces: Array, config: Config) -> Array:
        special = {"b": config.bos, "e": config.eos}
        right = right_ids(pieces, config)[1:-1]
        return np.array([*(special[letter] for letter in before), *right, *(special[letter] for letter in after)])

    return Mutation(ids=ids)


def normalized(vector: Array, dimensions: int) -> Array:
    return l2_normalize(vector)[:dimensions]
