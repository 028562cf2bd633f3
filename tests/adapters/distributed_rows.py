"""Rows for the engines that spread a job over machines, some at fault, and what the library itself makes of them."""

import json
import re
import textwrap
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import refembed
from refembed.cli import main

TWIN = Path(__file__).parents[2] / "golden" / "twin" / "checkpoint"
PAGE = Path(__file__).parents[2] / "spec" / "running.md"
WORDS = "the of and to in is for that with as on be by this from or are it an at"
TEXTS = [WORDS[: 1 + 37 * row % len(WORDS)] + f" {row}" for row in range(30)] + ["", "the of and " * 40]  # one is cut
TITLES = [None if row % 3 else f"about {row}" for row in range(len(TEXTS))]
FAULTY = {32: "text-type: is NoneType, a string is needed", 33: "text-encoding: is not valid Unicode: "}
HOW = {"backend": "numpy", "threads": 1}


@cache
def alone(titled: bool = False, **options: Any) -> NDArray:
    """Each text's embedding by encode(), given no other text."""
    model = refembed.load(TWIN, **HOW)
    with warnings.catch_warnings(action="ignore"):
        found = [
            model.encode(text, titles=title if titled else None, **options)
            for text, title in zip(TEXTS, TITLES, strict=True)
        ]
    return np.stack(found)


def embedded(folder: Path) -> NDArray:
    """What `refembed embed` itself makes of all rows, with their titles, at 24 dimensions."""
    lines = [json.dumps({"text": text, "title": title}) for text, title in zip(TEXTS, TITLES, strict=True)]
    faulty = [b'{"text": null}', b'{"text": "the \xff"}']
    (folder / "rows.jsonl").write_bytes(b"\n".join([*(line.encode() for line in lines), *faulty]))
    how = ["--model", str(TWIN), "--backend", HOW["backend"], "--threads", str(HOW["threads"])]
    fields = ["--title-field", "title", "--dimensions", "24"]
    assert main(["embed", "-i", str(folder / "rows.jsonl"), "-o", str(folder / "rows.npy"), *fields, *how]) == 1
    found = np.load(folder / "rows.npy")
    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == list(FAULTY)
    return found


def check(rows: list[dict], expected: NDArray) -> None:
    """Rows of id, embedding and fault: the good ones hold expected's bits, the others say why they do not."""
    rows = sorted(rows, key=lambda row: row["id"])
    assert [row["id"] for row in rows] == list(range(len(TEXTS) + len(FAULTY)))
    for row in rows:
        if row["id"] in FAULTY:
            assert row["embedding"] is None
            assert row["fault"].startswith(FAULTY[row["id"]])
        else:
            assert row["fault"] is None
            found = row["embedding"]  # bits are bytes in Spark
            found = np.frombuffer(found, np.uint8) if isinstance(found, bytes | bytearray) else found
            assert np.array_equal(np.asarray(found, expected.dtype), expected[row["id"]])


def example(module: ModuleType) -> str:
    """The first example of a module, which spec/running.md repeats, for the twin in place of EmbeddingGemma."""
    block = re.search(r"^    .*?\n(?=\n\S)", str(module.__doc__), re.S | re.M)[0]
    assert block in PAGE.read_text()
    return textwrap.dedent(block).replace("google/embeddinggemma-300m", str(TWIN))
