"""The curves of a run: its loss and gradient over steps, and every held-out figure, as one SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refembed.output import whole_file


def curves(lines: Sequence[dict[str, Any]], file: Path) -> None:
    """lines    of log.jsonl: {"step", "loss", ...} and {"step", "held_out": {name: figure}}"""
    from matplotlib.figure import Figure

    steps = [line for line in lines if "held_out" not in line]
    held_out = [line for line in lines if "held_out" in line]
    names = list(dict.fromkeys(name for line in held_out for name in line["held_out"]))
    drawn = [
        ("loss", steps, lambda line, name: line.get(name)),
        ("gradient_length", steps, lambda line, name: line.get(name)),
    ]
    drawn += [(name, held_out, lambda line, name: line["held_out"].get(name)) for name in names]
    rows = -(-len(drawn) // 3)
    figure = Figure(figsize=(12, 3 * rows))
    # inches by hand: a layout that looks for them draws everything several times
    figure.subplots_adjust(0.05, 0.5 / (3 * rows), 0.98, 1 - 0.4 / (3 * rows), 0.25, 0.5)
    for place, (name, found, value) in enumerate(drawn, 1):
        axes = figure.add_subplot(rows, 3, place)
        points = [(line["step"], value(line, name)) for line in found if value(line, name) is not None]
        axes.plot(*zip(*points, strict=True) if points else ([], []), marker="." if found is held_out else "")
        axes.set_title(name if found is steps else f"held out: {name}", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
    with whole_file(file) as handle:
        figure.savefig(handle, format="svg", metadata={"Date": None})
