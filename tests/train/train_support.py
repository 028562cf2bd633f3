"""Small sets of training examples, and files that train on them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_rows(file: Path, count: int, negatives: int = 1, seed: int = 0) -> Path:
    """Examples that can be learned: a positive begins with its query's word; a negative is another example's."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list(LETTERS), rng.integers(3, 7))) for _ in range(2 * count)]
    rows = []
    for index in range(count):
        row: dict[str, Any] = {"task": "package_search", "query": words[index]}
        row["positive"] = f"{words[index]} {words[count + index]}"
        others = rng.choice(np.delete(np.arange(count), index), negatives, replace=False)
        rows.append(
            row | ({"negative": [f"{words[other]} {words[index + count]}" for other in others]} if negatives else {})
        )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def as_toml(tables: Mapping[str, Any]) -> str:
    """Tables of plain values as TOML, in inline form: JSON but for its colons."""

    def value(item: Any) -> str:
        if isinstance(item, Mapping):
            return "{" + ", ".join(f"{key} = {value(inner)}" for key, inner in item.items()) + "}"
        if isinstance(item, list | tuple):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(str(item) if isinstance(item, Path) else item)

    return "".join(f"{key} = {value(item)}\n" for key, item in tables.items())
