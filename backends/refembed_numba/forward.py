"""The forward pass of one packed batch, run by all threads together.

Every thread runs `forward` from beginning to end. The work is cut into steps, a step into tasks which the threads take
in turn, and nobody begins a step before all have done with the last. So a whole pass costs one hand-over to the
threads, and no number depends on which of them made it.
"""
# mypy: disable-error-code="no-untyped-def"

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .instructions import add_to, give_way, look_at
from .kernels import add_norm_row, attend, gelu_row, norm_row, quantise_row, rotate_head, store_key
from .matmul import BLOCK, Matrix, multiply

ROWS_A_TASK = 96  # of a product: with one panel they fit a core's own cache
ROWS_A_STEP = 16  # of work along rows
SPINS = 2000  # looks at a counter before the processor is offered to others: about 20 microseconds
APART = 8  # int64 between counters, so that no two share a cache line
# one layer's steps
PROJECT, TURN, ATTEND, LEVELS, OUTPUT, ADD_ATTENTION, EXPAND, ACTIVATE, CONTRACT, ADD_MLP = range(10)
STEPS = 10


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
    panel: int
    epsilon: np.float32
    scale: np.float32
    vnni: bool
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
    normed     (rows, width), queries_keys_values, context, update, gates, gated: what products read and write
    keys       (key_heads, panels, head, panel)
    bytes      int8: a product's input, (rows, depth), also seen as words of four; byte_scales (rows, depth/BLOCK)
    scores, sums, found, lanes   scratch of each thread
    counters   (steps, 2) apart: tasks taken, threads that are done
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
    gates: NDArray[np.float32]
    gated: NDArray[np.float32]
    keys: NDArray[np.float32]
    bytes: NDArray[np.uint8]
    words: NDArray[np.int32]
    byte_scales: NDArray[np.float32]
    scores: NDArray[np.float32]
    sums: NDArray[np.float32]
    found: NDArray[np.float32]
    lanes: NDArray[np.float32]
    counters: NDArray[np.int64]


@compiled
def wait(counters, place, threads):
    """Until every thread has come here."""
    add_to(counters, place)
    looks = 0
    while look_at(counters, place) < threads:
        looks += 1
        if looks > SPINS:
            give_way()


@compiled
def norm_rows(model, batch, which, first, last, lanes):
    """normed = the norm `which` of x, and its levels where a product in int8 will read it."""
    width, depth = model.width, model.qkv.depth
    for row in range(first, last):
        at = row * width
        norm_row(batch.x, at, width, model.norms, which * width, model.epsilon, lanes, batch.normed, at)
        if model.qkv.int8:
            quantise_row(batch.normed, at, width, batch.bytes, row * depth, depth, batch.byte_scales,
                         row * (depth // BLOCK), lanes)  # fmt: skip


@compiled
def turn_rows(model, batch, layer, first, last, lanes):
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
            norm_row(batch.qkv, at, head, model.head_norms, weight, model.epsilon, lanes, batch.qkv, at)
            rotate_head(batch.qkv, at, head, model.turns, turn)
            if key >= 0:
                panels = batch.panels[len(batch.panels) - 1]
                place = (key * panels + batch.panels[text]) * head * model.panel
                store_key(batch.qkv, at, head, position, batch.keys, place, model.panel)


@compiled
def attend_block(model, batch, layer, task, thread, lanes):
    """One block of queries of one head."""
    head, panel = model.head, model.panel
    text, begin = batch.blocks[task // model.heads, 0], batch.blocks[task // model.heads, 1]
    query = task % model.heads
    key = query // (model.heads // model.key_heads)
    first_row, tokens = batch.starts[text], batch.starts[text + 1] - batch.starts[text]
    keys_start = (key * batch.panels[len(batch.panels) - 1] + batch.panels[text]) * head * panel
    attend(batch.qkv, model.qkv.columns, first_row, tokens, begin, query * head,
           (model.heads + model.key_heads + key) * head, head, model.reach if model.sliding[layer] else tokens,
           model.scale, batch.keys, keys_start, panel, batch.scores[thread], batch.stride, batch.sums[thread],
           batch.found[thread], lanes, batch.context, model.heads * head, query * head)  # fmt: skip


@compiled
def add_rows(model, batch, which, first, last, lanes):
    """x += norm `which` of update; then the norm that follows, while the row is at hand."""
    width, columns = model.width, model.output.columns
    for row in range(first, last):
        add_norm_row(batch.x, row * width, batch.update, row * columns, width, model.norms, which * width,
                     model.epsilon, lanes)  # fmt: skip
    norm_rows(model, batch, which + 1, first, last, lanes)


@compiled
def activate_rows(model, batch, first, last, lanes):
    """gated = gelu(gate) * up."""
    mlp, columns, depth = model.mlp, model.expand.columns, model.contract.depth
    for row in range(first, last):
        gelu_row(batch.gates, row * columns, row * columns + columns // 2, mlp, batch.gated, row * mlp)
        if model.contract.int8:
            quantise_row(batch.gated, row * mlp, mlp, batch.bytes, row * depth, depth, batch.byte_scales,
                         row * (depth // BLOCK), lanes)  # fmt: skip


@compiled
def level_rows(model, batch, first, last, lanes):
    """int8: the levels of context."""
    size, depth = model.heads * model.head, model.output.depth
    for row in range(first, last):
        quantise_row(batch.context, row * size, size, batch.bytes, row * depth, depth, batch.byte_scales,
                     row * (depth // BLOCK), lanes)  # fmt: skip


@compiled
def count_tasks(model, batch, step):
    """How many tasks a step has."""
    if step == ATTEND:
        return len(batch.blocks) * model.heads
    parts = (batch.rows + ROWS_A_TASK - 1) // ROWS_A_TASK
    if step == PROJECT:
        return parts * (model.qkv.columns // model.qkv.panel)
    if step == OUTPUT:
        return parts * (model.output.columns // model.output.panel)
    if step == EXPAND:
        return parts * (model.expand.columns // model.expand.panel)
    if step == CONTRACT:
        return parts * (model.contract.columns // model.contract.panel)
    if step == LEVELS and not model.output.int8:
        return 0
    return (batch.rows + ROWS_A_STEP - 1) // ROWS_A_STEP


@compiled
def product_task(batch, a, matrix, layer, task, vnni, c):
    """One panel's columns for ROWS_A_TASK rows."""
    panels = matrix.columns // matrix.panel
    first = task // panels * ROWS_A_TASK
    last = min(first + ROWS_A_TASK, batch.rows)
    multiply(a, batch.words, batch.byte_scales, matrix, layer, first, last, task % panels, vnni, c)


@compiled
def do_task(model, batch, layer, step, task, thread, lanes):
    """One task of a step."""
    if step == PROJECT:
        product_task(batch, batch.normed, model.qkv, layer, task, model.vnni, batch.qkv)
    elif step == ATTEND:
        attend_block(model, batch, layer, task, thread, lanes)
    elif step == OUTPUT:
        product_task(batch, batch.context, model.output, layer, task, model.vnni, batch.update)
    elif step == EXPAND:
        product_task(batch, batch.normed, model.expand, layer, task, model.vnni, batch.gates)
    elif step == CONTRACT:
        product_task(batch, batch.gated, model.contract, layer, task, model.vnni, batch.update)
    else:
        first = task * ROWS_A_STEP
        last = min(first + ROWS_A_STEP, batch.rows)
        if step == TURN:
            turn_rows(model, batch, layer, first, last, lanes)
        elif step == LEVELS:
            level_rows(model, batch, first, last, lanes)
        elif step == ACTIVATE:
            activate_rows(model, batch, first, last, lanes)
        else:
            add_rows(model, batch, layer * 4 + (1 if step == ADD_ATTENTION else 3), first, last, lanes)


@compiled
def forward(thread, threads, first_step, last_step, model, batch):
    """Steps first_step to last_step of layers * STEPS; before step 0 the first norm.

    Every thread calls this with its own number. batch.counters must be zero from first_step on.
    """
    lanes = batch.lanes[thread]
    if first_step == 0:
        if thread == 0:
            norm_rows(model, batch, 0, 0, batch.rows, lanes)
        wait(batch.counters, APART, threads)
    for at in range(first_step, last_step):
        layer, step = at // STEPS, at % STEPS
        place = (at + 1) * 2 * APART
        tasks = count_tasks(model, batch, step)
        task = add_to(batch.counters, place)
        while task < tasks:
            do_task(model, batch, layer, step, task, thread, lanes)
            task = add_to(batch.counters, place)
        if tasks:
            wait(batch.counters, place + APART, threads)


@compiled
def project(thread, threads, a, matrix, rows, counters, c):
    """c = a times one float32 matrix, by all threads.

    a    (rows, depth) flat; rows a multiple of ROWS
    c    (rows, columns) flat
    """
    panels = matrix.columns // matrix.panel
    no_words, no_scales = np.empty(0, np.int32), np.empty(0, np.float32)
    task = add_to(counters, 0)
    while task < panels:
        multiply(a, no_words, no_scales, matrix, 0, 0, rows, task, False, c)
        task = add_to(counters, 0)
    wait(counters, APART, threads)
