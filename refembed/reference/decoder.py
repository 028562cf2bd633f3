"""The decoder that the encoder was trained with: causal, reading the encoder's states, sharing its table.

It is used in training only (spec/13-adaptation.md). A layer is the encoder's with cross-attention between its two
parts; its parameters have the encoder's names after `decoder.`, and those of cross-attention beside them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from .attention import attend, attention, merge_heads, split_heads
from .config import SLIDING, Config, layer_shapes, parameter_shapes
from .layer import gated_mlp
from .losses import Scalar, log_sum_exp
from .model import embed_tokens, encode_tokens
from .operations import linear, rms_norm, softmax
from .positions import Positions, positions_of
from .trace import Array, Parameters, silent
from .ul2 import Corrupted

# What a decoder-only model lacks -> what it starts as a copy of, within a layer.
CROSS = {
    "cross_attn.": "self_attn.",
    "pre_cross_attention_layernorm.": "input_layernorm.",
    "post_cross_attention_layernorm.": "post_attention_layernorm.",
}


def origins(config: Config) -> dict[str, str]:
    """Parameter of encoder and decoder -> the decoder-only model's parameter that it starts as, and whose shape it has.

    returns  name -> name

    Source: ADP-1, ADP-2, ADP-3. The table is one: there is no decoder.embed_tokens and no lm_head.
    Witness: tests/reference/test_reference_decoder.py test_names_are_as_they_are_to_be_on_disk.
    """
    own = {name: name for name in layer_shapes(config)}
    cross = {name.replace(old, new): name for new, old in CROSS.items() for name in own if name.startswith(old)}
    layers = {
        f"decoder.layers.{index}.{new}": f"layers.{index}.{old}"
        for index in range(len(config.layer_kinds))
        for new, old in (own | cross).items()
    }
    encoder = {name: name for name in parameter_shapes(config) if "_Dense." not in name}
    return encoder | layers | {"decoder.norm.weight": "norm.weight"}


def adapt(parameters: Parameters, config: Config) -> dict[str, Array]:
    """A decoder-only model's weights in an encoder and a decoder, as copies.

    parameters   a Gemma 3 text model's, names without `model.`; KeyError for one that is not there
    returns      the parameters of both, by the names in origins

    Source: ADP-1. Trap: the same array on both sides, so that training one in place would change the other.
    Witness: tests/reference/test_reference_decoder.py test_cross_attention_starts_as_self_attention.
    """
    return {name: np.array(parameters[origin]) for name, origin in origins(config).items()}


def fresh_dense(config: Config, generator: np.random.Generator) -> dict[str, Array]:
    """The two dense matrices, which no decoder has: normal numbers that keep a row's size.

    returns  the two by name, stored (out, in), in float64

    Source: ADP-8. The paper does not say how they start.
    Witness: tests/reference/test_reference_decoder.py test_fresh_dense_matrices_keep_a_rows_size.
    """
    return {
        name: generator.standard_normal(shape) * shape[1] ** -0.5
        for name, shape in parameter_shapes(config).items()
        if "_Dense." in name
    }


def causal_mask(tokens: int, window: int, dtype: DTypeLike) -> Array:
    """Which keys (columns) each query (row) sees: its own and those before it, `window` in all.

    returns  (tokens, tokens)  0 where seen, -inf where not

    Source: ADP-4.
    Witness: tests/reference/test_reference_decoder.py test_the_causal_mask_drawn_by_hand.
    """
    position = np.arange(tokens)  # (tokens)
    behind = position[:, None] - position[None, :]  # (tokens, tokens)
    return np.where((behind >= 0) & (behind < window), 0.0, -np.inf).astype(dtype)  # (tokens, tokens)


def causal_positions(kind: str, tokens: int, config: Config, dtype: DTypeLike) -> Positions:
    """The encoder's rotary table and the decoder's mask, for one kind of layer.

    Source: ADP-4. Trap: the window is the whole of Gemma 3's sliding_window, of which the encoder's reach is half.
    Witness: tests/reference/test_reference_decoder.py test_without_cross_attention_it_is_transformers_causal_model.
    """
    window = 2 * config.reach if kind == SLIDING else tokens
    return positions_of(kind, tokens, config, dtype)._replace(mask=causal_mask(tokens, window, dtype))


def cross_attention(x: Array, encoded: Array, parameters: Parameters, index: int, config: Config) -> Array:
    """Each token of the target attends to every state of the encoder.

    x        (tokens, width)  after pre_cross_attention_layernorm
    encoded  (source, width)  after the encoder's last norm
    returns  (tokens, width)

    Source: ADP-5. No rotation: a place in the target is no place in the source. No mask, no window.
    Witness: tests/reference/test_reference_decoder.py test_cross_attention_is_torchs.
    """
    weight = f"layers.{index}.cross_attn.{{}}.weight".format
    query = split_heads(linear(x, parameters[weight("q_proj")]), config.head)  # (heads, tokens, head)
    key = split_heads(linear(encoded, parameters[weight("k_proj")]), config.head)  # (key_heads, source, head)
    value = split_heads(linear(encoded, parameters[weight("v_proj")]), config.head)  # (key_heads, source, head)
    query = rms_norm(query, parameters[weight("q_norm")], config.epsilon)  # (heads, tokens, head)
    key = rms_norm(key, parameters[weight("k_norm")], config.epsilon)  # (key_heads, source, head)
    mask = np.zeros((len(x), len(encoded)), x.dtype)  # (tokens, source)
    context = attend(query, key, value, mask, config.query_scalar**-0.5, "", silent)  # (heads, tokens, head)
    return linear(merge_heads(context), parameters[weight("o_proj")])  # (tokens, width)


def decoder_layer(
    x: Array, encoded: Array, parameters: Parameters, index: int, config: Config, positions: Positions
) -> Array:
    """Layer `index` (from 0) of the decoder; parameters are its own, without `decoder.`.

    x        (tokens, width)  the residual stream
    encoded  (source, width)
    returns  (tokens, width)

    Source: ADP-6. Six norms: one before and one after each of the three parts.
    Witness: tests/reference/test_reference_decoder.py test_with_cross_attention_it_is_transformers_and_torchs.
    """

    def norm(rows: Array, which: str) -> Array:
        return rms_norm(rows, parameters[f"layers.{index}.{which}.weight"], config.epsilon)  # (tokens, width)

    output = attention(norm(x, "input_layernorm"), parameters, index, config, positions)  # (tokens, width)
    x = x + norm(output, "post_attention_layernorm")  # (tokens, width)
    normed = norm(x, "pre_cross_attention_layernorm")  # (tokens, width)
    output = cross_attention(normed, encoded, parameters, index, config)  # (tokens, width)
    x = x + norm(output, "post_cross_attention_layernorm")  # (tokens, width)
    output = gated_mlp(norm(x, "pre_feedforward_layernorm"), parameters, index)  # (tokens, width)
    return x + norm(output, "post_feedforward_layernorm")  # (tokens, width)


def decode(ids: Array, encoded: Array, parameters: Parameters, config: Config) -> Array:
    """One vector a token of the target, each made from the tokens up to it and the whole of the source.

    ids         (tokens,)        BOS, then the target without its last token
    encoded     (source, width)  what encode_tokens makes of the source
    parameters  encoder's and decoder's
    returns     (tokens, width)

    Source: ADP-6.
    Witness: tests/reference/test_reference_decoder.py test_with_cross_attention_it_is_transformers_and_torchs.
    """
    own = {name.removeprefix("decoder."): parameters[name] for name in parameters if name.startswith("decoder.")}
    x = embed_tokens(ids, parameters, config)  # (tokens, width)
    positions = {kind: causal_positions(kind, len(ids), config, x.dtype) for kind in set(config.layer_kinds)}
    for index, kind in enumerate(config.layer_kinds):
        x = decoder_layer(x, encoded, own, index, config, positions[kind])  # (tokens, width)
    return rms_norm(x, own["norm.weight"], config.epsilon)  # (tokens, width)


def target_logits(example: Corrupted, parameters: Parameters, config: Config) -> Array:
    """For each token of an example's target, a score of every token that could stand there.

    example  inputs (source,), targets (target,)
    returns  (target, vocabulary)

    Source: ADP-7. Trap: the table is used as it is stored, without the square root of the width of the embedding.
    Witness: tests/reference/test_reference_decoder.py test_the_loss_of_a_batch_is_transformers.
    """
    encoded = encode_tokens(example.inputs, parameters, config)  # (source, width)
    shifted = np.concatenate([[config.bos], example.targets[:-1]])  # (target)
    states = decode(shifted, encoded, parameters, config)  # (target, width)
    return linear(states, parameters["embed_tokens.weight"])  # (target, vocabulary)


def language_model_loss(logits: Array, targets: Array) -> Scalar:
    """The mean, over all target tokens of a batch, of -log of the token's softmax.

    logits   (n, vocabulary)  of all examples, one after another
    targets  (n,)             ids, EOS among them
    returns  scalar

    Source: ADP-7. Trap: the mean of each example's mean, which weighs a token by how short its target is.
    Witness: tests/reference/test_reference_decoder.py test_the_loss_by_hand.
    """
    return np.mean(log_sum_exp(logits) - logits[np.arange(len(targets)), targets])


def language_model_loss_gradient(logits: Array, targets: Array) -> Array:
    """Its gradient with respect to the logits: the softmax, less 1 at the target, over the count of target tokens.

    logits   (n, vocabulary)
    targets  (n,)
    returns  (n, vocabulary)

    Source: ADP-7.
    Witness: tests/reference/test_reference_decoder.py test_the_loss_and_its_gradient_are_torchs.
    """
    chosen = np.arange(logits.shape[1]) == targets[:, None]  # (n, vocabulary)
    return (softmax(logits) - chosen) / len(targets)  # (n, vocabulary)


def denoising_loss(batch: Sequence[Corrupted], parameters: Parameters, config: Config) -> Scalar:
    """The loss of a batch of examples, from ids to one number.

    batch    examples, each inputs and targets
    returns  scalar

    Source: ADP-7.
    Witness: tests/reference/test_reference_decoder.py test_the_loss_of_a_batch_is_transformers.
    """
    logits = np.concatenate([target_logits(example, parameters, config) for example in batch])  # (n, vocabulary)
    targets = np.concatenate([example.targets for example in batch])  # (n)
    return language_model_loss(logits, targets)
