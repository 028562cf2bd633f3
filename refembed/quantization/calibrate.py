"""Weights rounded for the inputs that real texts give them (QNT-9 to QNT-11).

The same texts go side by side through the float weights, the exact run, and through those quantised so far, the coarse
one, layer after layer. A matrix is rounded for its inputs in the coarse run, towards its outputs in the exact one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import DENSE, TABLE, Checkpoint, open_checkpoint
from ..progress import Progress
from ..reference import Config
from ..reference.attention import attention, merge_heads
from ..reference.backward import embed_gradients
from ..reference.layer import gated_mlp
from ..reference.model import embed_tokens
from ..reference.operations import linear, rms_norm
from ..reference.pooling import POOLERS
from ..reference.positions import positions_of
from ..reference.quantize import Grid, Quantized, dequantize, grid_of
from ..reference.trace import Array, Trace
from .folder import check
from .gptq import gptq

RIDGE = 0.01  # of H's mean diagonal, added to it where a correction is fitted to the texts
EVEN = 0.1  # how much of the dense matrices' H counts every direction alike: there is one input a text
PROBED_TOKENS = 3000  # of the texts, for the table's H
UP, DOWN = (f"{where}.linear.weight" for where in DENSE)
PARTS = (  # of a layer: its name in traces, norm before, matrices after it, what is traced, matrix of that, last norm
    (
        "attention",
        "input_layernorm",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "context",
        "self_attn.o_proj",
        "post_attention_layernorm",
    ),
    (
        "mlp",
        "pre_feedforward_layernorm",
        ("mlp.gate_proj", "mlp.up_proj"),
        "gated",
        "mlp.down_proj",
        "post_feedforward_layernorm",
    ),
)


@dataclass
class Calibrated:
    """What a calibration found.

    form      one of reference.quantize.FORMS
    matrices  levels and scales by name: all but the table's, which is rounded some rows at a time
    norms     the norm weights that changed, by name
    table     the H of the table's rows, (width, width)
    """

    form: str
    table: Array
    matrices: dict[str, Quantized] = field(default_factory=dict)
    norms: dict[str, Array] = field(default_factory=dict)

    def rounding(self, name: str, rows: Array, grid: Grid) -> Quantized:
        """A folder's Rounding."""
        return self.matrices[name] if name in self.matrices else gptq(rows, self.table, grid, rounds=1)


@dataclass
class Run:
    """All texts' tokens on their way through the layers."""

    states: Array  # (tokens, width), the residual stream
    parameters: dict[str, Any]


def calibrate(folder: Path, form: str, batch: Sequence[Array], show_progress: bool = False) -> Calibrated:
    """Every matrix's levels and scales for these texts.

    folder   a checkpoint of floats
    form     one of reference.quantize.FORMS
    batch    texts arrays (tokens_i,), ids with BOS and EOS

    Takes 34 KB of memory a token beside the model. Raises RefembedError as quantize_folder does.
    """
    checkpoint = open_checkpoint(folder)
    check(checkpoint, form)
    return Calibration(checkpoint, form, batch).run(show_progress)


class Calibration:
    """One calibration under way."""

    def __init__(self, checkpoint: Checkpoint, form: str, batch: Sequence[Array]) -> None:
        self.config, self.parameters, self.batch = checkpoint.config, checkpoint.parameters(np.float32), batch
        lengths = np.array([len(ids) for ids in batch])
        self.texts = [slice(end - length, end) for end, length in zip(np.cumsum(lengths), lengths, strict=True)]
        self.share = np.repeat(1 / lengths, lengths).astype(np.float32)  # (tokens), of a text's mean
        self.found = Calibrated(form, np.eye(self.config.width))

    def run(self, show_progress: bool) -> Calibrated:
        config, ids = self.config, np.concatenate(list(self.batch))
        with Progress(len(config.layer_kinds) + 2, show_progress, "layers and more") as progress:
            probed = table_hessian(self.batch, self.parameters, config)
            self.found.table = probed + np.mean(np.diag(probed)) * np.eye(config.width)
            progress.add(1)
            used, places = np.unique(ids, return_inverse=True)
            grid = grid_of(self.found.form, TABLE)
            assert grid is not None
            rows = dequantize(self.found.rounding(TABLE, self.parameters[TABLE][used], grid))
            self.exact = Run(embed_tokens(ids, self.parameters, config), self.parameters)
            self.coarse = Run(embed_tokens(places, {TABLE: rows}, config), dict(self.parameters))
            for index in range(len(config.layer_kinds)):
                for part in PARTS:
                    self.settle_part(index, *part)
                progress.add(1)
            self.settle_dense()
        return self.found

    def settle_part(
        self, index: int, part: str, before: str, first: Sequence[str], traced: str, last: str, after: str
    ) -> None:
        """Quantise one half of layer `index`, and take both runs through it."""
        name, exact, coarse = f"layers.{index}.{{}}.weight".format, self.exact, self.coarse
        readers = [name(each) for each in first]
        scale = self.balance(self.norm(exact.states, exact, name(before)), readers, self.share)
        self.scale_norm(name(before), scale)
        wanted, given = (self.norm(run.states, run, name(before)) for run in (exact, coarse))
        inner, output = self.through(index, part, traced, wanted, exact)
        size = np.mean(output * output, axis=1)  # (tokens); the norm after it divides by its root
        stream = exact.states + self.norm(output, exact, name(after))
        relative = self.share / np.mean(stream * stream, axis=1)  # (tokens); as will the next layer's norm
        source = readers[-1]  # v gives what o reads, but for a mean over tokens; up what down reads, but for a factor
        rows = self.value_rows() if part == "attention" else np.arange(inner.shape[1])
        scale = self.balance(inner, [name(last)], relative / size, rows)
        self.parameters[source] = self.parameters[source] / scale[np.unique(rows, return_index=True)[1], None]
        self.settle(readers, wanted, given, self.share)
        given, _ = self.through(index, part, traced, given, coarse)
        self.settle([name(last)], inner / scale, given, relative / size)
        exact.states = stream
        output = linear(given, coarse.parameters[name(last)])
        coarse.states = coarse.states + self.settle_norm(name(after), output, relative)

    def value_rows(self) -> Array:
        """Which of v's rows each column of o reads: several heads read one."""
        config = self.config
        key_head = np.arange(config.heads) // (config.heads // config.key_heads)  # (heads)
        return (key_head[:, None] * config.head + np.arange(config.head)).reshape(-1)  # (heads*head)

    def balance(self, x: Array, readers: Sequence[str], weights: Array, rows: Array | None = None) -> Array:
        """Multiply the columns of matrices that read x by the scale returned, (columns): x is to be divided by it.

        rows   (columns)  columns that must have one scale have the same number here
        """
        rows = np.arange(x.shape[1]) if rows is None else rows
        numbers = sum(np.sum(np.square(self.parameters[name]), axis=0) for name in readers)  # (columns)
        inputs = weights @ (x * x)  # (columns)
        scale = even_scale(np.bincount(rows, inputs), np.bincount(rows, numbers))[rows]
        for name in readers:
            self.parameters[name] = self.parameters[name] * scale
        return scale

    def scale_norm(self, name: str, scale: Array) -> None:
        """Divide what a norm gives, in both runs."""
        weight = (1 + self.parameters[name]) / scale - 1
        self.parameters[name] = self.coarse.parameters[name] = self.found.norms[name] = weight

    def settle(self, names: Sequence[str], wanted: Array, given: Array, weights: Array) -> None:
        """Quantise matrices that read the same inputs.

        wanted    (tokens, columns)  their inputs in the exact run
        given     (tokens, columns)  and in the coarse one
        weights   (tokens)           how much a token's error counts
        """
        root = np.sqrt(weights)[:, None]
        scaled = given * root
        hessian = scaled.T @ scaled  # (columns, columns)
        for name, goal in self.corrected(names, hessian, scaled.T @ ((wanted - given) * root)):
            self.quantize(name, goal, hessian)

    def corrected(self, names: Sequence[str], hessian: Array, cross: Array) -> list[tuple[str, Array]]:
        """Each matrix with what best makes good for the difference of the two runs' inputs."""
        ridge = RIDGE * float(np.mean(np.diag(hessian))) * np.eye(len(hessian))
        correction = np.linalg.solve(hessian + ridge, cross).T.astype(np.float32)  # (columns, columns)
        return [(name, self.parameters[name] + self.parameters[name] @ correction) for name in names]

    def quantize(self, name: str, goal: Array, hessian: Array) -> None:
        grid = grid_of(self.found.form, name)
        assert grid is not None
        self.found.matrices[name] = gptq(goal, hessian, grid)
        self.coarse.parameters[name] = dequantize(self.found.matrices[name])

    def settle_norm(self, name: str, output: Array, weights: Array) -> Array:
        """Refit a norm's weight so that the coarse stream comes nearest the exact one; the update it gives."""
        unit = rms_norm(output, np.zeros(output.shape[1], output.dtype), self.config.epsilon)  # (tokens, width)
        missing = self.exact.states - self.coarse.states  # (tokens, width)
        square = weights @ (unit * unit)  # (width)
        gain = np.where(square > 0, weights @ (unit * missing) / np.where(square > 0, square, 1), 1)
        self.found.norms[name] = self.coarse.parameters[name] = (gain - 1).astype(np.float32)
        return self.norm(output, self.coarse, name)

    def settle_dense(self) -> None:
        """The two dense matrices: nothing is between them, so that the second can make good for the first's errors."""
        each = np.ones(len(self.texts), np.float32)
        self.scale_norm("norm.weight", self.balance(self.pool(self.exact), [UP], each))
        scale = self.balance(linear(self.pool(self.exact), self.parameters[UP]), [DOWN], each)
        self.parameters[UP] = self.parameters[UP] / scale[:, None]
        pooled = self.pool(self.coarse)  # (texts, width)
        spread = pooled.T @ pooled
        spread = (1 - EVEN) * spread + EVEN * np.mean(np.diag(spread)) * np.eye(len(spread), dtype=np.float32)
        self.quantize(UP, self.parameters[UP], spread)
        rounded = self.coarse.parameters[UP]
        product = spread @ rounded.T  # (width, dense)
        hessian, cross = rounded @ product, (self.parameters[UP] - rounded) @ product  # (dense, dense)
        for name, goal in self.corrected([DOWN], hessian, cross.T):
            self.quantize(name, goal, hessian)

    def norm(self, rows: Array, run: Run, name: str) -> Array:
        return rms_norm(rows, run.parameters[name], self.config.epsilon)

    def through(self, index: int, part: str, wanted: str, x: Array, run: Run) -> tuple[Array, Array]:
        """What one half of a layer traces by a name, (tokens, n), and its output, (tokens, width): text by text."""
        kept: list[Array] = []

        def keep(name: str, tensor: Array) -> None:
            if name == f"layer.{index:02d}.{part}.{wanted}":
                kept.append(merge_heads(tensor) if tensor.ndim == 3 else tensor)

        def output(rows: Array, trace: Trace) -> Array:
            if part == "mlp":
                return gated_mlp(rows, run.parameters, index, trace)
            positions = positions_of(self.config.layer_kinds[index], len(rows), self.config, rows.dtype)
            return attention(rows, run.parameters, index, self.config, positions, trace)

        outputs = [output(x[text], keep) for text in self.texts]
        return np.concatenate(kept), np.concatenate(outputs)

    def pool(self, run: Run) -> Array:
        """(texts, width)"""
        states = self.norm(run.states, run, "norm.weight")
        return np.stack([POOLERS[self.config.pooler](states[text], run.parameters) for text in self.texts])


def even_scale(inputs: Array, numbers: Array) -> Array:
    """The scale of each column that makes a row's error least, where all its numbers have one step (QNT-10).

    inputs    (columns)  mean squares of what a column is multiplied by
    numbers   (columns)  mean squares of its own numbers
    returns   (columns)  geometric mean 1
    """
    inputs, numbers = (np.maximum(square, 1e-6 * np.mean(square) or 1) for square in (inputs, numbers))
    scale = (inputs / numbers) ** 0.25  # (columns)
    return (scale / np.exp(np.mean(np.log(scale)))).astype(np.float32)


def table_hessian(batch: Sequence[Array], parameters: dict[str, Any], config: Config) -> Array:
    """How much an error of the table's rows counts in the embedding, (width, width): the mean of g g^T.

    g is the derivative, with respect to a token's row, of the embedding in a random direction (QNT-11).
    """
    random, hessian, tokens = np.random.default_rng(0), np.zeros((config.width, config.width)), 0
    for ids in batch:
        if tokens >= PROBED_TOKENS:
            break
        tokens += len(ids)
        direction = random.standard_normal(config.dimensions).astype(np.float32)
        rows, own = parameters[TABLE][ids], replace(config, vocabulary=len(ids))  # a table of this text's rows
        found = embed_gradients(direction, np.arange(len(ids)), parameters | {TABLE: rows}, own)[TABLE]
        hessian += found.T @ found
    return hessian / tokens
