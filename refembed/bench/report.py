"""Results as text, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from .peers import PEERS
from .workload import KINDS

# heading, key, form
Columns = Sequence[tuple[str, str, str]]
FIGURES: Columns = (
    ("query p50 ms", "query_p50_ms", ".1f"),
    ("p95 ms", "query_p95_ms", ".1f"),
    ("documents/s", "documents_per_s", ".2f"),
    ("tokens/s", "tokens_per_s", ".0f"),
    ("long text s", "long_s", ".2f"),
    ("start s", "start_s", ".2f"),
    ("first time s", "first_time_s", ".1f"),
    ("peak MiB", "peak_memory_mib", ".0f"),
    ("of matrix peak", "peak_share", ".0%"),
    ("cosine mean", "cosine_mean", ".6f"),
    ("least", "cosine_least", ".6f"),
)
CURVE: Columns = (
    ("tokens", "tokens", "d"),
    ("ms", "ms", ".2f"),
    ("µs/token", "us_per_token", ".1f"),
    ("predicted ms", "predicted_ms", ".2f"),
)
STREAM: Columns = (
    ("texts", "texts", "d"),
    ("tokens/s", "tokens_per_s", ".0f"),
    ("resident MiB", "resident_mib", ".0f"),
)
TRAINING: Columns = (
    ("subject", "name", ""),
    ("step ms", "step_ms", ".1f"),
    ("tokens/s", "tokens_per_s", ".0f"),
    ("of matrix peak", "peak_share", ".0%"),
    ("first loss", "loss", ".6f"),
)
SAID = {True: "yes", False: "NO", None: "too little was measured to tell"}


def as_text(results: Mapping[str, Any]) -> str:
    """The table, what was left out of it and why, then curves and streams."""
    work, machine = results["workload"], results["machine"]
    queries, documents, long = (work[kind] for kind in KINDS)
    rows = [row for row in results["subjects"] if "tokens_per_s" in row]
    columns = [column for column in FIGURES if any(row[column[1]] is not None for row in rows)]
    lines = [
        f"{results['model']} on {machine['processor']}, threads: {results['threads']}, rounds: {results['rounds']}",
        f"queries: {queries['texts']} of {queries['mean_tokens']:.0f} tokens, one at a time; "
        f"documents: {documents['texts']} of {documents['mean_tokens']:.0f} tokens ({documents['least']} to "
        f"{documents['most']}); long text: {long['most']} tokens",
        f"matrix peak: {results['matrix_peak_gflops']:.0f} GFLOP/s (NumPy, float32, highest of "
        f"{len(results['matrix_readings'])} readings between the rounds)",
        "",
        *table(rows, (("subject", "name", ""), *columns)),
    ]
    peaks = {row["name"]: row["device_gflops"] for row in rows if row["device_gflops"]}
    notes = [
        f"{name}: against {peak:.0f} GFLOP/s (bfloat16, 8192 cubed, on its device)" for name, peak in peaks.items()
    ]
    notes += [f"{row['name']} failed: {row['failed']}" for row in results["subjects"] if row["failed"] is not None]
    notes += [f"{row['name']}: {note_of(row)}" for row in rows if note_of(row)]
    lines += ["", *notes] if notes else []
    if steps := [{"name": row["name"], **row["training"]} for row in rows if "training" in row]:
        texts = work["training"]
        sizes = f"{texts['texts'] // 3} queries, positives and hard negatives, {texts['mean_tokens']:.0f} tokens each"
        lines += ["", f"a step of training on {sizes}: forward, backward, AdamW", *table(steps, TRAINING)]
    for row in rows:
        if curve := row.get("curve"):
            lines += ["", f"{row['name']}, one text by its length", *table(curve["rows"], CURVE)]
            lines += [f"no steeper than predicted beyond 512 tokens: {SAID[curve['as_predicted']]}"]
        if stream := row.get("stream"):
            lines += [
                "",
                f"{row['name']}, texts in one call: {stream['seconds']:.1f} s",
                *table(stream["rows"], STREAM),
            ]
            lines += [f"throughput kept from the first tenth to the last: {SAID[stream['throughput_kept']]}"]
            lines += [f"memory flat but for the vectors: {SAID[stream['memory_flat']]}"]
    return "\n".join(lines).rstrip()


def table(rows: Sequence[Mapping[str, Any]], columns: Columns) -> list[str]:
    """Lines of aligned columns, texts to the left and figures to the right."""
    cells = [[heading for heading, *_ in columns]]
    cells += [["-" if row[key] is None else format(row[key], form) for _, key, form in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    shapes = [f"{'>' if form else '<'}{width}" for width, (*_, form) in zip(widths, columns, strict=True)]
    return ["  ".join(map(format, line, shapes)) for line in cells]


def note_of(row: Mapping[str, Any]) -> str:
    return PEERS[row["kind"]].note if row["kind"] in PEERS else ""
