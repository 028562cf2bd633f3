"""The forward pass of one packed batch, run by all threads together.

Every thread runs `forward` from beginning to end. The work is cut into phases, a phase into tasks which the threads
take in turn, and nobody begins a phase before all tasks of the last are done. So a whole pass costs one hand-over to
the threads, no number depends on which of them made it, and a thread that the system lets wait keeps no other waiting.

Few rows: a phase is one step of a layer, and its tasks are columns of a product. Many rows: a task is some rows through
all steps from one attention to the next, so that what passes between the steps stays in a core's own cache.
"""
# mypy: disable-error-code="no-untyped-def"

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled, inner
from .instructions import BLOCK, ROWS, SPAN, add_to, give_way, look_at
from .kernels import (
    QUERIES,
    add_norm_row,
    gelu_row,
    mix,
    norm_and_turn,
    norm_row,
    quantise_row,
    score,
    score_levels,
    store_column,
    store_key,
)
from .matmul import BYTE_PANEL, PANEL, Matrix, multiply

ROWS_A_TASK = 258  # of a product: with one panel they fit a core's own cache; a multiple of ROWS
PART = ROWS_A_TASK * BLOCK  # of gate, of up, and of what comes of both
ROWS_A_STEP = 4  # of work along rows, where that is a phase by itself
SPINS = 2000  # looks at a counter before the processor is offered to others: about 20 microseconds
MANY = 15  # rows for each thread: from here on tasks are rows
APART = 8  # int64 between counters, so that no two share a cache line
Whole = NDArray[np.int64]
# a layer's steps, numbered on from layer to layer
PROJECT, TURN, ATTEND, LEVELS, OUTPUT, ADD_ATTENTION, EXPAND, CONTRACT, ADD_MLP = range(9)
STEPS = 9


class Model(NamedTuple):
    """Sizes, and every layer's parameters stacked.

    qkv, output, expand, contract   the four products of a layer; expand is gate and up side by side
    norms      (layers + 1, 4, width) flat, one added: before attention, after it, before the MLP, after it; the last
               layer is followed by the model's own norm
    head_norms (layers, 2, head) flat, one added: of queries, of keys
    sliding    (layers) whether a layer is
    """

    layers: int
    width: int
    mlp: int
    heads: int
    key_heads: int
    head: int
    reach: int
    epsilon: np.float32
    scale: np.float32
    qkv: Matrix
    output: Matrix
    expand: Matrix
    contract: Matrix
    norms: NDArray[np.float32]
    head_norms: NDArray[np.float32]
    sliding: NDArray[np.bool_]


class Batch(NamedTuple):
    """The texts of a pass, one after another without padding, and room for everything between.

    rows       tokens of all texts; arrays have room for `room`, a multiple of ROWS
    stride     of scores
    starts     (texts + 1) first row of each text
    panels     (texts + 1) first panel of each text's keys
    blocks     (blocks, 2) text and first token of every block of attention
    text_of    (rows) text of each row
    turns      (2, positions, head) flat: cosines and sines of sliding and of full layers, for the longest text at least
    x          (rows, width) flat, the residual stream
    normed     (rows, width), queries_keys_values, context, update: what products read and write
    gated      (rows, mlp), float32 only
    keys       (key_heads, panels, head, PANEL), float32 only; key_levels the same in int8, as a Matrix
    words      int8: the levels of normed, (rows, depth/BLOCK * SPAN), as quantise_row leaves them
    context_words, gated_words   the same of context and of gated
    head_words the same of queries and keys, (heads + key_heads, room, head), each head filled up to a multiple of BLOCK
    scores, sums, found, parts   scratch of each thread
    phases     (phases + 1) the steps at which a phase begins
    heights    (phases) rows of a task
    tasks      (phases) how many tasks a phase has
    counters   (1 + phases, 2) apart: tasks taken, tasks done
    """

    rows: int
    room: int
    stride: int
    starts: NDArray[np.int64]
    panels: NDArray[np.int64]
    blocks: NDArray[np.int64]
    text_of: NDArray[np.int64]
    turns: NDArray[np.float32]
    x: NDArray[np.float32]
    normed: NDArray[np.float32]
    qkv: NDArray[np.float32]
    context: NDArray[np.float32]
    update: NDArray[np.float32]
    gated: NDArray[np.float32]
    keys: NDArray[np.float32]
    key_levels: Matrix
    words: NDArray[np.int32]
    context_words: NDArray[np.int32]
    head_words: NDArray[np.int32]
    gated_words: NDArray[np.int32]
    scores: NDArray[np.float32]
    sums: NDArray[np.float32]
    found: NDArray[np.float32]
    parts: NDArray[np.float32]
    phases: NDArray[np.int64]
    heights: NDArray[np.int64]
    tasks: NDArray[np.int64]
    counters: NDArray[np.int64]


def new_counters(phases: int) -> NDArray[np.int64]:
    """Of each phase, and of what comes before the first: tasks taken, tasks done."""
    return np.zeros((phases + 1) * 2 * APART, np.int64)


@inner
def words_in(depth):
    """Words of a row's levels."""
    return depth // BLOCK * SPAN


@inner
def wait(counters, place, tasks):
    """Until all tasks of a phase are done. Nobody waits for a thread that has none: the system may have stopped it."""
    looks = 0
    while look_at(counters, place) < tasks:
        looks += 1
        if looks > SPINS:
            give_way()


@inner
def norm_rows(model, batch, which, first, last):
    """normed = the norm `which` of x, and its levels where a product in int8 will read it."""
    width, depth = model.width, model.qkv.depth  # of expand as well
    for row in range(first, last):
        at = row * width
        norm_row(batch.x, at, width, model.norms, which * width, model.epsilon, batch.normed, at)
        if model.qkv.bits < 32:
            quantise_row(batch.normed, at, width, batch.words, row * words_in(depth), depth)


@inner
def turn_rows(model, batch, layer, first, last):
    """Norm and turn queries and keys, and lay the keys out by columns; in int8 the levels of both."""
    head, columns, depth = model.head, model.qkv.columns, batch.key_levels.depth
    kind = 0 if model.sliding[layer] else 1
    panels = batch.panels[len(batch.panels) - 1]
    for row in range(first, last):
        text = batch.text_of[row]
        position = row - batch.starts[text]
        turn = kind * (len(batch.turns) // 2) + position * head
        for part in range(model.heads + model.key_heads):
            at, key = row * columns + part * head, part - model.heads
            weight = (layer * 2 + (1 if key >= 0 else 0)) * head
            norm_and_turn(batch.qkv, at, head, model.head_norms, weight, model.epsilon, batch.turns, turn)
            place = key * panels + batch.panels[text]
            level = part * batch.room + row  # of head_words
            if model.qkv.bits < 32:
                quantise_row(batch.qkv, at, head, batch.head_words, level * words_in(depth), depth)
                if key >= 0:
                    store_column(batch.head_words, level * words_in(depth), batch.key_levels,
                                 place + position // BYTE_PANEL, position % BYTE_PANEL)  # fmt: skip
            elif key >= 0:
                store_key(batch.qkv, at, head, position, batch.keys, place * head * PANEL)


@inner
def attend_block(model, batch, layer, task, thread):
    """One block of queries of one head."""
    head, columns, scores = model.head, model.qkv.columns, batch.scores[thread]
    text, begin = batch.blocks[task // model.heads, 0], batch.blocks[task // model.heads, 1]
    query = task % model.heads
    key = query // (model.heads // model.key_heads)
    first_row, tokens = batch.starts[text], batch.starts[text + 1] - batch.starts[text]
    end, reach = min(begin + QUERIES, tokens), model.reach if model.sliding[layer] else tokens
    place = key * batch.panels[len(batch.panels) - 1] + batch.panels[text]
    if model.qkv.bits < 32:
        score_levels(batch.head_words, query * batch.room + first_row, begin, end, tokens, reach, batch.key_levels,
                     place, scores, batch.stride)  # fmt: skip
    else:
        score(batch.qkv, columns, first_row, query * head, begin, end, tokens, head, reach, batch.keys,
              place * head * PANEL, scores, batch.stride)  # fmt: skip
    mix(batch.qkv, columns, first_row, (model.heads + model.key_heads + key) * head, begin, end, tokens, head, reach,
        model.scale, model.qkv.panel, scores, batch.stride, batch.sums[thread],
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
        quantise_row(batch.context, row * size, size, batch.context_words, row * words_in(depth), depth)


@inner
def product_part(a, words, matrix, layer, first, last, part, ahead, c):
    """One panel's columns of rows first to last."""
    multiply(a, words, matrix, layer, first, last, part, ahead, c, first * matrix.columns + part * matrix.panel,
             matrix.columns)  # fmt: skip


@inner
def expand_part(model, batch, layer, first, last, part, ahead, scratch):
    """BLOCK columns of gated = gelu(gate) * up of rows first to last; in int8 their levels."""
    matrix, mlp, depth = model.expand, model.mlp, model.contract.depth
    half, count = matrix.columns // matrix.panel // 2, min(BLOCK, mlp - part * BLOCK)
    for side in range(2):
        for column in range(0, count, matrix.panel):
            panel = side * half + (part * BLOCK + column) // matrix.panel
            multiply(batch.normed, batch.words, matrix, layer, first, last, panel, ahead * BLOCK // matrix.panel,
                     scratch, side * PART + column, BLOCK)  # fmt: skip
    if model.contract.bits < 32:
        gelu_row(scratch, 0, PART, (last - first) * BLOCK, scratch, 2 * PART)
    for row in range(first, last):
        at = (row - first) * BLOCK
        if model.contract.bits < 32:
            quantise_row(scratch, 2 * PART + at, count, batch.gated_words, row * words_in(depth) + part * SPAN, BLOCK)
        else:
            gelu_row(scratch, at, PART + at, count, batch.gated, row * mlp + part * BLOCK)


def parts_of(model: Model, step: int) -> int:
    """Into how many parts the columns of a step are cut: those of the products."""
    if step == PROJECT:
        return model.qkv.columns // model.qkv.panel
    if step == OUTPUT:
        return model.output.columns // model.output.panel
    if step == CONTRACT:
        return model.contract.columns // model.contract.panel
    if step == EXPAND:
        return (model.mlp + BLOCK - 1) // BLOCK
    return 1 if step != LEVELS or model.output.bits < 32 else 0


count_parts = inner(parts_of)


def schedule(model: Model, rows: int, blocks: int, threads: int, by_rows: bool) -> tuple[Whole, Whole, Whole]:
    """Phases, heights and tasks of a Batch."""
    layers, attentions = model.layers, blocks * model.heads
    if by_rows:
        share = threads * -(-rows // (threads * ROWS_A_TASK))  # as many tasks as the threads can share evenly
        height = -(-rows // (share * ROWS)) * ROWS
        tasks = -(-rows // height)
        between = np.arange(layers)[:, None] * STEPS + [ATTEND, ATTEND + 1]
        phases = np.concatenate([[0], between.ravel(), [layers * STEPS]])
        return phases, np.full(len(phases), height), np.array([tasks] + [attentions, tasks] * layers)
    heights = [ROWS_A_STEP if step in (TURN, LEVELS, ADD_ATTENTION, ADD_MLP) else ROWS_A_TASK for step in range(STEPS)]
    counts = [-(-rows // height) * parts_of(model, step) for step, height in enumerate(heights)]
    counts[ATTEND] = attentions
    return np.arange(layers * STEPS + 1), np.tile(heights, layers), np.tile(counts, layers)


@inner
def do_task(model, batch, phase, task, thread, threads):
    """All parts of all steps of a phase for some rows; of a phase that is one step, one part of its columns."""
    begin, end = batch.phases[phase], batch.phases[phase + 1]
    alone = end == begin + 1
    parts = count_parts(model, begin % STEPS) if alone else 1
    only, ahead = task % parts, threads if alone else 1
    first = task // parts * batch.heights[phase]
    last = min(first + batch.heights[phase], batch.rows)
    for at in range(begin, end):
        layer, step = at // STEPS, at % STEPS
        for part in range(only if alone else 0, only + 1 if alone else count_parts(model, step)):
            if step == PROJECT:
                product_part(batch.normed, batch.words, model.qkv, layer, first, last, part, ahead, batch.qkv)
            elif step == TURN:
                turn_rows(model, batch, layer, first, last)
            elif step == LEVELS:
                level_rows(model, batch, first, last)
            elif step == OUTPUT:
                product_part(batch.context, batch.context_words, model.output, layer, first, last, part, ahead,
                             batch.update)  # fmt: skip
            elif step == EXPAND:
                expand_part(model, batch, layer, first, last, part, ahead, batch.parts[thread])
            elif step == CONTRACT:
                product_part(batch.gated, batch.gated_words, model.contract, layer, first, last, part, ahead,
                             batch.update)  # fmt: skip
            else:
                add_rows(model, batch, layer * 4 + (1 if step == ADD_ATTENTION else 3), first, last)


@compiled
def forward(thread, threads, first_phase, last_phase, model, batch):
    """Phases first_phase to last_phase; before the first of all the first norm.

    Every thread calls this with its own number. batch.counters must be zero from first_phase on.
    """
    if first_phase == 0:
        if add_to(batch.counters, 0) == 0:
            norm_rows(model, batch, first_phase, first_phase, batch.rows)
            add_to(batch.counters, APART)
        wait(batch.counters, APART, 1)
    for phase in range(first_phase, last_phase):
        at, place = batch.phases[phase], (phase + 1) * 2 * APART
        task = add_to(batch.counters, place)
        while task < batch.tasks[phase]:
            if at % STEPS == ATTEND:
                attend_block(model, batch, at // STEPS, task, thread)
            else:
                do_task(model, batch, phase, task, thread, threads)
            add_to(batch.counters, place + APART)
            task = add_to(batch.counters, place)
        wait(batch.counters, place + APART, batch.tasks[phase])


@compiled
def project(threads, a, words, matrix, rows, counters, c):
    """c = a, or in levels words, times one matrix, by all threads. counters must be zero.

    a, words   (rows, depth) flat, or as quantise_row leaves it; rows a multiple of ROWS
    c          (rows, columns) flat
    """
    panels = matrix.columns // matrix.panel
    layer = first = 0
    task = add_to(counters, 0)
    while task < panels:
        product_part(a, words, matrix, layer, first, rows, task, threads, c)
        add_to(counters, APART)
        task = add_to(counters, 0)
    wait(counters, APART, panels)


@compiled
def quantise_rows(rows, size, words):
    """words = the levels of rows (n, size) flat; size is a multiple of BLOCK."""
    for row in range(len(rows) // size):
        quantise_row(rows, row * size, size, words, row * words_in(size), size)
