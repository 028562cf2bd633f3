"""Results as JSON for programs, and as a table for people."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .. import __version__
from .tasks import Result
from .vectors import TextEncoder


def as_json(
    encode: TextEncoder, results: Sequence[Result], seconds: float, quantize: str | None = None
) -> dict[str, Any]:
    """What a score depends on, and the scores; null where one is not defined."""
    used = {"context": encode.context, "dimensions": encode.dimensions, "quantize": quantize}
    counts = {"texts": encode.texts, "tokens": encode.tokens, "cut": encode.cut, "seconds": seconds}
    rows = [asdict(one) for one in results]
    for row in rows:
        row["scores"] = {name: score if math.isfinite(score) else None for name, score in row["scores"].items()}
    return {"refembed": __version__} | asdict(encode.model.info) | used | counts | {"results": rows}


def as_text(report: dict[str, Any]) -> str:
    """A line for each result, under what was measured."""
    rows = [("set", "task", "language", "split", "examples", "seconds", "scores")]
    for one in report["results"]:
        scores = (f"{name} {'-' if score is None else f'{score:.2f}'}" for name, score in one["scores"].items())
        told = (one["set"], one["task"], one["language"] or "-", one["split"], str(one["examples"]))
        rows.append((*told, f"{one['seconds']:.1f}", "  ".join(scores)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head = (
        "{model} ({digest:.12}), backend {backend}, {precision}, threads {threads}, context {context}, "
        "dimensions {dimensions}{stored}: {texts} texts of {tokens} tokens in {seconds:.1f} s, {cut} of them cut; "
        "scores in percent\n"
    ).format_map({"stored": f" kept as {report['quantize']}" if report["quantize"] else "", **report})
    return "\n".join([head] + ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows])
