"""A checkpoint packed for the kernels, and batches of texts through them."""

import math
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refembed.checkpoint import TABLE, Checkpoint
from refembed.numpy_backend import usual_threads
from refembed.reference import POOLERS, SLIDING, Config, l2_normalize
from refembed.reference.positions import rotary_angles
from refembed.stored import StoredRows, Tensor

from .forward import (
    ADD_ATTENTION,
    ADD_MLP,
    ATTEND,
    CONTRACT,
    EXPAND,
    MANY,
    OUTPUT,
    PART,
    PROJECT,
    STEPS,
    TURN,
    Batch,
    Model,
    forward,
    new_counters,
    project,
    quantise_rows,
    schedule,
    words_in,
)
from .instructions import BLOCK, NOTE, ROWS, SPAN
from .kernels import QUERIES
from .matmul import BYTES, FLOATS, PANEL, Matrix, empty_matrix, round_up
from .packing import by_halves, layout_of, pack, pack_levels, quantized
from .team import Team

ROWS_AT_ONCE = 128  # of the table: the system maps 64 KB around each row of 3, and around its scales, let go before
# they add up
FIRST_TURNS = 2**19  # numbers of the first table of cosines and sines, of each kind of layer: the released model's all
TOKENS_A_THREAD = 256  # of a pass, unless one text has more: what passes between products stays in a shared cache
NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
DENSE_MATRICES = ("2_Dense.linear", "3_Dense.linear")
Floats = NDArray[np.float32]


class NumbaEncoder:
    """The model in float32, or in int8: products of 8-bit levels with the weights' own of 8 or 4 bits, or rounded ones.

    rows_read   rows of the table read since its pages were let go
    turns       (2, positions, head) flat: cosines and sines of sliding and of full layers, as far as a text came yet
    """

    def __init__(self, checkpoint: Checkpoint, precision: str, threads: int | None) -> None:
        self.precision, self.config = precision, checkpoint.config
        self.threads = threads or usual_threads()
        self.team = Team(self.threads)
        self.table = StoredRows(checkpoint.tensors[TABLE], np.float32)
        self.rows_read = 0
        self.turns = make_turns(self.config, max(1, min(self.config.context, FIRST_TURNS // self.config.head)))
        self.model = pack_model(checkpoint, precision == "int8", self.team)
        quantised = precision == "int8" and checkpoint.quantized  # of a checkpoint of floats alone these stay floats
        self.dense = [pack_kind(checkpoint, 1, [name], quantised, self.team) for name in DENSE_MATRICES]
        for tensor in checkpoint.tensors.values():  # around what was read the system mapped more
            let_go(tensor)
        self.encode([np.array([self.config.bos])])  # compiles, or fails, now

    def encode(self, batch: Sequence[NDArray[Any]]) -> NDArray[Any]:
        vectors = np.empty((len(batch), self.config.dimensions), np.float32)
        for indices in passes([len(ids) for ids in batch], TOKENS_A_THREAD * max(self.threads, 2)):
            states = self.states([batch[index] for index in indices])
            pooled = np.stack([POOLERS[self.config.pooler](text, {}) for text in states])  # (texts, width)
            vectors[indices] = l2_normalize(self.head(pooled)[1])
        return vectors

    def states(self, texts: list[NDArray[Any]]) -> list[Floats]:
        """The last norm's output of each text, (tokens_i, width)."""
        batch = self.pack_batch(texts)
        self.run(batch, 0, len(batch.tasks))
        return split_rows(batch.normed, batch, self.config.width)

    def pack_batch(self, texts: list[NDArray[Any]], by_rows: bool | None = None) -> Batch:
        ids = np.concatenate(texts)
        many = len(ids) >= MANY * self.threads if by_rows is None else by_rows
        lengths = [len(text) for text in texts]
        batch = make_batch(lengths, self.model, self.turns_for(max(lengths)), self.threads, many)
        x = batch.x[: ids.size * self.config.width].reshape(len(ids), self.config.width)
        at_once = ROWS_AT_ONCE // len(self.table.tensor.mapped)
        for first in range(0, len(ids), at_once):
            rows = slice(first, first + at_once)
            x[rows] = self.table[ids[rows]] * np.float32(math.sqrt(self.config.width))
            self.rows_read += len(ids[rows])
            if self.rows_read >= at_once:
                let_go(self.table.tensor)
                self.rows_read = 0
        return batch

    def turns_for(self, tokens: int) -> Floats:
        """`turns`, for at least so many tokens: a config may allow texts that nobody has, and memory neither.

        A longer table takes the place of the one there was, which other threads may still be reading.
        """
        turns = self.turns
        positions = turns.size // (2 * self.config.head)
        if tokens > positions:
            turns = self.turns = make_turns(self.config, max(tokens, min(2 * positions, self.config.context)))
        return turns

    def run(self, batch: Batch, first: int, last: int) -> None:
        """Some of the forward's phases, on all threads."""
        model, threads = self.model, self.threads
        self.team.run(lambda thread: forward(thread, threads, first, last, model, batch))

    def head(self, pooled: Floats) -> list[Floats]:
        """The outputs of both dense matrices, (texts, dense) and (texts, dimensions)."""
        found, rows = [pooled], len(pooled)
        for matrix, outputs in zip(self.dense, (self.config.dense, self.config.dimensions), strict=True):
            found.append(self.multiply(found[-1], matrix)[:rows, :outputs])
        return found[1:]

    def multiply(self, rows: Floats, matrix: Matrix) -> Floats:
        """rows (n, depth) times a matrix of one layer, (n, columns), both or a few more.

        With levels twice: the rows' own, and those of what these leave, since nothing after averages errors here.
        """
        filled = np.zeros((round_up(len(rows), ROWS), matrix.depth), np.float32)
        filled[: len(rows), : rows.shape[1]] = rows
        if matrix.bits == 32:
            return self.project(filled, np.zeros(0, np.int32), matrix, len(filled))
        words = self.levels(filled)
        blocks = words.reshape(-1, SPAN)
        meant = blocks[:, NOTE:].copy().view(np.int8) * blocks[:, :1].copy().view(np.float32)  # (blocks, BLOCK)
        rest = self.levels(filled - meant.reshape(filled.shape))
        found = self.project(filled, np.concatenate([words, rest]), matrix, 2 * len(filled))
        return found[: len(filled)] + found[len(filled) :]

    def levels(self, rows: Floats) -> NDArray[np.int32]:
        """What byte_product reads of rows (n, a multiple of BLOCK), flat."""
        words = np.empty(rows.size // BLOCK * SPAN, np.int32)
        quantise_rows(rows.ravel(), rows.shape[1], words)
        return words

    def project(self, rows: Floats, words: NDArray[np.int32], matrix: Matrix, count: int) -> Floats:
        """`count` rows, as floats or as levels, a multiple of ROWS, times a matrix: (count, columns)."""
        flat, found, counters = rows.ravel(), np.empty(count * matrix.columns, np.float32), new_counters(0)
        threads = self.threads
        self.team.run(lambda thread: project(threads, flat, words, matrix, count, counters, found))
        return found.reshape(count, matrix.columns)

    def trace(self, ids: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The tensors that exist here: what is fused away (norms before a residual, scores) is not among them."""
        batch = self.pack_batch([ids], by_rows=False)
        (embedded,) = split_rows(batch.x, batch, self.config.width)
        kept: dict[str, NDArray[Any]] = {"tokens": ids, "embedded": embedded.copy()}
        for layer in range(self.model.layers):
            self.trace_layer(batch, layer, kept)
        (states,) = split_rows(batch.normed, batch, self.config.width)
        pooled = POOLERS[self.config.pooler](states, {})
        up, projected = self.head(pooled[None])
        kept |= {"final_norm": states, "pooled": pooled, "projected_up": up[0], "projected": projected[0]}
        return kept | {"embedding": l2_normalize(projected[0])}

    def trace_layer(self, batch: Batch, layer: int, kept: dict[str, NDArray[Any]]) -> None:
        """Run one layer's steps and keep what each leaves."""
        model, name, start = self.model, f"layer.{layer:02d}", layer * STEPS

        def run(first: int, last: int) -> None:
            self.run(batch, start + first, start + last + 1)

        def keep(what: str, flat: Floats, columns: int, first: int, size: int, head: int = 0) -> None:
            (rows,) = split_rows(flat, batch, columns)
            rows = rows[:, first : first + size].copy()
            kept[f"{name}.{what}"] = rows.reshape(len(rows), -1, head).swapaxes(0, 1) if head else rows

        width, head, queries, key = model.width, model.head, model.heads * model.head, model.key_heads * model.head
        if layer == 0:
            self.run(batch, 0, 0)
        keep("attention.norm", batch.normed, width, 0, width)
        run(PROJECT, PROJECT)
        keep("attention.query", batch.qkv, model.qkv.columns, 0, queries, head)
        keep("attention.key", batch.qkv, model.qkv.columns, queries, key, head)
        keep("attention.value", batch.qkv, model.qkv.columns, queries + key, key, head)
        run(TURN, TURN)
        keep("attention.query_rotated", batch.qkv, model.qkv.columns, 0, queries, head)
        keep("attention.key_rotated", batch.qkv, model.qkv.columns, queries, key, head)
        run(ATTEND, ATTEND)
        keep("attention.context", batch.context, queries, 0, queries, head)
        run(ATTEND + 1, OUTPUT)
        keep("attention.output", batch.update, model.output.columns, 0, width)
        run(ADD_ATTENTION, ADD_ATTENTION)
        keep("mlp.norm", batch.normed, width, 0, width)
        run(EXPAND, EXPAND)
        if model.contract.bits == 32:
            keep("mlp.gated", batch.gated, model.mlp, 0, model.mlp)
        run(CONTRACT, CONTRACT)
        keep("mlp.output", batch.update, model.contract.columns, 0, width)
        run(ADD_MLP, ADD_MLP)
        keep("out", batch.x, width, 0, width)


# --------------------------------------------------------------------------------------------------------------- load
def pack_model(checkpoint: Checkpoint, levels: bool, team: Team) -> Model:
    """Every layer's parameters in the kernels' order; of the mapped files nothing stays in memory but the table."""
    config = checkpoint.config
    layers = len(config.layer_kinds)
    products = [
        [f"self_attn.{name}_proj" for name in "qkv"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ]
    qkv, output, expand, contract = (
        pack_kind(checkpoint, layers, [f"layers.{{0}}.{name}" for name in names], levels, team) for names in products
    )

    def vectors(*names: str) -> Floats:
        """Norm weights with their one added."""
        return np.concatenate([checkpoint.tensors[f"{name}.weight"].load(np.float32) for name in names]) + np.float32(1)

    norms = [f"layers.{layer}.{name}" for layer in range(layers) for name in NORMS]
    head_norms = [f"layers.{layer}.self_attn.{name}_norm" for layer in range(layers) for name in "qk"]
    return Model(
        layers, config.width, config.mlp, config.heads, config.key_heads, config.head, config.reach,
        np.float32(config.epsilon), np.float32(config.query_scalar**-0.5),
        qkv, output, expand, contract, vectors(*norms, "norm"), vectors(*head_norms),
        np.array([kind == SLIDING for kind in config.layer_kinds]),
    )  # fmt: skip


def make_turns(config: Config, positions: int) -> Floats:
    """Cosines and sines side by side, (2, positions, head) flat: sliding layers, full layers."""
    bases = config.sliding_base, config.full_base
    angles = [rotary_angles(positions, config.head, base, np.float32) for base in bases]
    return np.stack([np.concatenate(pair, axis=1) for pair in angles]).ravel()


def pack_kind(checkpoint: Checkpoint, layers: int, names: list[str], levels: bool, team: Team) -> Matrix:
    """One kind of product of every layer; the matrices of `names` share their input and stand side by side.

    Queries, keys and values stand close, so that every head is `head` columns from the last; of two matrices, gate and
    up, each has half of the panels.

    levels   in 8 or 4 bits
    """
    tensors = [[checkpoint.tensors[f"{name.format(layer)}.weight"] for name in names] for layer in range(layers)]
    shapes = [tensor.shape for tensor in tensors[0]]
    starts = [sum(shape[0] for shape in shapes[:at]) for at in range(len(shapes))]
    size, inputs = starts[-1] + shapes[-1][0], shapes[0][1]
    layout = layout_of([tensor for parts in tensors for tensor in parts], levels)
    if len(names) == 2:
        starts[1] = round_up(shapes[0][0], layout.panel)
        size = 2 * starts[1]
    matrix = empty_matrix(layers, size, inputs, layout)
    stored = layout.halves or layout.shared
    stacked = np.zeros((matrix.columns, matrix.depth if stored else inputs), np.int8 if stored else np.float32)
    scales = np.zeros((matrix.columns, 1 if layout.shared else 2 * matrix.depth // BLOCK), np.float16)
    for layer, parts in enumerate(tensors):
        for start, tensor in zip(starts, parts, strict=True):
            rows = slice(start, start + tensor.shape[0])
            if stored:
                whole = quantized(tensor)
                stacked[rows, :inputs], scales[rows] = whole.levels, by_halves(whole.scales, scales.shape[1])
            else:
                stacked[rows] = tensor.load(np.float32)
            let_go(tensor)
        if stored:
            pack_levels(matrix, layer, stacked, scales, team)
        else:
            pack(matrix, layer, stacked, team)
    return matrix


def let_go(tensor: Tensor) -> None:
    """Tell the system that these mapped pages are not needed now; whoever reads them has them mapped again."""
    for part in tensor.mapped:
        base: Any = part
        while isinstance(base, np.ndarray):
            base = base.base
        if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
            return
        offset = part.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        base.madvise(mmap.MADV_DONTNEED, start, offset + part.nbytes - start)


# -------------------------------------------------------------------------------------------------------------- batches
def passes(lengths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Indices of texts that go through together, longest first: `room` tokens or one text."""
    group: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if group and tokens + lengths[index] > room:
            yield group
            group, tokens = [], 0
        group.append(index)
        tokens += lengths[index]
    if group:
        yield group


def make_batch(lengths: list[int], model: Model, turns: Floats, threads: int, by_rows: bool) -> Batch:
    """Room for a pass over texts of these lengths, whose positions turns must hold."""
    int8, panel, rows = model.qkv.bits < 32, model.qkv.panel, sum(lengths)
    room = round_up(rows, ROWS) + ROWS  # a tile of queries may begin at a text's last token
    starts = np.concatenate([[0], np.cumsum(lengths)])
    panels = np.concatenate([[0], np.cumsum([round_up(tokens, panel) // panel for tokens in lengths])])
    blocks = [(text, begin) for text, tokens in enumerate(lengths) for begin in range(0, tokens, QUERIES)]
    stride = round_up(max(lengths), panel) + 16  # not a power of two, whose rows would share cache lines

    def levels(depth: int, rows: int = room) -> NDArray[np.int32]:
        return np.zeros(rows * words_in.py_func(depth) if int8 else 0, np.int32)

    def floats(columns: int, more: int = 0) -> Floats:
        return np.zeros(room * columns + more, np.float32)

    normed, normed_levels = floats(model.width), levels(model.qkv.depth)
    context, context_levels = normed, normed_levels
    if model.heads * model.head != model.width:  # else a row of context can stand where its normed was
        context, context_levels = floats(model.heads * model.head), levels(model.output.depth)
    return Batch(
        rows, room, stride, starts, panels, np.array(blocks), np.repeat(np.arange(len(lengths)), lengths), turns,
        floats(model.width), normed, floats(model.qkv.columns, PANEL), context,
        floats(model.output.columns), floats(0 if int8 else model.mlp),
        np.zeros(0 if int8 else model.key_heads * panels[-1] * model.head * panel, np.float32),
        empty_matrix(model.key_heads, panels[-1] * panel if int8 else 0, model.head, BYTES if int8 else FLOATS),
        normed_levels, context_levels,
        levels(round_up(model.head, BLOCK), room * (model.heads + model.key_heads)), levels(model.contract.depth),
        np.zeros((threads, QUERIES * stride), np.float32), np.zeros((threads, QUERIES), np.float32),
        np.zeros((threads, ROWS * PANEL), np.float32), np.zeros((threads, 3 * PART), np.float32),
        *schedule(model, rows, len(blocks), threads, by_rows),
        new_counters(model.layers * STEPS),
    )  # fmt: skip


def split_rows(flat: Floats, batch: Batch, columns: int) -> list[Floats]:
    """A flat array's rows of each text."""
    rows = flat[: batch.rows * columns].reshape(batch.rows, columns)
    return np.split(rows, batch.starts[1:-1])
