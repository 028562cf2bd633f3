"""What each exercise is held to: the twin's golden stages, refembed.reference, and finite differences.

A check is given the learner's module and raises Wrong with words a learner understands. Beside the right answer stand
those that typical mistakes give: where one comes out, the check says which mistake it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import erf
from typing import Any

import given
import numpy as np
from tokenizers import Tokenizer

import refembed.checkpoint
from refembed.conformance.mutation import replaced
from refembed.reference import Config, embed, encode_tokens, losses, operations, parameter_shapes, positions
from refembed.reference.attention import attention as right_attention
from refembed.reference.layer import layer as right_layer

LESSONS = {
    1: "lesson1_tokens",
    2: "lesson2_mlp",
    3: "lesson3_rotary",
    4: "lesson4_attention",
    5: "lesson5_model",
    6: "lesson6_loss",
}
CHAPTERS = {
    1: "01-tokens-and-prompts.md",
    2: "03-norms.md and 06-gated-mlp.md",
    3: "04-rotary-positions.md",
    4: "05-attention-and-windows.md",
    5: "07-pooling-and-dense-head.md",
    6: "10-losses.md and 11-gradients.md",
}
CASE = "length-reach-plus-two"  # 10 tokens: the shortest text that a window of 8 each way does not hold
LONG = "length-window-plus-one"  # 17 tokens
TOLERANCE = 1e-5  # of the largest number: golden stages are float32, and one stage adds little to their rounding
EXACT = 1e-10  # where the truth is float64
OTHER = "a model of other sizes and settings: read them all from what is given, and type none in"
Array = np.ndarray
Check = Callable[[Any], None]
EXERCISES: dict[int, dict[str, Check]] = {lesson: {} for lesson in LESSONS}


class Wrong(Exception):  # noqa: N818
    """What is wrong with an answer, in words."""


def exercise(lesson: int) -> Callable[[Check], Check]:
    """Hold the learner's function of this name to the check below."""

    def keep(check: Check) -> Check:
        EXERCISES[lesson][check.__name__] = check
        return check

    return keep


# Comparing ------------------------------------------------------------------------------------------------------------


def equal(got: Any, expected: Any, about: str, mistakes: Mapping[str, Any] | None = None) -> None:
    """Raise Wrong where these are not the same."""
    if type(got) is not type(expected) or got != expected:
        words = [hint for hint, value in (mistakes or {}).items() if got == value]
        raise Wrong("\n".join([about, f"expected {expected!r}", f"got      {got!r}", *map(came_from, words[:1])]))


def agree(
    got: Any, expected: Array, about: str, mistakes: Mapping[str, Any] | None = None, tolerance: float = TOLERANCE
) -> None:
    """Raise Wrong where these arrays differ: by shape, or by more than tolerance times the largest number expected.

    mistakes  what a mistake is -> what comes out of it
    """
    expected = np.asarray(expected)
    if got is None:
        raise Wrong(f"{about}\nnothing is returned: does a `return` stand at the end?")
    found = np.asarray(got)
    if found.dtype.kind not in "biuf":
        raise Wrong(f"{about}\nexpected an array of numbers, got {type(got).__name__}")
    hints = [hint for hint, value in (mistakes or {}).items() if near(found, np.asarray(value), tolerance)]
    if found.shape != expected.shape:
        raise Wrong(
            "\n".join([about, f"expected shape {expected.shape}, got {found.shape}", *map(came_from, hints[:1])])
        )
    if not near(found, expected, tolerance):
        raise Wrong("\n".join([about, *difference(found, expected, tolerance), *map(came_from, hints[:1])]))


def near(found: Array, expected: Array, tolerance: float) -> bool:
    if found.shape != expected.shape:
        return False
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return False
    size = np.max(np.abs(expected[finite]), initial=0.0)
    return bool(np.all(np.abs(found[finite] - expected[finite]) <= tolerance * (size or 1.0)))


def difference(found: Array, expected: Array, tolerance: float) -> list[str]:
    """Where two arrays of one shape differ first, and how much of them does."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    size = np.max(np.abs(expected[np.isfinite(expected)]), initial=0.0) or 1.0
    with np.errstate(invalid="ignore"):
        apart = ~((found == expected) | (np.abs(found - expected) <= tolerance * size))
    place = tuple(int(index) for index in np.argwhere(apart)[0])
    at = f"at {list(place)} " if place else ""
    lines = [f"{at}expected {expected[place]:.6g}, got {found[place]:.6g}"]
    if place:
        lines.append(f"{np.sum(apart)} of {apart.size} numbers differ, the first at that place")
    return lines


def sound(check: Check, learner: Any) -> None:
    """Raise Wrong where the function that the next check rests on is wrong itself."""
    try:
        check(learner)
    except Wrong as wrong:
        raise Wrong(f"first put {check.__name__} right: this is held to its differences") from wrong


def came_from(hint: str) -> str:
    return f"hint: this is what comes out when {hint}"


# What is asked with ---------------------------------------------------------------------------------------------------


def stage(name: str, case: str = CASE) -> Array:
    return given.golden("twin")[1][f"{case}/{name}"]


def twin() -> given.Checkpoint:
    return given.open_checkpoint()


def weights(index: int) -> dict[str, Array]:
    return of_layer(twin().parameters, index)


def angles(index: int, tokens: int) -> tuple[Array, Array]:
    settings = twin().settings
    sliding = settings["layer_types"][index] == "sliding_attention"
    base = settings["rope_local_base_freq" if sliding else "rope_theta"]
    cos, sin = positions.rotary_angles(tokens, settings["head_dim"], base, np.float64)
    return given.frozen(cos), given.frozen(sin)


def mask_of(index: int, tokens: int) -> Array:
    settings = twin().settings
    sliding = settings["layer_types"][index] == "sliding_attention"
    reach = settings["sliding_window"] // 2 if sliding else tokens
    return given.frozen(positions.window_mask(tokens, reach, np.float64))


def other_model() -> tuple[dict[str, Any], dict[str, Array], Config]:
    """A model of other sizes than the twin's, of random numbers: settings, parameters, and the reference's config."""
    kinds = ("full_attention", "sliding_attention")
    sizes = {"width": 20, "mlp": 28, "heads": 2, "head": 6, "dense": 24, "dimensions": 12, "layer_kinds": kinds}
    config = Config(
        vocabulary=40, reach=2, sliding_base=100.0, full_base=3000.0, query_scalar=9.0, epsilon=0.1, **sizes
    )
    settings = {
        "hidden_size": 20, "head_dim": 6, "query_pre_attn_scalar": 9, "rms_norm_eps": 0.1, "sliding_window": 4,
        "layer_types": list(kinds), "rope_local_base_freq": 100.0, "rope_theta": 3000.0,
    }  # fmt: skip
    shapes = parameter_shapes(config)
    return settings, {name: numbers(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}, config


def of_layer(parameters: Mapping[str, Array], index: int) -> dict[str, Array]:
    prefix = f"layers.{index}."
    return {name.removeprefix(prefix): array for name, array in parameters.items() if name.startswith(prefix)}


def of_another(function: Callable[..., Array], right: Callable[..., Array]) -> None:
    """Hold one part of a layer to the reference's, on another model: what is typed in, and not read, fits one only."""
    settings, parameters, config = other_model()
    place = positions.positions_of(config.layer_kinds[1], 5, config, np.float64)
    x = numbers(5, 20)
    got = function(x, of_layer(parameters, 1), *map(given.frozen, place), settings)
    agree(got, right(x, parameters, 1, config, place), OTHER, tolerance=EXACT)


def numbers(*shape: int, seed: int = 0) -> Array:
    return given.frozen(np.random.default_rng(seed).standard_normal(shape))


def tokens_of(case: str) -> Array:
    """The ids of a golden case's only text, by the library's tokenizer."""
    (prompted,) = given.golden("twin")[0][case]["prompted"]
    library = Tokenizer.from_file(str(given.GOLDEN / "twin" / "checkpoint" / "tokenizer.json"))
    ids = library.encode(prompted, add_special_tokens=False).ids
    return given.frozen(np.array([2, *ids[: twin().settings["max_position_embeddings"] - 2], 1]))


# Lesson 1 -------------------------------------------------------------------------------------------------------------


@exercise(1)
def with_prompt(learner: Any) -> None:
    prompts = twin().prompts
    for task, prompt in prompts.items():
        mistakes = {"the prompt's last space is lost": prompt.strip() + "red", "no prompt is put": "red"}
        equal(learner.with_prompt("red", prompts, task), prompt + "red", f"the task {task!r}", mistakes)
    equal(learner.with_prompt(" red\n", prompts), " red\n", "no task", {"the text is stripped": "red"})
    titled, untitled = "title: Mars | text: It is red.", "title: none | text: It is red."
    mistakes = {"the title is ignored": untitled, "the title stands before the prompt": "Mars " + untitled}
    equal(learner.with_prompt("It is red.", prompts, "document", "Mars"), titled, "a document with a title", mistakes)


@exercise(1)
def merge(learner: Any) -> None:
    left = {"the first pair that has a rank is joined, whatever its rank": ["ab", "c"]}
    equal(learner.merge(list("abc"), {("a", "b"): 1, ("b", "c"): 0}), ["a", "bc"], "two pairs share the b", left)
    once = {"each pair is joined once only": ["th", "e", "t"]}
    equal(learner.merge(list("thet"), {("t", "h"): 0, ("th", "e"): 1}), ["the", "t"], "the lesson's example", once)
    equal(learner.merge([], {}), [], "a text without a character")
    equal(learner.merge(["x"], {}), ["x"], "a single character")
    for case in ("prompt-query", "text-code", "text-chinese", "text-spaces-inside", "text-special-eos"):
        (prompted,) = given.golden("twin")[0][case]["prompted"]
        found = given.pieces(prompted, twin().tokenizer, learner.merge)
        equal(found, tokens_of(case)[1:-1].tolist(), f"ids of {prompted!r} with your merge")


@exercise(1)
def with_ends(learner: Any) -> None:
    settings = {"bos_token_id": 2, "eos_token_id": 1, "max_position_embeddings": 6}
    swapped = {"BOS and EOS are swapped: BOS begins": [1, 7, 8, 2], "there is no EOS": [2, 7, 8]}
    agree(learner.with_ends([7, 8], settings), np.array([2, 7, 8, 1]), "ids [7, 8]", swapped, 0)
    agree(learner.with_ends([], settings), np.array([2, 1]), "an empty text", tolerance=0)
    cut = {
        "EOS is cut off: make room for it first": [2, 5, 6, 7, 8, 9],
        "BOS and EOS are not counted": [2, 5, 6, 7, 8, 9, 10, 1],
        "the start is cut, not the end": [2, 7, 8, 9, 10, 1],
    }
    agree(learner.with_ends([5, 6, 7, 8, 9, 10], settings), np.array([2, 5, 6, 7, 8, 1]), "six ids, room for 6", cut, 0)
    settings = {"bos_token_id": 3, "eos_token_id": 4, "max_position_embeddings": 3}
    agree(learner.with_ends([5, 6], settings), np.array([3, 5, 4]), OTHER, tolerance=0)


@exercise(1)
def embed_tokens(learner: Any) -> None:
    rows = stage("embedded")
    mistakes = {
        "the square root of the width is left out": rows / np.sqrt(48),
        "the rows are multiplied by the width, not by its square root": rows * np.sqrt(48),
        "the rows are divided by the square root of the width": rows / 48,
    }
    got = learner.embed_tokens(tokens_of(CASE), twin().parameters, twin().settings)
    agree(got, rows, f"golden/twin {CASE}, embedded", mistakes)
    settings, parameters, _ = other_model()
    got = learner.embed_tokens(np.array([2, 30, 1]), parameters, settings)
    agree(got, parameters["embed_tokens.weight"][[2, 30, 1]] * np.sqrt(20), OTHER, tolerance=EXACT)


# Lesson 2 -------------------------------------------------------------------------------------------------------------


@exercise(2)
def linear(learner: Any) -> None:
    x, weight = numbers(3, 5), numbers(5, 5, seed=1)
    mistakes = {"the matrix is not transposed: it is stored as (out, in)": x @ weight}
    agree(learner.linear(x, weight), x @ weight.T, "3 rows of 5, a matrix (5, 5)", mistakes, EXACT)
    agree(learner.linear(numbers(5), numbers(2, 5)), numbers(2, 5) @ numbers(5), "one row of 5", tolerance=EXACT)


@exercise(2)
def rms_norm(learner: Any) -> None:
    x, weight, epsilon = stage("embedded"), twin().parameters["layers.0.input_layernorm.weight"], 1e-6
    unit = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon)
    centred = x - x.mean(axis=-1, keepdims=True)
    mistakes = {
        "it is multiplied by w, not by 1 + w": unit * weight,
        "the weight is left out": unit,
        "the mean square is taken over the whole array, not row by row": x / np.sqrt(np.mean(x**2)) * (1 + weight),
        "the sum of the squares stands for their mean": unit / np.sqrt(x.shape[-1]) * (1 + weight),
        "the mean is taken off first: that is layer norm": operations.rms_norm(centred, weight, epsilon),
        "the square root is forgotten": x / (np.mean(x**2, axis=-1, keepdims=True) + epsilon) * (1 + weight),
    }
    about = f"golden/twin {CASE}, layer.00.attention.norm"
    agree(learner.rms_norm(x, weight, epsilon), stage("layer.00.attention.norm"), about, mistakes)
    heads, weight = stage("layer.00.attention.query"), twin().parameters["layers.0.self_attn.q_norm.weight"]
    about = f"golden/twin {CASE}, layer.00.attention.query_norm, an array (3, 10, 16)"
    agree(learner.rms_norm(heads, weight, epsilon), stage("layer.00.attention.query_norm"), about)
    zeros = {"epsilon is left out": np.full((1, 4), np.nan)}
    with np.errstate(invalid="ignore"):
        agree(learner.rms_norm(np.zeros((1, 4)), np.zeros(4), 1e-6), np.zeros((1, 4)), "a row of zeros", zeros)
    small = np.full((1, 4), 1e-3)
    after = small / (np.sqrt(np.mean(small**2)) + epsilon)
    added = {"epsilon is added after the square root": after, "epsilon is left out": np.ones((1, 4))}
    truth = operations.rms_norm(small, np.zeros(4), epsilon)
    agree(learner.rms_norm(small, np.zeros(4), epsilon), truth, "a row of very small numbers", added)


@exercise(2)
def gelu(learner: Any) -> None:
    x = given.frozen(np.linspace(-4, 4, 33))
    exact = x / 2 * (1 + np.array([erf(one / np.sqrt(2)) for one in x]))
    mistakes = {
        "the exact form with erf is used: close, and not what this model was trained with": exact,
        "it is SiLU, x times the logistic function": x / (1 + np.exp(-x)),
        "it is ReLU": np.maximum(x, 0),
        "the half is left out": 2 * operations.gelu(x),
        "x is not cubed": x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x))),
    }
    agree(learner.gelu(x), operations.gelu(x), "33 numbers from -4 to 4", mistakes, EXACT)


@exercise(2)
def gated_mlp(learner: Any) -> None:
    x, w = stage("layer.00.mlp.norm"), weights(0)
    gate, up, down = (x @ w[f"mlp.{name}_proj.weight"].T if name != "down" else w["mlp.down_proj.weight"].T
                      for name in ("gate", "up", "down"))  # fmt: skip
    mistakes = {
        "the activation is on up, not on the gate": (gate * operations.gelu(up)) @ down,
        "there is no activation": (gate * up) @ down,
        "gate and up are added, not multiplied": (operations.gelu(gate) + up) @ down,
        "the activation is on the product": operations.gelu(gate * up) @ down,
    }
    about = f"golden/twin {CASE}, layer.00.mlp.output"
    agree(learner.gated_mlp(x, w), stage("layer.00.mlp.output"), about, mistakes)


# Lesson 3 -------------------------------------------------------------------------------------------------------------


@exercise(3)
def rotary_angles(learner: Any) -> None:
    for base in (10_000.0, 1_000_000.0):
        expected = positions.rotary_angles(7, 16, base, np.float64)
        got = learner.rotary_angles(7, 16, base)
        if not isinstance(got, tuple) or len(got) != 2:
            raise Wrong(f"expected two arrays, cos and sin, got {type(got).__name__}")
        k, position = np.arange(8), np.arange(7)
        thetas = {
            "the exponent is -k/head: twice as slow; k counts pairs": base ** (-k / 16),
            "the exponent is positive: speeds must fall": base ** (2 * k / 16),
        }
        late = np.outer(position + 1, base ** (-2 * k / 16))
        for name, one, right, function in zip(("cos", "sin"), got, expected, (np.cos, np.sin), strict=True):
            mistakes = {words: function(np.outer(position, theta)) for words, theta in thetas.items()}
            mistakes |= {
                "positions begin at 1, not at 0": function(late),
                "cos and sin are swapped": expected[name == "cos"],
            }
            doubled = np.concatenate([right, right], axis=1)
            mistakes["each angle is given twice: here a pair has one"] = doubled
            agree(one, right, f"{name} of 7 positions, head 16, base {base:,.0f}", mistakes, EXACT)


@exercise(3)
def rotate(learner: Any) -> None:
    for index in (0, 2):
        for which in ("query", "key"):
            x, expected = (
                stage(f"layer.{index:02d}.attention.{which}_norm"),
                stage(f"layer.{index:02d}.attention.{which}_rotated"),
            )
            cos, sin = angles(index, x.shape[1])
            even, odd, first, second = x[..., ::2], x[..., 1::2], x[..., :8], x[..., 8:]
            neighbours = np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)
            one_sign = np.concatenate([first * cos + second * sin, second * cos + first * sin], axis=-1)
            mistakes = {
                "neighbours are turned as pairs: a pair is k of the first half and k of the second": neighbours,
                "everything is turned backwards: mind the signs": positions.rotate(x, cos, -sin),
                "both signs are plus: that is no turn": one_sign,
                "nothing is turned": x,
            }
            agree(learner.rotate(x, cos, sin), expected, f"golden/twin {CASE}, layer {index}, {which}", mistakes)


# Lesson 4 -------------------------------------------------------------------------------------------------------------


@exercise(4)
def softmax(learner: Any) -> None:
    scores = numbers(2, 3, 4)
    powers = np.exp(scores)
    mistakes = {
        "the sum is over the whole array, not each row": powers / powers.sum(),
        "the sum is over the first axis, not the last": powers / powers.sum(axis=0, keepdims=True),
        "the sum is over the rows, not within each": powers / powers.sum(axis=-2, keepdims=True),
        "nothing is divided": powers,
    }
    agree(learner.softmax(scores), operations.softmax(scores), "an array (2, 3, 4)", mistakes, EXACT)
    with np.errstate(all="ignore"):
        large = {"exp() overflows: take the row's largest score off first": np.array([[np.nan, 0.0]])}
        large |= {"exp() overflows: take the row's largest score off first ": np.array([[np.nan, np.nan]])}
        agree(learner.softmax(np.array([[1000.0, 0.0]])), np.array([[1.0, 0.0]]), "scores 1000 and 0", large, EXACT)
        agree(
            learner.softmax(np.array([[0.0, -np.inf]])), np.array([[1.0, 0.0]]), "a score of -infinity", tolerance=EXACT
        )


@exercise(4)
def window_mask(learner: Any) -> None:
    tokens = 20
    position = np.arange(tokens)
    ahead = position - position[:, None]  # key's position less query's

    def seen(where: Array) -> Array:
        return np.where(where, 0.0, -np.inf)

    mistakes = {
        "the window is not halved: 16 is both sides together": seen(abs(ahead) <= 16),
        "the window is not halved, and one is taken off": seen(abs(ahead) < 16),
        "the window reaches back only: this model looks both ways": seen((ahead <= 0) & (ahead >= -8)),
        "the window reaches back only, and is not halved": seen((ahead <= 0) & (ahead >= -16)),
        "later tokens are hidden: this model looks both ways": seen(ahead <= 0),
        "the window reaches ahead only": seen((ahead >= 0) & (ahead <= 8)),
        "the token at the edge is left out: 8 tokens each way, the eighth included": seen(abs(ahead) < 8),
        "the eighth token back is left out": seen((ahead > -8) & (ahead <= 8)),
        "the eighth token ahead is left out": seen((ahead >= -8) & (ahead < 8)),
        "one token too many is seen": seen(abs(ahead) <= 9),
        "everything is seen": np.zeros((tokens, tokens)),
        "seen and hidden are swapped": seen(abs(ahead) > 8),
        "True and False stand where 0 and -infinity should": abs(ahead) <= 8,
    }
    agree(learner.window_mask(tokens, 16), seen(abs(ahead) <= 8), "20 tokens, a sliding_window of 16", mistakes, 0)
    everything = {"there is a window, though none was asked for": seen(abs(ahead) <= 8)}
    agree(learner.window_mask(tokens, None), np.zeros((tokens, tokens)), "20 tokens, no window", everything, 0)
    agree(learner.window_mask(3, 16), np.zeros((3, 3)), "3 tokens, which no window of 16 cuts", tolerance=0)
    agree(learner.window_mask(tokens, 6), seen(abs(ahead) <= 3), "20 tokens, a sliding_window of 6", tolerance=0)


@exercise(4)
def split_heads(learner: Any) -> None:
    x = numbers(5, 12)
    mistakes = {
        "it is reshaped in one step, which puts one token's numbers into another's": x.reshape(3, 5, 4),
        "the heads are not put first": x.reshape(5, 3, 4),
        "every third number makes a head: a head's numbers stand together": x.reshape(5, 4, 3).transpose(2, 0, 1),
    }
    agree(learner.split_heads(x, 4), x.reshape(5, 3, 4).swapaxes(0, 1), "5 tokens, 3 heads of 4", mistakes, 0)


@exercise(4)
def merge_heads(learner: Any) -> None:
    x = numbers(3, 5, 4)
    mistakes = {"it is reshaped without taking the heads back first": x.reshape(5, 12)}
    agree(learner.merge_heads(x), x.swapaxes(0, 1).reshape(5, 12), "3 heads of 4, 5 tokens", mistakes, 0)


@exercise(4)
def attend(learner: Any) -> None:
    for index in (0, 2):
        query, key, value = (
            stage(f"layer.{index:02d}.attention.{name}") for name in ("query_rotated", "key_rotated", "value")
        )
        mask, scale = mask_of(index, query.shape[1]), 1 / 4
        scores = query @ key.swapaxes(1, 2)
        causal = np.triu(np.full(mask.shape, -np.inf), 1)
        mistakes = {
            "the scores are not scaled": operations.softmax(scores + mask) @ value,
            "the scores are divided by the scale": operations.softmax(scores / scale + mask) @ value,
            "the scale is used twice": operations.softmax(scores * scale**2 + mask) @ value,
            "later tokens are hidden: this model looks both ways": operations.softmax(scores * scale + mask + causal)
            @ value,
            "the mask is added after the softmax": (operations.softmax(scores * scale) + np.exp(mask) - 1) @ value,
        }
        if index == 0:
            mistakes["the mask is left out"] = operations.softmax(scores * scale) @ value
        about = f"golden/twin {CASE}, layer.{index:02d}.attention.context"
        agree(
            learner.attend(query, key, value, mask, scale),
            stage(f"layer.{index:02d}.attention.context"),
            about,
            mistakes,
        )
    query, key, value = numbers(4, 3, 2), numbers(2, 3, 2, seed=1), numbers(2, 3, 2, seed=2)

    def grouped(keys: Array, values: Array) -> Array:
        return operations.softmax(query @ keys.swapaxes(1, 2)) @ values

    expected = grouped(np.repeat(key, 2, axis=0), np.repeat(value, 2, axis=0))
    tiled = {
        "query heads 0 and 2 share a key: 0 and 1 do, neighbours": grouped(
            np.tile(key, (2, 1, 1)), np.tile(value, (2, 1, 1))
        )
    }
    agree(
        learner.attend(query, key, value, np.zeros((3, 3)), 1.0), expected, "4 query heads on 2 key heads", tiled, EXACT
    )


@exercise(4)
def attention(learner: Any) -> None:
    for index in (0, 2):
        x, tokens = stage(f"layer.{index:02d}.attention.norm"), stage("embedded").shape[0]
        got = learner.attention(x, weights(index), *angles(index, tokens), mask_of(index, tokens), twin().settings)
        mistakes = {
            words: changed_attention(index, **changes)
            for words, changes in {
                "the scores are scaled by something else than 1/sqrt(query_pre_attn_scalar)": {"scale": 1.0},
                "the scores are divided by query_pre_attn_scalar itself": {"scale": 1 / 16},
                "query and key are turned first and normed after": {"late": True},
                "query and key are not normed": {"normed": False},
                "query and key are not turned": {"turned": False},
            }.items()
        }
        agree(
            got,
            stage(f"layer.{index:02d}.attention.output"),
            f"golden/twin {CASE}, layer.{index:02d}.attention.output",
            mistakes,
        )
    other = twin().settings | {"query_pre_attn_scalar": 64}  # the twin's own is its head_dim, which would do as well
    got = learner.attention(x, weights(index), *angles(index, tokens), mask_of(index, tokens), other)
    by_head = {"the scores are scaled by head_dim, not by query_pre_attn_scalar": changed_attention(index)}
    agree(got, changed_attention(index, scale=1 / 8), "the same with a query_pre_attn_scalar of 64", by_head)
    of_another(learner.attention, right_attention)


def changed_attention(
    index: int, scale: float = 0.25, late: bool = False, normed: bool = True, turned: bool = True
) -> Array:
    """Attention of a layer with a typical mistake."""
    name, w = f"layer.{index:02d}.attention", weights(index)
    value = stage(f"{name}.value")
    cos, sin = angles(index, value.shape[1])

    def made(which: str) -> Array:
        x = stage(f"{name}.{which}")

        def norm(x: Array) -> Array:
            return operations.rms_norm(x, w[f"self_attn.{which[0]}_norm.weight"], 1e-6) if normed else x

        def turn(x: Array) -> Array:
            return positions.rotate(x, cos, sin) if turned else x

        return norm(turn(x)) if late else turn(norm(x))

    scores = made("query") @ made("key").swapaxes(1, 2) * scale
    context = operations.softmax(scores + mask_of(index, value.shape[1])) @ value
    return context.swapaxes(0, 1).reshape(value.shape[1], -1) @ w["self_attn.o_proj.weight"].T


# Lesson 5 -------------------------------------------------------------------------------------------------------------


@exercise(5)
def l2_normalize(learner: Any) -> None:
    x = numbers(3, 5)
    mistakes = {
        "all rows are divided by one length": x / np.linalg.norm(x),
        "rows are divided by their root mean square: that is the other norm": operations.rms_norm(x, np.zeros(5), 0),
        "rows are divided by the square of their length": x / np.sum(x**2, -1, keepdims=True),
    }
    agree(learner.l2_normalize(x), operations.l2_normalize(x), "3 rows of 5", mistakes, EXACT)


@exercise(5)
def layer(learner: Any) -> None:
    before = {0: "embedded", 2: "layer.01.out"}
    for index, name in before.items():
        x = stage(name)
        got = learner.layer(x, weights(index), *angles(index, len(x)), mask_of(index, len(x)), twin().settings)
        updates = stage(f"layer.{index:02d}.attention.update"), stage(f"layer.{index:02d}.mlp.update")
        mistakes = {
            "only the updates are returned: they are added to x": updates[1],
            "what the MLP adds is added to x as it was before attention": x + updates[1],
            "only attention is added": x + updates[0],
        }
        agree(got, stage(f"layer.{index:02d}.out"), f"golden/twin {CASE}, layer.{index:02d}.out", mistakes)
    of_another(learner.layer, right_layer)


@exercise(5)
def encode(learner: Any) -> None:
    ids, parameters, settings = tokens_of(CASE), twin().parameters, twin().settings
    last = stage("layer.05.out")
    mistakes = {"the last norm is left out": last} | {
        words: reference_states(ids, **changes)
        for words, changes in {
            "the two rotary bases are swapped": {"sliding_base": 1_000_000.0, "full_base": 10_000.0},
            "the rotary base is 10,000 in every layer": {"full_base": 10_000.0},
            "the rotary base is 1,000,000 in every layer": {"sliding_base": 1_000_000.0},
            "every layer sees the whole text": {"reach": 64},
            "full layers have the window too": {"functions": {"window_mask": narrow}},
            "every layer is a sliding one": {"layer_kinds": ("sliding_attention",) * 6},
            "every layer is a full one": {"layer_kinds": ("full_attention",) * 6},
        }.items()
    }
    about = f"golden/twin {CASE}, final_norm: all six layers"
    agree(learner.encode(ids, parameters, settings), stage("final_norm"), about, mistakes, 10 * TOLERANCE)
    settings, parameters, config = other_model()
    ids = np.array([2, 30, 7, 7, 12, 1])
    agree(learner.encode(ids, parameters, settings), encode_tokens(ids, parameters, config), OTHER, tolerance=EXACT)


def reference_states(ids: Array, functions: Mapping[str, Any] | None = None, **changes: Any) -> Array:
    """The reference's states with something changed: a function, or a number of its config."""
    config = refembed.checkpoint.open_checkpoint(given.GOLDEN / "twin" / "checkpoint").config
    with replaced(functions or {}):
        return encode_tokens(ids, twin().parameters, replace(config, **changes))


def narrow(tokens: int, reach: int, dtype: Any, right: Any = positions.window_mask) -> Array:
    """A window for every layer."""
    return right(tokens, twin().settings["sliding_window"] // 2, dtype)


@exercise(5)
def mean_pool(learner: Any) -> None:
    states = stage("final_norm")
    mistakes = {
        "the mean is over the numbers, not over the tokens": states.mean(axis=1),
        "BOS and EOS are left out": states[1:-1].mean(axis=0),
        "BOS is left out": states[1:].mean(axis=0),
        "EOS is left out": states[:-1].mean(axis=0),
        "the first token is taken": states[0],
        "the last token is taken": states[-1],
        "the sum is taken, not the mean": states.sum(axis=0),
        "the largest number is taken": states.max(axis=0),
    }
    agree(learner.mean_pool(states), stage("pooled"), f"golden/twin {CASE}, pooled", mistakes)


@exercise(5)
def dense_head(learner: Any) -> None:
    pooled, parameters = stage("pooled"), twin().parameters
    up, projected = stage("projected_up"), stage("projected")
    mistakes = {
        "only the first matrix is used": up,
        "there is no head at all": pooled,
        "an activation stands between the two": np.tanh(up) @ parameters["3_Dense.linear.weight"].T,
        "the result is unit length already: that comes after": projected / np.linalg.norm(projected),
    }
    agree(learner.dense_head(pooled, parameters), projected, f"golden/twin {CASE}, projected", mistakes)


@exercise(5)
def truncate(learner: Any) -> None:
    embedding = given.golden("twin")[1][f"{CASE}/embedding"][0]
    kept = embedding[:16] / np.linalg.norm(embedding[:16])
    mistakes = {
        "it is not made unit length again": embedding[:16],
        "the last numbers are kept": embedding[-16:] / np.linalg.norm(embedding[-16:]),
    }
    agree(learner.truncate(embedding, 16), kept, f"golden/twin {CASE}, 16 numbers", mistakes, EXACT)
    two = np.stack([embedding, embedding[::-1]])
    agree(learner.truncate(two, 16)[0], kept, "two embeddings at once, the first of them", tolerance=EXACT)


@exercise(5)
def embed_ids(learner: Any) -> None:
    for case in (CASE, "length-two", LONG, "prompt-titled"):
        expected = given.golden("twin")[1][f"{case}/embedding"][0]
        got = learner.embed_ids(tokens_of(case), twin().parameters, twin().settings)
        pooled, parameters = stage("pooled", case), twin().parameters
        projected = pooled @ parameters["2_Dense.linear.weight"].T @ parameters["3_Dense.linear.weight"].T
        mistakes = {
            "it is not made unit length": projected,
            "the dense head is left out": pooled / np.linalg.norm(pooled),
        }
        agree(got, expected, f"golden/twin {case}, embedding", mistakes)
    settings, parameters, config = other_model()
    ids = np.array([2, 30, 7, 7, 12, 1])
    agree(learner.embed_ids(ids, parameters, settings), embed(ids, parameters, config), OTHER, tolerance=EXACT)


# Lesson 6 -------------------------------------------------------------------------------------------------------------


def batch_of() -> tuple[Array, Array, Array]:
    """Queries, positives and hard negatives of golden/losses: (4, 8) each."""
    queries, positives, hard = given.golden("losses")[1]["inputs/four"]
    return given.frozen(queries), given.frozen(positives), given.frozen(hard)


def cosines(queries: Array, negatives: Array) -> Array:
    return np.sum(operations.l2_normalize(queries) * operations.l2_normalize(negatives), axis=1)


@exercise(6)
def log_hardness(learner: Any) -> None:
    queries, _, negatives = batch_of()
    hard = cosines(queries, negatives)
    mistakes = {
        "alpha has the wrong sign: harder negatives must count more": -5 * hard,
        "it is w itself, not its logarithm": np.exp(5 * hard),
        "alpha is left out": hard,
        "the vectors are not normalised": 5 * np.sum(queries * negatives, axis=1),
        "every query is compared with every negative": 5
        * operations.l2_normalize(queries)
        @ operations.l2_normalize(negatives).T,
    }
    agree(learner.log_hardness(queries, negatives, 5.0), 5 * hard, "4 queries, alpha 5", mistakes, EXACT)


@exercise(6)
def false_negative_mask(learner: Any) -> None:
    queries, positives = ["a", "b", "a", "c"], ["p", "q", "r", "q"]
    expected = losses.false_negative_mask(queries, positives)
    by_query, by_positive = (
        np.array([[one != other for other in texts] for one in texts]) for texts in (queries, positives)
    )
    mistakes = {
        "the diagonal is masked: a query's own positive stays": by_query & by_positive,
        "only equal queries are looked for": by_query | np.eye(4, dtype=bool),
        "only equal positives are looked for": by_positive | np.eye(4, dtype=bool),
        "True and False are swapped": ~expected,
        "both texts must be equal: one of the two is enough": by_query | by_positive | np.eye(4, dtype=bool),
    }
    agree(
        learner.false_negative_mask(queries, positives),
        expected,
        f"queries {queries}, positives {positives}",
        mistakes,
        0,
    )


def settings_of(temperature: float = 0.1, alpha: float = 5.0) -> tuple[Array, Array, float]:
    """log w, mask and temperature of a batch in which a query stands twice."""
    queries, _, negatives = batch_of()
    mask = losses.false_negative_mask([0, 1, 0, 3], [4, 5, 6, 7])
    return given.frozen(alpha * cosines(queries, negatives)), given.frozen(mask), temperature


@exercise(6)
def log_terms(learner: Any) -> None:
    queries, positives, negatives = batch_of()
    log_w, mask, temperature = settings_of()
    q, p, n = map(operations.l2_normalize, (queries, positives, negatives))

    def terms(cosine: Array, hard: Array, weight: Array, temperature: float = temperature) -> Array:
        return np.column_stack([np.where(mask, cosine / temperature, -np.inf), weight + hard / temperature])

    hard = np.sum(q * n, axis=1)
    expected = terms(q @ p.T, hard, log_w)
    mistakes = {
        "the hardness weight is left out": terms(q @ p.T, hard, 0 * log_w),
        "the hardness weight is taken off": terms(q @ p.T, hard, -log_w),
        "the hardness weight is divided by the temperature too": terms(q @ p.T, hard + log_w, 0 * log_w),
        "the temperature multiplies": terms(q @ p.T, hard, log_w, 1 / temperature),
        "rows are positives and columns queries": terms(p @ q.T, hard, log_w),
        "the vectors are not normalised": terms(queries @ positives.T, np.sum(queries * negatives, axis=1), log_w),
        "nothing is masked": np.column_stack([q @ p.T / temperature, log_w + hard / temperature]),
        "terms are given, not their logarithms": np.exp(expected),
    }
    got = learner.log_terms(queries, positives, negatives, log_w, mask, temperature)
    agree(got, expected, "4 examples, query 0 stands twice, temperature 0.1", mistakes, EXACT)


@exercise(6)
def contrastive(learner: Any) -> None:
    queries, positives, negatives = batch_of()
    for case, temperature in (("contrastive-same-query", 0.1), ("contrastive-usual", 0.02), ("contrastive-cold", 1e-4)):
        log_w, mask, _ = settings_of()
        mask = mask if case.endswith("query") else np.ones_like(mask)
        expected = given.golden("losses")[0][case]["value"]
        mistakes = {
            "it is summed over examples, not averaged": 4 * expected,
            "the sign is wrong": -expected,
            "an exponential overflows": np.inf,
            "an exponential overflows ": np.nan,
        }
        with np.errstate(all="ignore"):
            got = learner.contrastive(queries, positives, negatives, log_w, mask, temperature)
        agree(got, np.asarray(expected), f"golden/losses {case}, temperature {temperature}", mistakes, 1e-8)


@exercise(6)
def second_moment(learner: Any) -> None:
    queries, positives, _ = batch_of()
    for x in (queries, positives):
        unit = operations.l2_normalize(x)
        right = losses.second_moment(x)
        mistakes = {
            "a row's cosine with itself is counted": np.sum((unit @ unit.T) ** 2) / 12,
            "the divisor is B squared": right * 12 / 16,
            "the sum is not divided": right * 12,
            "the vectors are not normalised": np.sum((x @ x.T) ** 2 * (1 - np.eye(4))) / 12,
            "the cosines are not squared": np.sum((unit @ unit.T) * (1 - np.eye(4))) / 12,
        }
        agree(learner.second_moment(x), right, "4 vectors of golden/losses", mistakes, EXACT)
        agree(learner.second_moment(x[:3]), losses.second_moment(x[:3]), "3 of them", tolerance=EXACT)
    with np.errstate(all="ignore"):
        alone = {"0 is divided by 0": np.nan}
        agree(learner.second_moment(queries[:1]), np.asarray(0.0), "a single vector", alone, EXACT)


@exercise(6)
def l2_normalize_gradient(learner: Any) -> None:
    upstream, x = numbers(3, 5), numbers(3, 5, seed=1)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    along = np.sum(upstream * x, axis=-1, keepdims=True)
    mistakes = {
        "only the division is differentiated: the length depends on x too": upstream / length,
        "u is not divided by its length before it is taken off": (upstream - along * x) / length,
        "the division by the length is left out": upstream - along * x / length**2,
    }
    expected = numerical(lambda x: np.sum(upstream * operations.l2_normalize(x)), x)
    agree(learner.l2_normalize_gradient(upstream, x), expected, "by finite differences: 3 rows of 5", mistakes, 1e-7)


def numerical(function: Callable[[Array], Any], x: Array, step: float = 1e-5) -> Array:
    """The gradient of a function of one array, by moving each number a little each way."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[place] = step
        gradient[place] = (function(x + moved) - function(x - moved)) / (2 * step)
    return gradient


@exercise(6)
def contrastive_gradient(learner: Any) -> None:
    batch, (log_w, mask, temperature) = batch_of(), settings_of()
    sound(contrastive, learner)
    got = learner.contrastive_gradient(*batch, log_w, mask, temperature)
    if not isinstance(got, tuple | list) or len(got) != 3:
        raise Wrong(f"expected three arrays, of queries, positives and negatives, got {type(got).__name__}")
    for index, side in enumerate(("queries", "positives", "negatives")):

        def moved(x: Array, index: int = index, weight: Array | None = None) -> Any:
            sides = [*batch[:index], x, *batch[index + 1 :]]
            return learner.contrastive(*sides, log_w if weight is None else weight, mask, temperature)

        def free(x: Array, index: int = index) -> Any:
            sides = [*batch[:index], x, *batch[index + 1 :]]
            return learner.contrastive(*sides, 5 * cosines(sides[0], sides[2]), mask, temperature)

        expected = numerical(moved, batch[index])
        mistakes = {
            "the hardness weight is differentiated: it is a constant": numerical(free, batch[index]),
            "the temperature is left out": expected * temperature,
            "it is the sum over examples, not the mean": expected * 4,
            "the sign is wrong": -expected,
        }
        agree(
            got[index],
            expected,
            f"with respect to {side}, by finite differences of your own contrastive",
            mistakes,
            1e-6,
        )


@exercise(6)
def second_moment_gradient(learner: Any) -> None:
    x = batch_of()[0]
    sound(second_moment, learner)
    expected = numerical(learner.second_moment, x)
    mistakes = {
        "each pair is counted once: it stands in the sum twice": expected / 2,
        "the square's 2 and the pair's 2 are both left out": expected / 4,
    }
    got = learner.second_moment_gradient(x)
    agree(got, expected, "by finite differences of your own second_moment", mistakes, 1e-6)
