"""Figures of the chapters about training and kernels, drawn as figures.py says."""

import json
from math import prod
from typing import Any

import numpy as np
from look import BLUE, FAINT, GREEN, INK, ORANGE, PINK, ROOT, label, look, panels, tables
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from refembed.reference import FULL, SLIDING, Config, embed, l2_normalize, losses, parameter_shapes
from refembed.reference.backward import embed_gradients
from refembed.reference.decoder import origins
from refembed.reference.losses import ALPHA, TEMPERATURE, Batch
from refembed.reference.operations import softmax
from refembed.reference.ul2 import DENOISERS, draw_cuts, spans

Array = NDArray[Any]
RUNS = ROOT / "spec" / "ablations" / "runs.jsonl"
LADDER = ROOT / "spec" / "kernels" / "README.md"


# ---------------------------------------------------------------------------------------------------------- 10, losses
@look
def fig_hardness() -> Figure:
    """Left: how much a hard negative counts by its similarity to the query, for several alpha, on a scale where each
    line is ten times the one below; the released model's is 5. Right: its share of the denominator beside one answer of
    similarity 0.6: with alpha 5 it takes half at a similarity 0.05 below the answer's, not at the answer's own.
    """
    similarity = np.linspace(-1, 1, 201)
    figure, (left, right) = panels(1, 2, height=3.1)
    for alpha, colour in ((0.0, INK), (1.0, GREEN), (ALPHA, BLUE), (10.0, ORANGE)):
        left.semilogy(similarity, hardness_weight(similarity, alpha), color=colour)
        side = {0.0: "below right", 1.0: "above right"}.get(alpha, "right")
        label(left, 1, hardness_weight(similarity[-1:], alpha)[0], f"alpha {alpha:g}", colour, side)
    left.set(xlabel="similarity to the query", ylabel="weight of a hard negative", xlim=(-1, 1.75), xticks=(-1, 0, 1))
    near = np.linspace(0.45, 0.7, 126)
    for alpha, colour in ((0.0, INK), (ALPHA, BLUE)):
        share = softmax(log_ratios(near, alpha))[:, 1]
        right.plot(near, share, color=colour)
        middle = int(np.searchsorted(share, 0.8))
        label(right, near[middle], 0.8, f"alpha {alpha:g}", colour, "right" if alpha == 0 else "left")
    right.axvline(ANSWER, color=INK, linewidth=0.8, linestyle=":")
    label(right, ANSWER, 0.05, "the answer's")
    right.set(xlabel="similarity to the query", ylabel="share of the denominator")
    for axes in (left, right):
        axes.grid()
    return figure


ANSWER = 0.6  # the similarity of the answer beside which a hard negative stands


def log_ratios(similarity: Array, alpha: float) -> Array:
    """The reference's terms for one query, its answer and one hard negative of each similarity: (n, 2)."""
    query = np.array([1.0, 0.0])

    def at(cosine: float) -> Array:
        return np.array([cosine, np.sqrt(1 - cosine**2)])

    batches = (Batch(query[None], at(ANSWER)[None], at(one)[None, None]) for one in similarity)
    return np.concatenate([losses.log_ratios(batch, np.ones((1, 1), bool), TEMPERATURE, alpha) for batch in batches])


def hardness_weight(similarity: Array, alpha: float) -> Array:
    """w of LOSS-3: by how much alpha multiplies the hard negative's term."""
    return np.exp(log_ratios(similarity, alpha) - log_ratios(similarity, 0.0))[:, 1]


@look
def fig_spread() -> Figure:
    """Eight queries (dots) and their answers (rings) on a sphere, seen from above: crowded at first; after 300 steps on
    the contrastive loss, which is content as soon as each query knows its answer; and with the spread-out loss beside
    it, which is content at right angles only. It looks at squares of cosines, so opposite is as bad as equal to it. A
    small case, chosen because three numbers can be drawn: eight random pairs, of one seed, and no model.
    """
    figure, three = panels(1, 3, height=2.7)
    steps = (("at first", 0, 0.0), ("without spread-out", 300, 0.0), ("with spread-out", 300, 1.0))
    for axes, (words, count, weight) in zip(three, steps, strict=True):
        batch = trained(weight, count)
        axes.add_patch(Circle((0, 0), 1, facecolor="none", edgecolor=INK, linewidth=0.8))
        axes.plot(*batch.queries[:, :2].T, "o", color=BLUE, markersize=4)
        axes.plot(*batch.positives[:, :2].T, "o", color=ORANGE, markersize=8, markerfacecolor="none")
        label(axes, 0, -1, f"mean squared cosine {losses.second_moment(batch.queries):.2f}", side="below")
        axes.set(aspect="equal", xlim=(-1.05, 1.05), ylim=(-1.3, 1.05), title=words)
        axes.axis("off")
    return figure


def trained(spread_out: float, steps: int, examples: int = 8) -> Batch:
    """Unit vectors of three numbers, moved by gradient descent on the reference's losses."""
    start = np.array([0.0, 0.0, 1.0]) + 0.15 * np.random.default_rng(0).standard_normal((2, examples, 3))
    batch, mask = Batch(*l2_normalize(start), np.empty((examples, 0, 3))), np.ones((examples, examples), bool)
    for _ in range(steps):
        parts = losses.contrastive_gradient(batch, mask), losses.spread_out_gradient(batch)
        slope = losses.combined((1.0, spread_out), parts)
        moved = (l2_normalize(side - 0.02 * down) for side, down in zip(batch[:2], slope[:2], strict=True))
        batch = Batch(*moved, batch.negatives)
    return batch


# ------------------------------------------------------------------------------------------- 11, gradients; 12, UL2
@look
def fig_steps() -> Figure:
    """The gradient of a small model, along one direction, against finite differences with ever smaller steps. Smaller
    steps first come nearer to it, then rounding takes over and they lead away. In float64 and with the right rule it is
    confirmed to eleven digits; in float32 to four or so, and a gradient should not be tested there.
    """
    toy = Config(vocabulary=32, width=12, mlp=20, head=4, dense=24, dimensions=8, layer_kinds=(SLIDING, FULL), reach=2)
    random = np.random.default_rng(0)
    parameters = {name: random.standard_normal(shape) for name, shape in parameter_shapes(toy).items()}
    direction = {name: random.standard_normal(x.shape) for name, x in parameters.items()}
    ids, upstream = np.array([2, 10, 11, 11, 12, 1]), random.standard_normal(8)
    gradients = embed_gradients(upstream, ids, parameters, toy)
    foretold = sum(np.sum(gradients[name] * direction[name]) for name in parameters)

    def loss(step: float, dtype: type) -> float:
        moved = {name: (x + step * direction[name]).astype(dtype) for name, x in parameters.items()}
        return float(upstream @ embed(ids, moved, toy))

    steps = np.geomspace(1e-9, 1e-1, 49)
    figure, axes = panels(height=3.2)
    for words, rule, dtype, colour, place, side in (
        ("two points", two_points, np.float64, BLUE, 28, "above left"),
        ("five points", five_points, np.float64, GREEN, 35, "right"),
        ("two points, float32", two_points, np.float32, ORANGE, 26, "above right"),
    ):
        off = [abs(rule(lambda h, dtype=dtype: loss(h, dtype), h) / foretold - 1) for h in steps]
        axes.loglog(steps, off, color=colour)
        label(axes, steps[place], off[place], words, colour, side)
    axes.set(xlabel="step", ylabel="relative error of the difference", ylim=(1e-13, 1e3))
    axes.grid()
    return figure


def two_points(f: Any, h: float) -> float:
    return (f(h) - f(-h)) / (2 * h)


def five_points(f: Any, h: float) -> float:
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


@look
def fig_spans() -> Figure:
    """One text of 128 tokens under the seven denoisers: orange tokens are removed and the decoder must write them, blue
    ones are left for the encoder to read. R removes little, X much or at length, and S the end of the text.
    """
    tokens, random = 128, np.random.default_rng(3)
    figure, axes = panels(height=2.6)
    for row, denoiser in enumerate(DENOISERS.values()):
        axes.broken_barh([(0, tokens)], (row - 0.35, 0.7), facecolor=BLUE)
        removed = [(start, end - start) for start, end in spans(tokens, denoiser, draw_cuts(tokens, denoiser, random))]
        axes.broken_barh(removed, (row - 0.35, 0.7), facecolor=ORANGE)
    names = [f"{one.mode}: spans of {one.mean_span:g}, {100 * one.rate:g} %" for one in DENOISERS.values()]
    axes.set_yticks(range(len(names)), [name.replace("spans of inf", "the end") for name in names])
    axes.set(xlabel="token", xlim=(0, tokens), ylim=(len(names) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    return figure


# -------------------------------------------------------------------------------- 13, adaptation; 14, the recipe
@look
def fig_copies() -> Figure:
    """What the encoder and the decoder start from, as bars of parameters in millions, at the released model's sizes:
    each colour is the part of the decoder-only model that was copied. Both get attention and MLP; the decoder's
    attention to the encoder, hatched, begins as a second copy of its own attention; the table is one for all, drawn
    with the encoder.
    """
    figure, axes = panels(height=2.2)
    colours, found = {"table": FAINT, "attention": BLUE, "MLP": GREEN}, copied_parameters()
    ends = []
    for row, parts in enumerate(found.values()):
        left = 0.0
        for (part, origin), size in parts.items():
            copied = {"color": "none", "hatch": "////"} if part != origin else {"color": colours[origin]}
            axes.barh(row, size / 1e6, 0.5, left, **copied, edgecolor=colours[origin])
            colour = INK if part == "table" else colours[origin]
            label(axes, left + size / 2e6, row - 0.22, f"{size / 1e6:.0f}", colour, "above")
            left += size / 1e6
        ends.append(left)
    label(axes, 0, 0, "table", side="right")
    label(axes, ends[0], 0, "attention", BLUE, "above right")
    label(axes, ends[0], 0, "MLP", GREEN, "below right")
    label(axes, ends[2], 2, "cross-attention, from attention", BLUE)
    axes.set_yticks(range(len(found)), list(found))
    axes.set(xlabel="million parameters", ylim=(2.4, -0.7), xlim=(0, 350))
    axes.tick_params(axis="y", length=0)
    return figure


def copied_parameters() -> dict[str, dict[tuple[str, str], int]]:
    """Model -> (its part, the decoder-only model's part it starts as) -> parameters; those of norms left out."""
    shapes, found = parameter_shapes(Config()), origins(Config())
    itself = {origin: origin for origin in found.values()}
    sides = {
        "decoder-only": itself,
        "encoder": {name: origin for name, origin in found.items() if not name.startswith("decoder.")},
        "decoder": {name: origin for name, origin in found.items() if name.startswith("decoder.")},
    }
    parts = {"embed_tokens": "table", "self_attn": "attention", "cross_attn": "cross-attention", "mlp": "MLP"}

    def part_of(name: str) -> str:
        return next((part for key, part in parts.items() if f"{key}." in name and "norm" not in name), "")

    result: dict[str, dict[tuple[str, str], int]] = {}
    for side, names in sides.items():
        kept = result.setdefault(side, {})
        for name, origin in names.items():
            if part := part_of(name):
                key = part, part_of(origin)
                kept[key] = kept.get(key, 0) + prod(shapes[origin])
    return result


@look
def fig_curves() -> Figure:
    """The loss of each stage of the recipe on the very small model of the ablations, by steps: a decoder learns to
    foretell, encoder and decoder learn UL2, the encoder learns pairs, then triples with hard negatives. Losses of
    different stages count different things, so only the fall of each says something. Where there are three lines, they
    are three seeds.
    """
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()]
    stages = (
        ("decoder", "pretrain", BLUE),
        ("start", "adapt", GREEN),
        ("pairs", "prefinetune", ORANGE),
        ("base", "finetune", PINK),
    )
    figure, axes = panels(1, 4, height=2.6)
    for one, (run, stage, colour) in zip(axes, stages, strict=True):
        for line in lines:
            if (line["run"], line["stage"]) == (run, stage):
                one.plot(*zip(*line["losses"], strict=True), color=colour, linewidth=1.2)
        one.set(title=stage, xlabel="step")
        one.set_xlim(left=0)
        one.grid(axis="y")
    axes[0].set_ylabel("loss")
    return figure


# -------------------------------------------------------------------------------------------------------- kernels
@look
def fig_ladder() -> Figure:
    """The ladder of kernels on queries, keys and values: what each rung reaches on one core (dot), beside the most its
    arithmetic and its bytes allow (upright stroke), for a query's 18 rows and for 512, on a scale where each line is
    ten times the one before. In float32 each rung is faster than the last; in int8 the second is slower than the first,
    and only lays bytes out for the others. With 512 rows the last of both come near the core's limit.
    """
    figure, both = panels(1, 2, height=3.6, sharey=True)
    for axes, rows in zip(both, (18, 512), strict=True):
        found = rungs(rows)
        for place, (precision, _, limit, rate) in enumerate(found):
            colour = BLUE if precision == "float32" else ORANGE
            axes.plot([rate, limit], [place, place], color=FAINT, linewidth=3)
            axes.plot(limit, place, "|", color=INK, markersize=12, markeredgewidth=2)
            axes.plot(rate, place, "o", color=colour)
        axes.set_yticks(range(len(found)), [f"{name}, {precision}" for precision, name, _, _ in found])
        axes.set(xscale="log", xlim=(2, 2000), title=f"{rows} rows")
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
    figure.supxlabel("thousand million operations a second", fontsize=10)
    return figure


def rungs(rows: int) -> list[tuple[str, str, float, float]]:
    """Of the page's tables of queries, keys and values: precision, rung, at most, came out."""
    result = []
    for table in tables(LADDER.read_text()):
        first = next(iter(table[0]))
        precision, _, product = first.partition(", ")
        if product.startswith("queries, keys and values"):
            names = list(table[0])
            limit = next(name for name in names if name.startswith(f"{rows} rows"))
            rate = names[names.index(limit) + 1]
            kept = [row for row in table if precision == "float32" or row[first] != "BLAS"]
            result += [(precision, row[first], float(row[limit]), float(row[rate])) for row in kept]
    return result
