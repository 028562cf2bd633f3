"""The forward pass of one packed batch, run by all threads together.

Every thread runs `forward` from beginning to end. The work is cut into steps, a step into tasks which the threads take
in turn, and nobody begins a step before all tasks of the last are done. So a whole pass costs one hand-over to the
threads, no number depends on which of them made it, and a thread that the system lets wait keeps no other waiting.
"""
# mypy: disable-error-code="no-untyped-def"

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled, inner
from .instructions import add_to, give_way, look_at
from .kernels import add_norm_row, attend, gelu_row, norm_row, quantise_row, rotate_head, store_key
from .matmul import BLOCK, PANEL, Matrix, multiply

ROWS_A_TASK = 96  # of a product: with one panel they fit a core's own cache
TRIO = 3 * BLOCK  # of gate, up and what comes of both, side by side
ROWS_A_STEP = 4  # of work along rows
SPINS = 2000  # looks at a counter before the processor is offered to others: about 20 microseconds
APART = 8  # int64 between counters, so that no two share a cache line
# one layer's steps
PROJECT, TURN, ATTEND, LEVELS, OUTPUT, ADD_ATTENTION, EXPAND, CONTRACT, ADD_MLP = range(9)
STEPS = 9


class Model(NamedTuple):
    """Sizes, and every layer's parameters stacked.

    qkv, output, expand, contract   the four products of a layer; expand is gate and up side by side
    norms      (layers + 1, 4, width) flat, one added: before attention, after it, before the MLP, after it; the last
               layer is followed by the model's own norm
    head_norms (layers, 2, head) flat, one added: of queries, of keys
    turns      (2, context, head) flat: cosines and sines of sliding and of full layers
    sliding    (layers) whether a layer is
    """

    layers: int
    width: int
    mlp: int
    heads: int
    key_heads: int
    head: int
    reach: int
    context: int
    epsilon: np.float32
    scale: np.float32
    qkv: Matrix
    output: Matrix
    expand: Matrix
    contract: Matrix
    norms: NDArray[np.float32]
    head_norms: NDArray[np.float32]
    turns: NDArray[np.float32]
    sliding: NDArray[np.bool_]


class Batch(NamedTuple):
    """The texts of a pass, one after another without padding, and room for everything between.

    rows       tokens of all texts; arrays have room for a multiple of ROWS
    starts     (texts + 1) first row of each text
    panels     (texts + 1) first panel of each text's keys
    blocks     (blocks, 2) text and first token of every block of attention
    text_of    (rows) text of each row
    x          (rows, width) flat, the residual stream
    normed     (rows, width), queries_keys_values, context, update: what products read and write
    gated      (rows, mlp), float32 only
    keys       (key_heads, panels, head, PANEL)
    bytes      int8: the levels of normed or context, (rows, depth), also seen as words of four; byte_scales (rows,
               depth/BLOCK); and the same of gated, which is written while normed is read
    scores, sums, found, trios   scratch of each thread
    tasks      (STEPS) how many tasks a step has
    counters   (1 + steps, 2) apart: tasks taken, tasks done
    """

    rows: int
    stride: int
    starts: NDArray[np.int64]
    panels: NDArray[np.int64]
    blocks: NDArray[np.int64]
    text_of: NDArray[np.int64]
    x: NDArray[np.float32]
    normed: NDArray[np.float32]
    qkv: NDArray[np.float32]
    context: NDArray[np.float32]
    update: NDArray[np.float32]
    gated: NDArray[np.float32]
    keys: NDArray[np.float32]
    bytes: NDArray[np.uint8]
    words: NDArray[np.int32]
    byte_scales: NDArray[np.float32]
    gated_bytes: NDArray[np.uint8]
    gated_words: NDArray[np.int32]
    gated_scales: NDArray[np.float32]
    scores: NDArray[np.float32]
    sums: NDArray[np.float32]
    found: NDArray[np.float32]
    trios: NDArray[np.float32]
    tasks: NDArray[np.int64]
    counters: NDArray[np.int64]


def new_counters(steps: int) -> NDArray[np.int64]:
    """Of each step, and of what comes before the first: tasks taken, tasks done."""
    return np.zeros((steps + 1) * 2 * APART, np.int64)


@inner
def wait(counters, place, tasks):
    """Until all tasks of a step are done. Nobody waits for a thread that has none: the system may have stopped it."""
    looks = 0
    while look_at(counters, place) < tasks:
        looks += 1
        if looks > SPINS:
            give_way()


@inner
def norm_rows(model, batch, which, first, last):
    """normed = the norm `which` of x, and its levels where a product in int8 will read it."""
    width, depth = model.width, model.qkv.depth
    for row in range(first, last):
        at = row * width
        norm_row(batch.x, at, width, model.norms, which * width, model.epsilon, batch.normed, at)
        if model.qkv.int8:
            quantise_row(batch.normed, at, width, batch.bytes, row * depth, depth, batch.byte_scales,
                         row * (depth // BLOCK))  # fmt: skip


@inner
def turn_rows(model, batch, layer, first, last):
    """Norm and turn queries and keys, and lay the keys out by columns."""
    head, columns = model.head, model.qkv.columns
    kind = 0 if model.sliding[layer] else 1
    for row in range(first, last):
        text = batch.text_of[row]
        position = row - batch.starts[text]
        turn = (kind * model.context + position) * head
        for part in range(model.heads + model.key_heads):
            at, key = row * columns + part * head, part - model.heads
            weight = (layer * 2 + (1 if key >= 0 else 0)) * head
            norm_row(batch.qkv, at, head, model.head_norms, weight, model.epsilon, batch.qkv, at)
            rotate_head(batch.qkv, at, head, model.turns, turn)
            if key >= 0:
                panels = batch.panels[len(batch.panels) - 1]
                place = (key * panels + batch.panels[text]) * head * PANEL
                store_key(batch.qkv, at, head, position, batch.keys, place)


@inner
def attend_block(model, batch, layer, task, thread):
    """One block of queries of one head."""
    head = model.head
    text, begin = batch.blocks[task // model.heads, 0], batch.blocks[task // model.heads, 1]
    query = task % model.heads
    key = query // (model.heads // model.key_heads)
    first_row, tokens = batch.starts[text], batch.starts[text + 1] - batch.starts[text]
    keys_start = (key * batch.panels[len(batch.panels) - 1] + batch.panels[text]) * head * PANEL
    attend(batch.qkv, model.qkv.columns, first_row, tokens, begin, query * head,
           (model.heads + model.key_heads + key) * head, head, model.reach if model.sliding[layer] else tokens,
           model.scale, batch.keys, keys_start, batch.scores[thread], batch.stride, batch.sums[thread],
           batch.found[thread], batch.context, model.heads * head, query * head)  # fmt: skip


@inner
def add_rows(model, batch, which, first, last):
    """x += norm `which` of update; then the norm that follows, while the row is at hand."""
    width, columns = model.width, model.output.columns
    for row in range(first, last):
        add_norm_row(batch.x, row * width, batch.update, row * columns, width, model.norms, which * width,
                     model.epsilon)  # fmt: skip
    norm_rows(model, batch, which + 1, first, last)


@inner
def level_rows(model, batch, first, last):
    """int8: the levels of context."""
    size, depth = model.heads * model.head, model.output.depth
    for row in range(first, last):
        quantise_row(batch.context, row * size, size, batch.bytes, row * depth, depth, batch.byte_scales,
                     row * (depth // BLOCK))  # fmt: skip


def count_tasks(model: Model, rows: int, blocks: int) -> list[int]:
    """How many tasks each step has."""
    parts, steps = -(-rows // ROWS_A_TASK), -(-rows // ROWS_A_STEP)

    def panels(matrix: Matrix) -> int:
        return parts * (matrix.columns // matrix.panel)

    expand = parts * (-(-model.mlp // BLOCK))
    levels = steps if model.output.int8 else 0
    return [panels(model.qkv), steps, blocks * model.heads, levels, panels(model.output), steps, expand,
            panels(model.contract), steps]  # fmt: skip


@inner
def product_task(batch, a, words, scales, matrix, layer, task, threads, c):
    """One panel's columns for ROWS_A_TASK rows."""
    panels = matrix.columns // matrix.panel
    first, panel = task // panels * ROWS_A_TASK, task % panels
    last = min(first + ROWS_A_TASK, batch.rows)
    multiply(a, words, scales, matrix, layer, first, last, panel, threads, c,
             first * matrix.columns + panel * matrix.panel, matrix.columns)  # fmt: skip


@inner
def expand_task(model, batch, layer, task, threads, trio):
    """BLOCK columns of gated = gelu(gate) * up for ROWS_A_TASK rows; in int8 their levels."""
    matrix, mlp, depth = model.expand, model.mlp, model.contract.depth
    half, parts = matrix.columns // matrix.panel // 2, (mlp + BLOCK - 1) // BLOCK
    block = task % parts
    first, count = task // parts * ROWS_A_TASK, min(BLOCK, mlp - block * BLOCK)
    last = min(first + ROWS_A_TASK, batch.rows)
    for side in range(2):
        for column in range(0, count, matrix.panel):
            panel = side * half + (block * BLOCK + column) // matrix.panel
            multiply(batch.normed, batch.words, batch.byte_scales, matrix, layer, first, last, panel,
                     threads * BLOCK // matrix.panel, trio, side * BLOCK + column, TRIO)  # fmt: skip
    for row in range(first, last):
        at = (row - first) * TRIO
        if model.contract.int8:
            gelu_row(trio, at, at + BLOCK, count, trio, at + 2 * BLOCK)
            quantise_row(trio, at + 2 * BLOCK, count, batch.gated_bytes, row * depth + block * BLOCK, BLOCK,
                         batch.gated_scales, row * (depth // BLOCK) + block)  # fmt: skip
        else:
            gelu_row(trio, at, at + BLOCK, count, batch.gated, row * mlp + block * BLOCK)


@inner
def rows_task(model, batch, layer, step, task):
    """ROWS_A_STEP rows of the work along rows."""
    first = task * ROWS_A_STEP
    last = min(first + ROWS_A_STEP, batch.rows)
    if step == TURN:
        turn_rows(model, batch, layer, first, last)
    elif step == LEVELS:
        level_rows(model, batch, first, last)
    else:
        add_rows(model, batch, layer * 4 + (1 if step == ADD_ATTENTION else 3), first, last)


@compiled
def forward(thread, threads, first_step, last_step, model, batch):
    """Steps first_step to last_step of layers * STEPS; before step 0 the first norm.

    Every thread calls this with its own number. batch.counters must be zero from first_step on.
    """
    if first_step == 0:
        if add_to(batch.counters, 0) == 0:
            norm_rows(model, batch, first_step, first_step, batch.rows)
            add_to(batch.counters, APART)
        wait(batch.counters, APART, 1)
    for at in range(first_step, last_step):
        layer, step = at // STEPS, at % STEPS
        place = (at + 1) * 2 * APART
        tasks = batch.tasks[step]
        task = add_to(batch.counters, place)
        while task < tasks:
            if step == ATTEND:
                attend_block(model, batch, layer, task, thread)
            elif step == EXPAND:
                expand_task(model, batch, layer, task, threads, batch.trios[thread])
            elif step == PROJECT:
                product_task(batch, batch.normed, batch.words, batch.byte_scales, model.qkv, layer, task,
                             threads, batch.qkv)  # fmt: skip
            elif step == OUTPUT:
                product_task(batch, batch.context, batch.words, batch.byte_scales, model.output, layer, task,
                             threads, batch.update)  # fmt: skip
            elif step == CONTRACT:
                product_task(batch, batch.gated, batch.gated_words, batch.gated_scales, model.contract, layer, task,
                             threads, batch.update)  # fmt: skip
            else:
                rows_task(model, batch, layer, step, task)
            add_to(batch.counters, place + APART)
            task = add_to(batch.counters, place)
        wait(batch.counters, place + APART, tasks)


@compiled
def project(threads, a, matrix, rows, counters, c):
    """c = a times one float32 matrix, by all threads. counters must be zero.

    a    (rows, depth) flat; rows a multiple of ROWS
    c    (rows, columns) flat
    """
    panels = matrix.columns // matrix.panel
    layer = first = 0
    task = add_to(counters, 0)
    while task < panels:
        multiply(a, matrix.levels, matrix.scales, matrix, layer, first, rows, task, threads, c, task * matrix.panel,
                 matrix.columns)  # fmt: skip
        add_to(counters, APART)
        task = add_to(counters, 0)
    wait(counters, APART, panels)
