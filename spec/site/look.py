"""The one look of every figure, its SVG, and the tables of Markdown pages that figures read."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]

# Okabe and Ito's colours, which the colour-blind tell apart, and INK for lines and words: legible on white and on
# near-black, though not well. A page that knows what it is takes the ones made for it.
BLUE, ORANGE, GREEN, PINK, INK = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#757a80"
MODES = {
    "light": {BLUE: "#0072b2", ORANGE: "#b84f00", GREEN: "#00805c", PINK: "#a8518a", INK: "#24292f"},
    "dark": {BLUE: "#56b4e9", ORANGE: "#f08537", GREEN: "#2dbd92", PINK: "#e39bc5", INK: "#d8dce2"},
}
FAINT = (*to_rgba(INK)[:3], 0.25)
BLUES = LinearSegmentedColormap.from_list("blues", [(*to_rgba(BLUE)[:3], alpha) for alpha in (0.0, 1.0)])

LOOK = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.titlelocation": "left",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    "svg.fonttype": "none",  # words stay words: they can be searched, read aloud and scaled
    "svg.hashsalt": "refembed",  # the same figure is the same bytes
}
look = matplotlib.rc_context(LOOK)  # what a function draws has the look: @look


def panels(rows: int = 1, columns: int = 1, height: float = 3.0, **options: Any) -> tuple[Figure, Any]:
    """An empty figure, 6.4 inches wide, and its axes as Figure.subplots gives them."""
    figure = Figure(figsize=(6.4, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def svg(figure: Figure) -> str:
    """The figure as an SVG file, the same bytes each time, in colours that can be read on any page."""
    written = io.StringIO()
    with matplotlib.rc_context(LOOK):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return written.getvalue()


def coloured(drawn: str, mode: str) -> str:
    """An SVG file of ours in the colours of a "light" or "dark" page."""
    for colour, seen in MODES[mode].items():
        drawn = drawn.replace(colour, seen)
    return drawn


def label(axes: Any, x: float, y: float, words: str, colour: str = INK, side: str = "right") -> None:
    """Words beside a point of the data: right, left, above or below it, or two of these, as "above left"."""
    across = ("right" in side) - ("left" in side)
    up = ("above" in side) - ("below" in side)
    options = {"ha": ("center", "left", "right")[across], "va": ("center", "bottom", "top")[up], "fontsize": 9}
    axes.annotate(words, (x, y), (5 * across, 4 * up), textcoords="offset points", color=colour, **options)


def cells(axes: Any, values: NDArray[Any], line: float = 0.5) -> None:
    """A square for each number of a matrix from 0 (nothing) to 1 (BLUE), the first row uppermost."""
    axes.pcolormesh(values, cmap=BLUES, vmin=0, vmax=1, edgecolors=FAINT, linewidth=line)
    axes.set(aspect="equal", ylim=(len(values), 0))


def apart(values: Sequence[float], least: float) -> list[float]:
    """Heights for labels: the values, moved up where two are nearer than `least`."""
    result, last = list(values), float("-inf")
    for place in sorted(range(len(values)), key=values.__getitem__):
        result[place] = last = max(values[place], last + least)
    return result


def tables(page: str) -> Iterator[list[dict[str, str]]]:
    """Every table of a Markdown page: its rows, by the headings; the second of equal headings is name#2."""
    lines: list[str] = []
    for line in [*page.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(line)
        elif lines:
            head, _, *rows = ([cell.strip() for cell in one.strip("|").split("|")] for one in lines)
            yield [dict(zip(numbered(head), row, strict=True)) for row in rows]
            lines = []


def numbered(names: Sequence[str]) -> list[str]:
    seen = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [name if count == 1 else f"{name}#{count}" for name, count in zip(names, seen, strict=True)]
