"""Figures of the chapters about the forward pass, drawn as figures.py says."""

import json
from math import erf, pi, sqrt
from typing import Any

import numpy as np
from look import BLUE, FAINT, GREEN, INK, ORANGE, PINK, apart, cells, label, look, panels
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from measure import ATTENTION, MEASURED, REACHES
from numpy.typing import NDArray

from refembed.prompts import prompt_of
from refembed.reference import SLIDING, Config
from refembed.reference.operations import gelu
from refembed.reference.positions import rotary_angles, rotate, window_mask

Array = NDArray[Any]
RELEASED = Config()


def measured() -> dict[str, Any]:
    return json.loads(MEASURED.read_text())


# --------------------------------------------------------------------------------------------------- 01, tokens
@look
def fig_tokens() -> Figure:
    """Texts cut into the released model's tokens, a box each. BOS and EOS, in orange, stand around every text; in the
    first a query's prompt, in blue, comes before the words. A space is written ▁. Runs of spaces are one token, rare
    words several, and a character without a piece of its own is its bytes.
    """
    found = measured()
    prompt = prompt_of("query", {}).replace(" ", "▁").rstrip("▁")
    wide, step, row = 58, 1.5, 0
    rows = [found["query"], *found["spellings"]]
    figure, axes = panels(height=2.3)
    for pieces in rows:
        x, spelled = 0.0, ""
        for piece in pieces:
            if x + len(piece) > wide:
                x, row = 4.0, row + 1
            within = spelled == "" or (prompt.startswith(spelled.removeprefix("<bos>") + piece) and pieces is rows[0])
            colour = ORANGE if piece in ("<bos>", "<eos>") else BLUE if within else INK
            size = {"width": len(piece) + 0.6, "height": 0.8, "facecolor": "none"}
            axes.add_patch(Rectangle((x, -row - 0.4), **size, edgecolor=colour, linewidth=1))
            middle = {"ha": "center", "va": "center", "family": "monospace", "size": 9}
            axes.text(x + len(piece) / 2 + 0.3, -row, piece, color=colour, **middle)
            x, spelled = x + len(piece) + step, spelled + piece
        row += 1
    axes.set(xlim=(-0.5, wide + 4), ylim=(-row + 0.3, 0.7))
    axes.axis("off")
    return figure


# -------------------------------------------------------------------- 02, embedding; 03, operations; 06, layers
@look
def fig_factor() -> Figure:
    """Why the table's rows are multiplied by the root of the width: root mean squares in the released model, on a short
    query, on a scale where each line is ten times the one before. With the factor a token's row is nearly as large as
    what attention adds to it in the first layer; without it, it would be a thirtieth of that, and drown.
    """
    found = measured()
    embedded, first = found["embedded"]["rms"], found["layers"][0]
    sizes = {
        "a row of the table": (embedded / sqrt(RELEASED.width), ORANGE),
        f"times {sqrt(RELEASED.width):.2f}": (embedded, BLUE),
        "layer 0, attention adds": (first["attention"]["rms"], GREEN),
        "layer 0, the MLP adds": (first["mlp"]["rms"], GREEN),
    }
    figure, axes = panels(height=1.9)
    for place, (size, colour) in enumerate(sizes.values()):
        axes.plot(size, place, "o", color=colour)
        label(axes, size, place, f"{size:.3g}", colour)
    axes.set_yticks(range(len(sizes)), list(sizes))
    axes.set(xscale="log", xlim=(0.02, 40), ylim=(len(sizes) - 0.5, -0.5), xlabel="root mean square")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    return figure


@look
def fig_gelu() -> Figure:
    """The tanh form of GELU, which the model uses, and by how much the exact form is off: less than five parts in ten
    thousand, which no plot of the function shows, most where a number is near 2.7 or -2.7.
    """
    x = np.linspace(-6, 6, 1201)
    exact = np.array([v / 2 * (1 + erf(v / sqrt(2))) for v in x])
    figure, (above, below) = panels(2, height=3.6, sharex=True)
    above.plot(x, gelu(x), color=BLUE)
    above.set(ylabel="gelu(x)")
    below.plot(x, (gelu(x) - exact) * 1e4, color=ORANGE)
    below.set(xlabel="x", ylabel="tanh form less\nexact, in 1e-4")
    for axes in (above, below):
        axes.grid()
    return figure


@look
def fig_norms() -> Figure:
    """How large the released model's stream becomes, layer by layer, on a short query: the largest number of any token
    above, the root mean square below, on a scale where each line is ten times the one under it. float16 ends at 65,504;
    the largest number passes that after layer 22, so a float16 model has infinity there and NaN in its vector.
    """
    layers = measured()["layers"]
    largest, rms = ([layer["out"][name] for layer in layers] for name in ("largest", "rms"))
    limit = float(np.finfo(np.float16).max)
    figure, axes = panels(height=3.4)
    for values, name, colour in ((largest, "largest number", BLUE), (rms, "root mean square", GREEN)):
        axes.semilogy(values, "o-", color=colour, markersize=3.5)
        label(axes, 12, values[12], name, colour, "above left")
    beyond = [layer for layer, value in enumerate(largest) if value > limit]
    axes.semilogy(beyond, [largest[layer] for layer in beyond], "o", color=ORANGE, markersize=7)
    numbers = [layer["out"]["number"] for layer in layers]
    since = max(layer for layer, number in enumerate(numbers) if number != numbers[-1]) + 1
    said = f"from layer {since} on always number {numbers[-1]} of {RELEASED.width}"
    label(axes, 12, largest[12], said, side="below right")
    axes.axhline(limit, color=ORANGE, linestyle="--", linewidth=1.2)
    label(axes, -0.5, limit, f"float16 ends at {limit:,.0f}", ORANGE, "above right")
    axes.set(xlabel="after layer", ylabel="size of the stream", xticks=range(0, len(layers), 2), ylim=(5, 6e5))
    axes.grid(axis="y")
    return figure


@look
def fig_updates() -> Figure:
    """What each layer of the released model adds to the stream, as a share of what it leaves behind, on a short query:
    attention's update and the MLP's, in root mean squares. The MLP adds more in most layers, and nearly all that layer
    0 leaves is its own. Above 1, in layer 6, an update is larger than what is left: it takes away more than it adds.
    """
    layers = measured()["layers"]
    figure, axes = panels(height=2.9)
    for name, words, colour in (("attention", "attention", BLUE), ("mlp", "MLP", ORANGE)):
        share = [layer[name]["rms"] / layer["out"]["rms"] for layer in layers]
        axes.plot(share, "o-", color=colour, markersize=3.5)
        label(axes, len(layers) - 1, share[-1], words, colour)
    axes.set(xlabel="layer", ylabel="update / stream after it", xticks=range(0, len(layers), 2), ylim=(0, None))
    axes.set_xlim(right=len(layers) + 2)
    axes.grid(axis="y")
    return figure


# ------------------------------------------------------------------------------------------------------ 04, positions
@look
def fig_rotary() -> Figure:
    """Left: how many tokens one turn of each pair takes, from 6 for the fastest to millions for the slowest. With base
    10,000 (sliding layers) most pairs turn at least once within the context of 2,048 tokens, with 1,000,000 (full
    layers) fewer. Right: what a key that equals the query scores, by its distance: with the larger base more is left
    far away.
    """
    figure, (left, right) = panels(1, 2, height=3.2)
    context, head = RELEASED.context, RELEASED.head
    distances = np.unique(np.geomspace(1, context - 1, 120).astype(int))
    for kind, base, colour, place, side, pairs_side, score_side in (
        ("sliding", RELEASED.sliding_base, BLUE, (130, 80), "left", "right", "below left"),
        ("full", RELEASED.full_base, ORANGE, (-3, 3e6), "right", "left", "above right"),
    ):
        turn = wave_lengths(base)
        left.semilogy(turn, color=colour)
        within = int(np.sum(turn <= context))
        left.plot(within - 0.5, context, "o", color=colour)
        left.vlines(within - 0.5, 3, context, color=colour, linewidth=0.8, linestyle=":")
        label(left, within - 0.5, 5, f"{within} pairs", colour, pairs_side)
        label(left, *place, f"{kind} layers,\nbase {base:,.0f}", colour, side)
        cos, sin = rotary_angles(context, head, base, np.float64)
        turned = rotate(np.ones((context, head)), cos, sin)
        right.semilogx(distances, turned[distances] @ turned[0] / head, color=colour)
        label(right, 20, turned[20] @ turned[0] / head, kind, colour, score_side)
    left.axhline(context, color=INK, linewidth=0.8)
    label(left, 0, context, f"{context:,} tokens", side="above right")
    left.set(xlabel=f"pair of {head // 2}", ylabel="tokens in one turn", ylim=(3, 6e7))
    right.axvline(RELEASED.reach, color=INK, linewidth=0.8)
    label(right, RELEASED.reach, 0.97, "window's\nend", side="below right")
    right.axhline(0, color=INK, linewidth=0.8)
    right.set(xlabel="distance in tokens", ylabel="score of an equal key, of 1")
    return figure


def wave_lengths(base: float) -> Array:
    """Tokens in one turn of each pair, of the angle between position 0 and 1."""
    cos, sin = rotary_angles(2, RELEASED.head, base, np.float64)
    return 2 * pi / np.arctan2(sin[1], cos[1])


# ------------------------------------------------------------------------------------------------------ 05, attention
@look
def fig_windows() -> Figure:
    """Which keys (columns) each query (row) sees, in blue. Left, in small: nine tokens in a sliding layer that reaches
    2 to either side. Middle: in a full layer every token sees every token. Right, in true size: 2,048 tokens and a
    reach of 256, a band of at most 513 keys.
    """
    figure, (small, full, true) = panels(1, 3, height=2.6)
    for axes, reach, title in ((small, 2, "sliding, reach 2"), (full, 9, "full")):
        cells(axes, np.isfinite(window_mask(9, reach, np.float64)).astype(float))
        axes.set(title=title, xticks=[], yticks=[])
    small.set_ylabel("query")
    seen = np.isfinite(window_mask(RELEASED.context, RELEASED.reach, np.float32))
    first, last = seen.argmax(axis=1), RELEASED.context - seen[:, ::-1].argmax(axis=1)  # one after the last
    true.fill_betweenx(np.arange(RELEASED.context), first, last, color=BLUE, linewidth=0)
    true.set(title=f"sliding, reach {RELEASED.reach}", aspect="equal", ylim=(RELEASED.context, 0))
    true.set(xlim=(0, RELEASED.context), xticks=[], yticks=[])
    true.annotate("", (first[512], 512), (last[512], 512), arrowprops={"arrowstyle": "<->", "color": INK})
    label(true, last[512], 512, f"{seen.sum(axis=1).max()} keys")
    for axes, tokens in ((small, 9), (full, 9), (true, RELEASED.context)):
        axes.set_xlabel(f"key, {tokens:,} tokens")
        axes.spines[:].set_visible(True)
    return figure


@look
def fig_attention() -> Figure:
    """What each token of a query (row) attends to (column) in the released model, mean over three heads, the stronger
    the more. Layer 3, a sliding one, looks mostly at the nearest tokens; layer 5, a full one, gives over a third of its
    attention to EOS, the last token.
    """
    found = measured()
    pieces = [piece.replace("▁", " ").strip() for piece in found["query"]]
    figure, both = panels(1, 2, height=3.9)
    for axes, layer in zip(both, ATTENTION, strict=True):
        weights = np.array(found["attention"][str(layer)])
        cells(axes, weights / weights.max(), line=0.2)
        kind = "sliding" if found["layers"][layer]["kind"] == SLIDING else "full"
        axes.set(title=f"layer {layer}, {kind} (strongest {weights.max():.2f})")
        axes.set_xticks(np.arange(len(pieces)) + 0.5, pieces, rotation=90)
        axes.set_yticks(np.arange(len(pieces)) + 0.5, pieces if axes is both[0] else [])
        axes.tick_params(length=0)
    return figure


@look
def fig_reaches() -> Figure:
    """How far each layer of the released model looks, on 1,024 tokens of running text: what share of its attention goes
    to tokens at most 4 away (lowest part), at most 32, at most 256, and further. Only the four full layers look
    further, and each spends over a third of its attention there.
    """
    layers = measured()["layers"]
    within = np.array([[0, *layer["within"], 1] for layer in layers])
    names = [f"at most {REACHES[0]}", *(f"to {reach}" for reach in REACHES[1:]), "further"]
    heights = apart([(low + high) / 2 for low, high in zip(within[-1], within[-1, 1:], strict=False)], 0.08)
    figure, axes = panels(height=3.0)
    for part, (name, colour) in enumerate(zip(names, (BLUE, GREEN, FAINT, ORANGE), strict=True)):
        low, high = within[:, part], within[:, part + 1]
        axes.bar(range(len(layers)), high - low, 0.8, low, color=colour)
        label(axes, len(layers) - 0.6, heights[part], name, INK if colour == FAINT else colour)
    full = [layer for layer, one in enumerate(layers) if one["kind"] != SLIDING]
    axes.set_xticks(range(len(layers)), [f"{layer}\nfull" if layer in full else layer for layer in range(len(layers))])
    axes.set(xlabel="layer", ylabel="share of attention", ylim=(0, 1), xlim=(-0.6, len(layers) + 3))
    axes.tick_params(axis="x", length=0, labelsize=8)
    axes.spines["bottom"].set_bounds(-0.5, len(layers) - 0.5)
    return figure


# ---------------------------------------------------------------------------------------------------- 07, pooling
@look
def fig_pooled() -> Figure:
    """What each token of a query adds to the mean over tokens in the released model: its part of the pooled vector's
    own direction, in percent of the whole. The prompt, BOS and EOS bring nearly half of it; leave them out and another
    vector comes out.
    """
    found = measured()
    share, pieces = 100 * np.array(found["pooled"]), [piece.replace("▁", " ").strip() for piece in found["query"]]
    prompt = pieces.index("Which")
    colours = [ORANGE if piece in ("<bos>", "<eos>") else PINK if place < prompt else BLUE
               for place, piece in enumerate(pieces)]  # fmt: skip
    figure, axes = panels(height=2.9)
    axes.bar(range(len(pieces)), share, color=colours)
    axes.set_xticks(range(len(pieces)), pieces, rotation=60, ha="right", rotation_mode="anchor")
    axes.set(ylabel="% of the pooled vector")
    axes.tick_params(axis="x", length=0)
    for colour, words, height in ((ORANGE, "BOS, EOS", 0.95), (PINK, "prompt", 0.85), (BLUE, "the text itself", 0.75)):
        total = sum(part for part, own in zip(share, colours, strict=True) if own == colour)
        axes.text(0.2, height, f"{words}: {total:.0f} %", color=colour, transform=axes.transAxes, va="top")
    axes.grid(axis="y")
    return figure
