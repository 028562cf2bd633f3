"""What figures show of the released model, measured on it: python spec/site/measure.py MODEL

Writes measured.json beside this file: numbers that the model puts out, and nothing of its weights. MODEL is a folder or
a hub id. Everything is computed by the reference in float32, in under a minute on one core.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import refembed
from refembed.embedder import Embedder
from refembed.reference import embed

MEASURED = Path(__file__).with_name("measured.json")
LICENCE = Path(__file__).resolve().parents[2] / "LICENSE"  # a long text that is here and does not change
QUERY = "Which planet is known as the Red Planet?"
ATTENTION = (3, 5)  # layers whose weights are kept: a sliding one and a full one
LONG = 1024  # tokens of the licence
REACHES = (4, 32, 256)  # distances at which attention is counted
SPELLINGS = ("two  or   three spaces", "Donaudampfschifffahrt", "no\u00a0break")
Array = NDArray[Any]


def measure(model: Embedder) -> dict[str, Any]:
    """Everything, as it stands in the file."""
    (query,) = model.prepare([QUERY], task="query")
    licence = model.tokenizer([LICENCE.read_text()])[0]
    long = np.append(licence[: LONG - 1], licence[-1])  # as TOK-7 cuts
    of_query, of_licence = trace(model, query, keep_sizes), trace(model, long, keep_reaches)
    layers = range(len(model.config.layer_kinds))
    return {
        "digest": model.info.digest,
        "spellings": [model.tokenizer.pieces(ids) for ids in model.tokenizer(SPELLINGS)],
        "query": model.tokenizer.pieces(query),
        "embedded": of_query["embedded"],
        "layers": [
            {
                "kind": model.config.layer_kinds[layer],
                "out": of_query[f"layer.{layer:02d}.out"],
                "attention": of_query[f"layer.{layer:02d}.attention.update"],
                "mlp": of_query[f"layer.{layer:02d}.mlp.update"],
                "within": of_licence[f"layer.{layer:02d}.attention.weights"],
            }
            for layer in layers
        ],
        "attention": {str(layer): of_query[f"layer.{layer:02d}.attention.weights"] for layer in ATTENTION},
        "pooled": of_query["final_norm"],
    }


def trace(model: Embedder, ids: Array, keep: Callable[[str, Array], Any]) -> dict[str, Any]:
    """What `keep` makes of each named tensor, None left out."""
    kept: dict[str, Any] = {}

    def collect(name: str, tensor: Array) -> None:
        if (found := keep(name, tensor)) is not None:
            kept[name] = found

    embed(ids, model.encoder.parameters, model.config, collect)
    return kept


def keep_sizes(name: str, x: Array) -> Any:
    """The stream's and the updates' sizes, two layers' weights (mean over heads), each token's part in the mean."""
    if name == "embedded" or name.endswith((".out", ".update")):
        largest = np.abs(x).max(axis=0)
        return {
            "largest": significant(largest.max()),
            "rms": significant(np.sqrt(np.mean(np.square(x, dtype=np.float64)))),
            "number": int(largest.argmax()),  # which of the width numbers the largest is
        }
    if name.endswith(".weights") and int(name[6:8]) in ATTENTION:
        return x.mean(axis=0).round(4).astype(float).round(4).tolist()
    if name == "final_norm":
        pooled = x.mean(axis=0)
        return (x @ pooled / (pooled @ pooled) / len(x)).astype(float).round(4).tolist()  # sums to 1
    return None


def keep_reaches(name: str, weights: Array) -> Any:
    """The share of attention, mean over heads and queries, that falls within each distance of REACHES."""
    if not name.endswith(".weights"):
        return None
    tokens = np.arange(weights.shape[-1])
    distance = np.abs(tokens[:, None] - tokens)
    mean = weights.mean(axis=0, dtype=np.float64)
    return [round(float(mean[distance <= reach].sum() / len(tokens)), 4) for reach in REACHES]


def significant(x: float) -> float:
    """Five digits: what two float32 implementations have in common here."""
    return float(f"{x:.5g}")


if __name__ == "__main__":
    found = measure(refembed.load(sys.argv[1], backend="numpy"))
    lines = (f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in found.items())
    MEASURED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
