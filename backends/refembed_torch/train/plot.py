"""The curves of a run: its loss and gradient over steps, and every held-out figure, as one SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refembed.errors import RefembedError
from refembed.output import whole_file


def check_library() -> None:
    """Raise RefembedError now where nothing can be drawn later."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RefembedError(
            "train-missing", 'curves need matplotlib, which is not installed; pip install "refembed[train]"'
        ) from error


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
    figure = Figure(figsize=(4 * min(len(drawn), 3), 3 * -(-len(drawn) // 3)), layout="constrained")
    for place, (name, found, value) in enumerate(drawn, 1):
        axes = figure.add_subplot(-(-len(drawn) // 3), min(len(drawn), 3), place)
        points = [(line["step"], value(line, name)) for line in found if value(line, name) is not None]
        axes.plot(*zip(*points, strict=True) if points else ([], []), marker="." if found is held_out else "")
        axes.set_title(name if found is steps else f"held out: {name}", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
    with whole_file(file) as handle:
        figure.savefig(handle, format="svg", metadata={"Date": None})
