"""Figures of the chapters about short vectors and quantised weights, drawn as figures.py says."""

from typing import Any

import numpy as np
from look import BLUE, FAINT, GREEN, INK, ORANGE, PINK, ROOT, apart, label, look, panels, tables
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors.numpy import load_file

from refembed.reference import l2_normalize, truncate
from refembed.reference.losses import LENGTHS
from refembed.reference.quantize import (
    INT4_BLOCK,
    INT4_ROW,
    INT8_BLOCK,
    binary_vectors,
    fake_quantize,
    int8_vectors,
    signs,
)

Array = NDArray[Any]
FORMS = ROOT / "spec" / "forms.md"
REAL = ROOT / "golden" / "embeddinggemma-300m" / "values.safetensors"


def vectors_table() -> list[dict[str, str]]:
    """Of spec/forms.md the table of vectors, which tests/bench/forms.py wrote."""
    (found,) = (table for table in tables(FORMS.read_text()) if "kept as" in table[0])
    return found


@look
def fig_matryoshka() -> Figure:
    """What short and coarse vectors of the released model cost, in points lost from whole float32 vectors. Left: fewer
    numbers, task by task; finding code (CoSQA) loses most, similarity of sentences hardly anything. Right: the mean
    over the five tasks by bytes a vector takes; 8 bits cost nothing, and all 768 numbers in a bit each (96 bytes) lose
    less than 128 numbers in 8 bits (128 bytes).
    """
    rows = vectors_table()
    names = list(rows[0])
    tasks = names[names.index("bytes") + 1 : -1]
    whole = rows[0]
    figure, (left, right) = panels(1, 2, height=3.3, width_ratios=(1.15, 1))
    floats = [row for row in rows if row["kept as"] == "float32"]
    ends = apart([float(whole[task]) - float(floats[-1][task]) for task in tasks], 0.65)
    for task, end, colour in zip(tasks, ends, (BLUE, GREEN, INK, ORANGE, PINK), strict=True):
        lost = [float(whole[task]) - float(row[task]) for row in floats]
        left.plot([int(row["numbers"]) for row in floats], lost, "o-", color=colour, markersize=3.5)
        label(left, int(floats[-1]["numbers"]), end, task, colour)
    left.set_xscale("log", base=2)
    left.set_xticks(LENGTHS, LENGTHS)
    left.minorticks_off()
    left.set(xlabel="numbers kept, float32", ylabel="points lost", xlim=(840, 42))
    for form, colour in (("float32", BLUE), ("int8", GREEN), ("binary", ORANGE)):
        kept = [row for row in rows if row["kept as"] == form]
        size, loss = ([float(row[name]) for row in kept] for name in ("bytes", "mean loss"))
        right.plot(size, loss, "o-", color=colour, markersize=3.5)
        label(right, size[-1], loss[-1], form, colour, "above right")
    right.set_xscale("log", base=4)
    right.set_xticks([16, 64, 256, 1024], [16, 64, 256, "1,024"])
    right.set(xlabel="bytes a vector", ylabel="points lost, mean of five tasks")
    for axes in (left, right):
        axes.grid()
    return figure


# ------------------------------------------------------------------------------------------------- 09, quantised
@look
def fig_rounding() -> Figure:
    """Left: one block of 32 weights, as random numbers, and the 15 levels that 4 bits have for it; each weight goes to
    the nearest. Right: how many of 100,000 such weights are at most so far from their level. 8 bits are about eighteen
    times as near as 4, and a scale for each block of 32 is nearer than one for a row of 768.
    """
    weight = np.random.default_rng(0).standard_normal((128, 768))
    figure, (left, right) = panels(1, 2, height=3.1)
    block = weight[:1, :32]
    rounded = fake_quantize(block, INT4_BLOCK)
    for level in np.arange(-7, 8) * np.abs(rounded).max() / 7:
        left.axhline(level, color=FAINT, linewidth=0.8)
    left.vlines(range(32), block[0], rounded[0], color=ORANGE, linewidth=1.2)
    left.plot(block[0], "o", color=BLUE, markersize=3.5)
    left.set(xlabel="weight of the block", ylabel="value; a line is a level")
    for grid, words, colour, height, side in (
        (INT8_BLOCK, "8 bits,\nblock", BLUE, 0.35, "left"),
        (INT4_BLOCK, "4 bits,\nblock", ORANGE, 0.5, "left"),
        (INT4_ROW, "4 bits,\nrow", PINK, 0.72, "right"),
    ):
        error = np.sort(np.abs(fake_quantize(weight, grid) - weight), axis=None)
        share = np.arange(1, error.size + 1) / error.size
        few = np.searchsorted(error, np.geomspace(1e-4, error[-1], 60)).clip(max=error.size - 1)
        right.semilogx(error[few], share[few], color=colour)
        label(right, error[int(height * error.size)], height, words, colour, side)
    right.set(xlabel="error, of weights of size 1", xlim=(3e-4, 1))
    right.set(ylabel="share with at most that error", ylim=(0, 1.02))
    right.grid()
    return figure


@look
def fig_quantisation() -> Figure:
    """How far the released model's vectors turn. Left: its vectors for the texts of the golden cases, cut to each
    length and kept in 8 bits or in one, a dot a text; 8 bits cost less than a thousandth of what one bit does.
    Right: vectors of documents by a model whose weights are rounded, the mean text and the worst. Lower is nearer.
    """
    stored = load_file(REAL)
    whole = np.concatenate(
        [x for name, x in stored.items() if name.endswith("/embedding") and x.shape[1] == LENGTHS[0]]
    )
    figure, (left, right) = panels(1, 2, height=3.3, sharey=True)
    for keep, words, colour in ((int8_vectors, "8 bits", BLUE), (bits, "1 bit", ORANGE)):
        for place, length in enumerate(LENGTHS):
            cut = truncate(whole, length)
            off = 1 - np.sum(cut * l2_normalize(keep(cut).astype(np.float64)), axis=1)
            across = place + np.linspace(-0.25, 0.25, len(off))
            left.plot(across, off, ".", color=colour, markersize=3)
        label(left, 1.5, off.max(), words, colour, "above")
    left.set(yscale="log", ylim=(1e-5, 2), xlabel="numbers kept of the vector", ylabel="1 - cosine to float")
    left.set_xticks(range(len(LENGTHS)), LENGTHS)
    (forms,) = (table for table in tables(FORMS.read_text()) if "weights, MB" in table[0])
    rows = [row for row in forms if float(row["cosine, mean"]) < 1]
    for place, row in enumerate(rows):
        mean, least = (1 - float(row[name]) for name in ("cosine, mean", "least"))
        right.plot([place, place], [mean, least], color=FAINT)
        right.plot(place, mean, "o", color=BLUE, markersize=5)
        right.plot(place, least, "o", color=ORANGE, markersize=5)
    label(right, len(rows) - 1, mean, "mean", BLUE, "left")
    label(right, len(rows) - 1, least, "worst", ORANGE, "left")
    right.set_xticks(range(len(rows)), [row["form"].replace("-", "-\n") for row in rows], fontsize=8)
    right.set(xlabel="weights kept as", xlim=(-0.5, len(rows) - 0.5))
    for axes in (left, right):
        axes.grid(axis="y")
    return figure


def bits(x: Array) -> Array:
    """What one bit a number leaves of embeddings: (texts, n) of 1 and -1."""
    return signs(binary_vectors(x))
