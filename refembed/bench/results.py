"""From readings to results: medians, ratios, verdicts."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .. import __version__
from ..reference import Config
from ..vectors import similarity
from .laws import CURVE, curve_report, operations, products, stream_report
from .workload import KINDS, about

BEST_KNOWN = "sentence-transformers"  # whose vectors others are compared with, where it is there


@dataclass
class Subject:
    """One thing that is measured, and its readings so far.

    kind       refembed or a peer's name; python: the interpreter it runs in
    settings   what its process is told: path, backend, precision
    """

    name: str
    kind: str
    python: str
    settings: dict[str, Any]
    failed: str | None = None
    starts: list[float] = field(default_factory=list)
    first_time: float | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    curve: list[list[float]] = field(default_factory=list)
    stream: dict[str, Any] | None = None
    training: list[dict[str, Any]] = field(default_factory=list)


def collect(
    subjects: Sequence[Subject], work: Mapping[str, Any], config: Config, peaks: Sequence[float]
) -> dict[str, Any]:
    """Everything, for programs. A number's unit is in its name; what there is not is None.

    work    the workload's texts and tokens
    peaks   GFLOP/s, all readings
    """
    texts = json.dumps([work[kind] for kind in KINDS]).encode()
    truth = true_vectors(subjects)
    rows = [
        {"name": one.name, "kind": one.kind, "failed": one.failed, **one.settings}
        | (figures(one, work["tokens"], config, max(peaks)) | compared(one, truth) if one.rounds else {})
        | extras(one, config)
        | trained(one, work["tokens"].get("training", ()), config, max(peaks))
        for one in subjects
    ]
    return {
        "format": 1,
        "refembed": __version__,
        "machine": {"processor": processor(), "system": platform.platform(), "cores": os.cpu_count()},
        "workload": {"sha256": hashlib.sha256(texts).hexdigest(), **about(work["tokens"])},
        "matrix_peak_gflops": max(peaks),
        "matrix_readings": list(peaks),
        "matrices_gflop_per_token": 1e-9 * products(config),
        "subjects": rows,
    }


def figures(subject: Subject, tokens: Mapping[str, Sequence[int]], config: Config, peak: float) -> dict[str, Any]:
    """Of the rounds that were measured."""
    rounds = subject.rounds
    queries = [1e3 * seconds for one in rounds for seconds in one["query"]]
    seconds, batch = min((median(one["documents"][batch] for one in rounds), batch) for batch in rounds[0]["documents"])
    gflop = 1e-9 * sum(operations(config, size) for size in tokens["documents"])
    return {
        "version": rounds[-1]["version"],
        "query_p50_ms": float(np.percentile(queries, 50)),
        "query_p95_ms": float(np.percentile(queries, 95)),
        "documents_per_s": len(tokens["documents"]) / seconds,
        "tokens_per_s": sum(tokens["documents"]) / seconds,
        "batch": batch,
        "long_s": median(seconds for one in rounds for seconds in one["long"]),
        "start_s": median(subject.starts[1:]) if subject.starts else None,  # the first warmed the caches
        "first_time_s": subject.first_time,
        "peak_memory_mib": rounds[-1]["memory"],
        "peak_share": gflop / seconds / (rounds[-1].get("device_gflops") or peak),
        "device_gflops": rounds[-1].get("device_gflops"),
    }


def trained(subject: Subject, tokens: Sequence[int], config: Config, peak: float) -> dict[str, Any]:
    """Of the training steps, where there were any. A step has three times the operations of the forward pass."""
    if len(subject.training) < 2:  # the first warmed up; its loss is the one that all subjects start from
        return {}
    first, *steps = subject.training
    seconds = median(step["seconds"] for step in steps)
    gflop = 3e-9 * sum(operations(config, size) for size in tokens)
    peak = steps[-1]["device_gflops"] or peak
    figures = {"step_ms": 1e3 * seconds, "tokens_per_s": sum(tokens) / seconds, "loss": first["loss"]}
    return {"training": figures | {"peak_share": gflop / seconds / peak}}


def true_vectors(subjects: Sequence[Subject]) -> Any:
    """The documents' vectors to compare with: the best known implementation's, else refembed's in float32."""
    measured = [one for one in subjects if one.rounds]
    chosen = [one for one in measured if one.kind == BEST_KNOWN]
    chosen += [one for one in measured if one.settings.get("precision") == "float32"]
    return chosen[0].rounds[-1]["vectors"] if chosen else None


def compared(subject: Subject, truth: Any) -> dict[str, float | None]:
    """Cosine of every document's vector to the true one, mean and least."""
    vectors = subject.rounds[-1]["vectors"]
    if vectors is None or np.shape(vectors) != np.shape(truth):
        return {"cosine_mean": None, "cosine_least": None}
    cosines = np.nan_to_num(np.diag(similarity(vectors, truth)), nan=-1)  # no vector at all is as wrong as can be
    return {"cosine_mean": float(cosines.mean()), "cosine_least": float(cosines.min())}


def extras(subject: Subject, config: Config) -> dict[str, Any]:
    """The curve and the stream, where they were measured."""
    found: dict[str, Any] = {}
    if len(subject.curve) > 1:  # the first time may be slow at a length
        seconds = [median(times) for times in zip(*subject.curve[1:], strict=True)]
        found["curve"] = curve_report(config, CURVE[: len(seconds)], seconds)
    if subject.stream:
        report = stream_report(subject.stream["samples"], config.dimensions)
        found["stream"] = {"seconds": subject.stream["seconds"], **report}
    return found


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
