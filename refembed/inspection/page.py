"""The page: one file with its style, script and numbers inside, which asks nothing of a network."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PARTS = {name: Path(__file__).with_name(f"page.{name}") for name in ("html", "css", "js")}


def build_page(reading: Mapping[str, Any]) -> str:
    """The page of what read_texts returns, as HTML.

    Texts stand in it as JSON alone, in which no tag can begin, and a policy lets only our own script run.
    """
    parts = {name: file.read_text(encoding="utf-8") for name, file in PARTS.items()}
    filled = {
        "style": parts["css"],
        "script": parts["js"],
        "style_hash": sha256(parts["css"]),
        "script_hash": sha256(parts["js"]),
        "reading": json.dumps(reading, default=packed, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: filled[place[1]], parts["html"])


def packed(array: Any) -> dict[str, Any]:
    """An array as JSON: its type, its shape, and its numbers, little-endian, in base64."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode()
    return {"type": array.dtype.name, "shape": array.shape, "data": data}


def sha256(text: str) -> str:
    """A script's or style's name in a Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
