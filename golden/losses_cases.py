"""Write golden/losses: batches, and what every loss and its gradients are there. Run: python golden/losses_cases.py

Expected values come from the reference in float64, and nothing is written where PyTorch's autograd, over losses written
here from spec/10-losses.md alone, is further than 1e-9 away. Bounds are four times the largest error of reference and
PyTorch in float32, over NEAR batches that differ in rounding only.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch.nn import functional as F  # noqa: N812

import refembed
from refembed.conformance.losses import SIDES, answer_of, question

TARGET = Path(__file__).parent / "losses"
AGREED = 1e-9
NEAR = 32
UNIT = 2.0**-24  # float32's rounding
# Token ids: of several lengths, one the other's start, two of the same tokens in another order.
TEXTS = [[2, 5, 1], [2, 5, 9, 1], [2, 9, 5, 1], [2, 1], [2, 5, 5, 1], [2, 7, 1], [2, 7, 7, 1], [2, 8, 1]]
USUAL: dict[str, Any] = {
    "inputs": "four", "negatives": True, "teacher": None, "mapping": None, "query_texts": [0, 1, 2, 3],
    "positive_texts": [4, 0, 6, 7], "temperature": 0.1, "alpha": 5.0, "lengths": [8],
    "weights": {"contrastive": 1.0, "spread_out": 1.0, "matching": 1.0},
}  # fmt: skip
ONE = {"inputs": "one", "query_texts": [0], "positive_texts": [4]}
SAME = {"inputs": "same", "query_texts": [0, 1], "positive_texts": [2, 3]}
PAIRS, MANY, TAUGHT = {"negatives": False}, {"lengths": [8, 4, 2]}, {"teacher": "teacher"}
MAPPED = {"teacher": "narrow", "mapping": "mapping"}
QUERY_TWICE, POSITIVE_TWICE = {"query_texts": [0, 1, 0, 3]}, {"positive_texts": [4, 5, 6, 5]}
EXAMPLE = {"positive_texts": [4, 5, 4, 5]}
WEIGHTS = {"weights": {"contrastive": 0.5, "spread_out": 3.0, "matching": 0.25}}
LOSSES = ("contrastive", "spread-out", "matching", "total")  # with which the name of a case begins
# Why, and what is not as usual.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "contrastive-hard": ("hard negatives", {}),
    "contrastive": ("pairs; a query that is another's positive masks nothing", PAIRS),
    "contrastive-usual": ("the usual temperature", {"temperature": 0.02}),
    "contrastive-same-query": ("a query twice", QUERY_TWICE),
    "contrastive-same-positive": ("a positive twice", POSITIVE_TWICE),
    "contrastive-repeats": ("an example twice", PAIRS | QUERY_TWICE | EXAMPLE),
    "contrastive-one-query": ("one query for all", {"query_texts": [0, 0, 0, 0]}),
    "contrastive-one": ("B = 1: 0", PAIRS | ONE),
    "contrastive-one-hard": ("B = 1, a hard negative", ONE),
    "contrastive-identical": ("the same vector for other texts", SAME),
    "contrastive-cold": ("beyond exp's range", {"temperature": 1e-4}),
    "contrastive-hot": ("every term alike", {"temperature": 1e4}),
    "contrastive-alpha-0": ("no weight", {"alpha": 0.0}),
    "contrastive-lengths": ("three lengths", MANY),
    "spread-out": ("four directions", {}),
    "spread-out-one": ("B = 1: 0", PAIRS | ONE),
    "spread-out-identical": ("the largest: 1 a side", PAIRS | SAME),
    "spread-out-lengths": ("three lengths", PAIRS | MANY),
    "matching": ("three sides", TAUGHT),
    "matching-pairs": ("two sides", TAUGHT | PAIRS),
    "matching-mapped": ("a narrower teacher", MAPPED),
    "matching-itself": ("its own teacher: 0, a minimum", {"teacher": "four"} | PAIRS),
    "total": ("everything", TAUGHT | MANY | QUERY_TWICE | POSITIVE_TWICE),
    "total-pairs": ("no hard negatives", TAUGHT | MANY | PAIRS),
    "total-weights": ("three weights", TAUGHT | WEIGHTS),
    "total-mapped": ("a narrower teacher", MAPPED | PAIRS | WEIGHTS),
}


def inputs() -> dict[str, np.ndarray]:
    """(sides, examples, n): related vectors of several lengths; and a mapping (m, n)."""
    rng = np.random.default_rng(20_250_924)
    shared, own = rng.standard_normal((1, 1, 8)), rng.standard_normal((1, 4, 8))
    four = 0.7 * shared + own + 0.6 * rng.standard_normal((3, 4, 8))
    four *= np.exp2(rng.integers(-3, 1, (3, 4, 1)))
    teacher = four / 2 + 0.5 * rng.standard_normal((3, 4, 8))
    arrays = {
        "four": four,
        "one": four[:, 2:3],
        "same": np.broadcast_to(four[0, 0], (3, 2, 8)),
        "teacher": teacher,
        "narrow": rng.standard_normal((3, 4, 6)),
        "mapping": rng.standard_normal((6, 8)),
    }
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def torch_answer(asked: dict[str, Any], number: torch.dtype) -> dict[str, np.ndarray]:
    """The value, and the gradient of every input, by autograd."""
    names = [name for name in (*SIDES, "mapping") if asked[name] is not None]
    given = {name: torch.tensor(asked[name], dtype=number, requires_grad=True) for name in names}
    value = torch_loss(asked, given)
    gradients = torch.autograd.grad(value, list(given.values()), materialize_grads=True)
    return {"value": value.detach().numpy()} | {k: v.numpy() for k, v in zip(given, gradients, strict=True)}


def torch_loss(asked: dict[str, Any], given: dict[str, torch.Tensor]) -> torch.Tensor:
    parts = dict.fromkeys(asked["weights"], 0 * given["queries"].sum())
    sides = [side for side in SIDES if side in given]
    for length in asked["lengths"]:
        units = [F.normalize(given[side][:, :length]) for side in sides]
        parts["contrastive"] = parts["contrastive"] + torch_contrastive(asked, *units)
        for unit in units[:2] if len(units[0]) > 1 else ():
            squares = [(a @ b) ** 2 for k, a in enumerate(unit) for j, b in enumerate(unit) if j != k]
            parts["spread_out"] = parts["spread_out"] + torch.stack(squares).mean()
    for side in sides if asked["teacher"] else ():
        own = given[side] @ given["mapping"].T if "mapping" in given else given[side]
        cosines = F.cosine_similarity(own, torch.tensor(asked["teacher"][side], dtype=own.dtype))
        parts["matching"] = parts["matching"] + (2 - 2 * cosines).mean()
    if asked["loss"] == "total":
        return torch.stack([asked["weights"][name] * part for name, part in parts.items()]).sum()
    return parts[asked["loss"].replace("-", "_")]


def torch_contrastive(asked: dict[str, Any], query: Any, positive: Any, negative: Any = None) -> torch.Tensor:
    logits = query @ positive.T / asked["temperature"]
    texts = list(zip(asked["query_texts"], asked["positive_texts"], strict=True))
    same = [[i != j and (a[0] == b[0] or a[1] == b[1]) for j, b in enumerate(texts)] for i, a in enumerate(texts)]
    logits = logits.masked_fill(torch.tensor(same), -torch.inf)
    if negative is not None:
        hard = (query * negative).sum(1, keepdim=True)
        logits = torch.cat([logits, asked["alpha"] * hard.detach() + hard / asked["temperature"]], 1)
    return F.cross_entropy(logits, torch.arange(len(query)))


def errors(found: dict[str, Any], truth: dict[str, Any]) -> tuple[float, float]:
    """The largest of the value and of a number of the gradients."""
    apart = {key: float(np.max(np.abs(found[key] - truth[key]), initial=0)) for key in truth}
    return apart.pop("value"), max(apart.values())


def bounds(settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """What float32 may lose. A cosine off by a rounding moves a logit by that over the temperature."""
    rng, found = np.random.default_rng(0), []
    for _ in range(NEAR):
        near = {k: (a * (1 + rng.normal(0, 2.0**-20, a.shape))).astype(np.float32) for k, a in arrays.items()}
        asked = question(settings, near, TEXTS)
        truth = answer_of(asked)
        found += [errors(answer_of(asked, np.float32), truth), errors(torch_answer(asked, torch.float32), truth)]
    step = UNIT * (1 + (1 / settings["temperature"] if settings["loss"] in ("contrastive", "total") else 0))
    shortest = float(np.linalg.norm(arrays[settings["inputs"]], axis=-1).min(initial=1))
    value, gradients = (max(column) for column in zip(*found, strict=True))
    largest = {"value": max(value, step), "gradients": max(gradients, step / shortest)}
    return {part: float(f"{4.2 * error:.1e}") for part, error in largest.items()}  # 4.2: 4 after rounding


def main() -> None:
    arrays, cases = inputs(), []
    stored = {f"inputs/{name}": array for name, array in arrays.items()}
    for slug, (why, unusual) in CASES.items():
        loss = next(name for name in LOSSES if slug.startswith(name))
        settings = USUAL | {"loss": loss} | unusual
        asked = question(settings, arrays, TEXTS)
        found = answer_of(asked)
        if max(errors(found, torch_answer(asked, torch.float64))) > AGREED:
            sys.exit(f"{slug}: PyTorch disagrees, nothing written")
        stored[f"{slug}/gradients"] = np.stack([found[side] for side in SIDES if side in found]).astype(np.float32)
        if "mapping" in found:
            stored[f"{slug}/mapping"] = found["mapping"].astype(np.float32)
        case = {"id": slug, "why": why, "loss": loss, **unusual, "value": float(found["value"])}
        cases.append(json.dumps(case | {"bounds": bounds(settings, arrays)}))
    write(TARGET, stored, {"texts": TEXTS, "usual": USUAL}, cases)


def write(target: Path, stored: dict[str, np.ndarray], more: dict[str, Any], cases: list[str]) -> None:
    """A folder: values and a manifest, a line a case."""
    target.mkdir(exist_ok=True)
    save_file(stored, target / "values.safetensors")
    content = (target / "values.safetensors").read_bytes()
    head = {
        "format": 1,
        "generator": {"refembed": refembed.__version__, "numpy": np.__version__, "torch": torch.__version__},
        "number_of_cases": len(cases),
        "files": {"values.safetensors": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}},
        **more,
    }
    lines = ",\n".join(cases)
    (target / "manifest.json").write_text(f'{json.dumps(head)[:-1]}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
