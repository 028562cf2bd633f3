"""Weights rounded for the inputs that real texts give them (QNT-9, QNT-10).

The same texts go side by side through the float weights, the exact run, and through those quantised so far, the coarse
one, layer after layer. A matrix is rounded for its inputs in the coarse run, towards its outputs in the exact one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import DENSE, TABLE, Checkpoint, open_checkpoint
from ..errors import RefembedError
from ..progress import Progress
from ..reference.attention import attention, merge_heads
from ..reference.layer import gated_mlp
from ..reference.model import embed_tokens
from ..reference.operations import linear, rms_norm
from ..reference.pooling import POOLERS
from ..reference.positions import positions_of
from ..reference.quantize import Grid, Quantized, dequantize, grid_of
from ..reference.trace import Array, Trace
from .folder import check, check_size
from .gptq import gptq
from .scales import least_error

MEANS = 8.0  # how much more an error counts that all tokens of a text share: the pooler takes their mean
RIDGE = 0.01  # of H's mean diagonal, added to it where a correction is fitted to the texts
EVEN = 0.1  # how much of the dense matrices' H counts every direction alike: there is one input a text
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
    matrices  levels and scales by name: all but the table's
    norms     the norm weights that changed, by name
    """

    form: str
    matrices: dict[str, Quantized] = field(default_factory=dict)
    norms: dict[str, Array] = field(default_factory=dict)

    def rounding(self, name: str, rows: Array, grid: Grid) -> Quantized:
        """A folder's Rounding. The table has no inputs, so its scales are of least error."""
        return self.matrices[name] if name in self.matrices else least_error(name, rows, grid)


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

    Raises RefembedError as quantize_folder does.
    """
    checkpoint = open_checkpoint(folder)
    check(checkpoint, form)
    return Calibration(checkpoint, form, batch).run(show_progress)


class Calibration:
    """One calibration under way."""

    def __init__(self, checkpoint: Checkpoint, form: str, batch: Sequence[Array]) -> None:
        self.config, self.parameters, self.batch = checkpoint.config, checkpoint.parameters(np.float32), batch
        self.used, self.places = np.unique(np.concatenate(list(batch)), return_inverse=True)
        for name, tensor in checkpoint.tensors.items():  # before such a number overflows in the texts' way through
            if grid := grid_of(form, name):
                check_size(name, self.parameters[name][self.used if name == TABLE else ...], grid, tensor.file)
        lengths = np.array([len(ids) for ids in batch])
        self.texts = [slice(end - length, end) for end, length in zip(np.cumsum(lengths), lengths, strict=True)]
        self.share = np.repeat(1 / lengths, lengths).astype(np.float32)  # (tokens), of a text's mean
        self.found = Calibrated(form)

    def run(self, show_progress: bool) -> Calibrated:
        config, ids = self.config, self.used[self.places]
        with Progress(len(config.layer_kinds), show_progress, "layers") as progress:
            grid = grid_of(self.found.form, TABLE)
            assert grid is not None
            rows = dequantize(self.found.rounding(TABLE, self.parameters[TABLE][self.used], grid))
            self.exact = Run(embed_tokens(ids, self.parameters, config), self.parameters)
            self.coarse = Run(embed_tokens(self.places, {TABLE: rows}, config), dict(self.parameters))
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
        wanted, given = (self.norm(run.states, run, name(before)) for run in (exact, coarse))
        self.settle([name(each) for each in first], wanted, given, self.share)
        wanted, output = self.through(index, part, traced, wanted, exact)
        given, _ = self.through(index, part, traced, given, coarse)
        size = self.mean_square(output)  # (tokens); the norm after it divides by its root
        exact.states = exact.states + self.norm(output, exact, name(after))
        relative = self.share / self.mean_square(exact.states)  # (tokens); as will the next layer's norm
        self.settle([name(last)], wanted, given, relative / size)
        output = linear(given, coarse.parameters[name(last)])
        coarse.states = coarse.states + self.settle_norm(name(after), output, relative)

    def mean_square(self, rows: Array) -> Array:
        """(tokens), the epsilon that a norm adds where it is zero: of a matrix of zeros all outputs are zeros."""
        square = np.mean(rows * rows, axis=1)  # (tokens)
        return np.where(square > 0, square, np.float32(self.config.epsilon))

    def settle(self, names: Sequence[str], wanted: Array, given: Array, weights: Array) -> None:
        """Quantise matrices that read the same inputs.

        wanted    (tokens, columns)  their inputs in the exact run
        given     (tokens, columns)  and in the coarse one
        weights   (tokens)           how much a token's error counts
        """
        missing, given = (self.with_means(x, weights) for x in (wanted - given, given))
        hessian = given.T @ given  # (columns, columns)
        for name, goal in self.corrected(names, hessian, given.T @ missing):
            self.quantize(name, goal, hessian)

    def with_means(self, x: Array, weights: Array) -> Array:
        """Rows whose squares are to be summed, (tokens + texts, columns): tokens' own, and texts' means."""
        rows = x * np.sqrt(weights)[:, None]  # (tokens, columns)
        starts = [text.start for text in self.texts]
        means = np.add.reduceat(rows * np.sqrt(self.share)[:, None], starts, axis=0)  # (texts, columns)
        return np.concatenate([rows, math.sqrt(MEANS) * means])

    def corrected(self, names: Sequence[str], hessian: Array, cross: Array) -> list[tuple[str, Array]]:
        """Each matrix with what best makes good for the difference of the two runs' inputs."""
        ridge = (RIDGE * float(np.mean(np.diag(hessian))) or 1.0) * np.eye(len(hessian))  # 1 where all inputs are zero
        correction = np.linalg.solve(hessian + ridge, cross).T.astype(np.float32)  # (columns, columns)
        return [(name, self.parameters[name] + self.parameters[name] @ correction) for name in names]

    def quantize(self, name: str, goal: Array, hessian: Array) -> None:
        grid = grid_of(self.found.form, name)
        assert grid is not None
        try:
            self.found.matrices[name] = gptq(goal, hessian, grid)
        except ValueError as error:
            raise RefembedError("tensor-too-large", f"{name}, calibrated: {error}") from error
        self.coarse.parameters[name] = dequantize(self.found.matrices[name])

    def settle_norm(self, name: str, output: Array, weights: Array) -> Array:
        """Refit a norm's weight so that the coarse stream comes nearest the exact one; the update it gives."""
        unit = rms_norm(output, np.zeros(output.shape[1], output.dtype), self.config.epsilon)  # (tokens, width)
        missing = self.exact.states - self.coarse.states  # (tokens, width)
        square = weights @ (unit * unit)  # (width)
        gain = np.where(
            square > 0, weights @ (unit * missing) / np.where(square > 0, square, 1), 1 + self.parameters[name]
        )
        self.found.norms[name] = self.coarse.parameters[name] = (gain - 1).astype(np.float32)
        return self.norm(output, self.coarse, name)

    def settle_dense(self) -> None:
        """The two dense matrices: nothing is between them, so that the second can make good for the first's errors."""
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
