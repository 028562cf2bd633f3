"""Golden folders that are not what they were: every kind of damage is refused by its own id.

A row that fails means that a damaged folder was taken for a whole one, so that its verdicts say nothing, or that it was
refused with a traceback, in several lines, slowly, by taking memory, or without its reason.
"""

import hashlib
import json
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from refembed.cli import main
from refembed.conformance.suite import SHIPPED, golden_folder, open_suite
from refembed.errors import ERRORS, RefembedError

TWIN = golden_folder("twin")
VALUES, STAGES, DEFECTS = "values.safetensors", "stages.safetensors", "defects.safetensors"
CASE = "prompt-query"
SECONDS, MEBIBYTES = 5, 64
Spoil = Callable[[Path], object]


@dataclass(frozen=True)
class Bad:
    """One kind of damage: its name, the id that refuses it, what the reason must name, how to do it to a folder."""

    slug: str
    id: str
    says: str
    spoil: Spoil


# ------------------------------------------------------------------------------------------------ how to spoil a folder
def put(folder: Path, name: str, content: bytes) -> None:
    """Write a file where there may be a link to the right one."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content)


def write(name: str, content: bytes) -> Spoil:
    return lambda folder: put(folder, name, content)


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    return lambda folder: put(folder, name, change((folder / name).read_bytes()))


def manifest(change: Callable[[Any], object]) -> Spoil:
    """Change the manifest's content in place."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_bytes())
        change(content)
        put(folder, "manifest.json", json.dumps(content).encode())

    return spoil


def set_key(*path: Any, to: object) -> Spoil:
    """manifest[path[0]][path[1]]... = to"""

    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return manifest(change)


def drop(*path: Any) -> Spoil:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return manifest(change)


def digested(name: str, content: Callable[[Path], bytes]) -> Spoil:
    """A file changed together with its size and digest, as a careless generator would."""

    def spoil(folder: Path) -> None:
        fresh = content(folder)
        put(folder, name, fresh)
        entry = {"bytes": len(fresh), "sha256": hashlib.sha256(fresh).hexdigest()}
        set_key("files", name, to=entry)(folder)

    return spoil


def tensors(name: str, change: Callable[[dict[str, Any]], object]) -> Spoil:
    def content(folder: Path) -> bytes:
        kept = dict(load_file(folder / name))
        change(kept)
        return save({key: np.ascontiguousarray(tensor) for key, tensor in kept.items()})

    return digested(name, content)


def scaled(key: str, by: float) -> Callable[[dict[str, Any]], object]:
    def change(kept: dict[str, Any]) -> None:
        kept[key] = kept[key] * by

    return change


def huge(name: str, listed: bool) -> Spoil:
    """A file that claims more than any real one, and takes no room on the disk."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        with (folder / name).open("wb") as handle:
            handle.truncate(2**36)
        if listed:
            set_key("files", name, "bytes", to=2**36)(folder)

    return spoil


def twice(content: Any) -> None:
    content["cases"].append(content["cases"][0])
    content["number_of_cases"] += 1


def emptied(content: Any) -> None:
    content["cases"], content["number_of_cases"] = [], 0


def without_texts(content: Any) -> None:
    content["cases"][0] |= {"texts": [], "prompted": []}


def without_stages(content: Any) -> None:
    for case in content["cases"]:
        case["bounds"] = {one: {"embedding": by_stage["embedding"]} for one, by_stage in case["bounds"].items()}
        case["stages"] = []


def bounds_times(by: float) -> Callable[[Any], None]:
    """As a port's author would who wants it to pass."""

    def change(content: Any) -> None:
        for case in content["cases"]:
            case["bounds"]["float32"]["embedding"] *= by

    return change


def without_a_defect(content: Any) -> None:
    del content["defects"]["causal"]
    for case in content["cases"]:
        case["flags"] = [flag for flag in case["flags"] if flag != "causal"]


def changed(key: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], object]:
    return lambda kept: kept.update({key: change(kept[key])})


def wider(content: Any, which: str) -> None:
    """The bound of a case that shows no defect best, so that no separation tells."""
    (case,) = [case for case in content["cases"] if case["id"] == which]
    case["bounds"]["float32"]["embedding"] = 1.0


def first_bound(to: object) -> Spoil:
    return set_key("cases", 0, "bounds", "float32", "embedding", to=to)


ROWS = [
    Bad("no-manifest", "golden-missing", "manifest.json", lambda folder: (folder / "manifest.json").unlink()),
    Bad("manifest-huge", "golden-too-large", "manifest.json", huge("manifest.json", listed=False)),
    Bad("manifest-cut", "golden-json", "manifest.json", bytes_of("manifest.json", lambda content: content[:-100])),
    Bad("manifest-emptied", "golden-json", "manifest.json", write("manifest.json", b"")),
    Bad("manifest-not-utf8", "golden-json", "manifest.json", write("manifest.json", b'{"format": "\xff"}')),
    Bad("manifest-deep", "golden-json", "manifest.json", write("manifest.json", b"[" * 200_000)),
    Bad("manifest-a-list", "golden-format", "format", write("manifest.json", b"[]")),
    Bad("no-format", "golden-format", "format", drop("format")),
    Bad("format-zero", "golden-format", "format 0", set_key("format", to=0)),
    Bad("format-a-word", "golden-format", "format", set_key("format", to="1")),
    Bad("format-true", "golden-format", "format", set_key("format", to=True)),
    Bad("format-of-the-future", "golden-newer", "format 2", set_key("format", to=2)),
    Bad("no-cases-key", "golden-manifest", "cases", drop("cases")),
    Bad("no-count", "golden-manifest", "number_of_cases", drop("number_of_cases")),
    Bad("no-defects-key", "golden-manifest", "defects", drop("defects")),
    Bad("no-dimensions", "golden-manifest", "dimensions", drop("model", "dimensions")),
    Bad("no-model-digest", "golden-manifest", "digest", drop("model", "digest")),
    Bad("no-digest", "golden-manifest", VALUES, drop("files", VALUES, "sha256")),
    Bad("file-entry-a-number", "golden-manifest", VALUES, set_key("files", VALUES, to=1)),
    Bad("file-above", "golden-path", "../x", set_key("files", "../x", to={"bytes": 1, "sha256": ""})),
    Bad("file-absolute", "golden-path", "/etc/passwd", set_key("files", "/etc/passwd", to={"bytes": 1, "sha256": ""})),
    Bad("file-gone", "golden-file-missing", STAGES, lambda folder: (folder / STAGES).unlink()),
    Bad("checkpoint-gone", "golden-file-missing", "tokenizer", lambda f: (f / "checkpoint/tokenizer.json").unlink()),
    Bad("values-unlisted", "golden-unlisted", VALUES, drop("files", VALUES)),
    Bad("defects-unlisted", "golden-unlisted", DEFECTS, drop("files", DEFECTS)),
    Bad("all-unlisted", "golden-unlisted", VALUES, set_key("files", to={})),
    Bad("file-cut", "golden-size", VALUES, bytes_of(VALUES, lambda content: content[:-8])),
    Bad("file-longer", "golden-size", VALUES, bytes_of(VALUES, lambda content: content + b"\0")),
    Bad("file-emptied", "golden-size", VALUES, write(VALUES, b"")),
    Bad("file-huge", "golden-too-large", VALUES, huge(VALUES, listed=True)),
    Bad("one-bit", "golden-digest", VALUES, bytes_of(VALUES, lambda c: c[:-1] + bytes([c[-1] ^ 1]))),
    Bad(
        "weights-changed",
        "golden-digest",
        "config",
        bytes_of("checkpoint/config.json", lambda c: c.replace(b"64", b"65")),
    ),
    Bad("digest-changed", "golden-digest", VALUES, set_key("files", VALUES, "sha256", to="0" * 64)),
    Bad("values-no-tensors", "golden-tensors", VALUES, digested(VALUES, lambda folder: b"no tensors in here")),
    Bad("stages-no-tensors", "golden-tensors", STAGES, digested(STAGES, lambda folder: b"{}")),
    Bad("defects-no-tensors", "golden-tensors", DEFECTS, digested(DEFECTS, lambda folder: b"")),
    Bad("case-gone", "golden-count", "71 cases", drop("cases", 5)),
    Bad("count-raised", "golden-count", "999", set_key("number_of_cases", to=999)),
    Bad("no-case", "golden-empty", "no case", manifest(emptied)),
    Bad("case-twice", "golden-duplicate", CASE, manifest(twice)),
    Bad("case-without-texts", "golden-case", "texts", drop("cases", 0, "texts")),
    Bad("case-without-bounds", "golden-case", "bounds", drop("cases", 0, "bounds")),
    Bad("case-a-word", "golden-case", "case", set_key("cases", 0, to="x")),
    Bad("case-with-no-text", "golden-case", CASE, manifest(without_texts)),
    Bad("case-with-a-prompt-too-many", "golden-case", CASE, set_key("cases", 0, "prompted", to=["a", "b"])),
    Bad("case-with-a-prompt-of-numbers", "golden-case", CASE, set_key("cases", 0, "prompted", to=[1])),
    Bad("bounds-a-list", "golden-case", "AttributeError", set_key("cases", 0, "bounds", to=[1])),
    Bad("case-of-a-dimension-and-a-half", "golden-case", "whole", set_key("cases", 0, "dimensions", to=48.5)),
    Bad("case-of-no-dimension", "golden-case", "whole", set_key("cases", 0, "dimensions", to=0)),
    Bad("case-of-dimensions-in-words", "golden-case", "whole", set_key("cases", 0, "dimensions", to="48")),
    Bad("case-with-a-text-of-nothing", "golden-case", CASE, set_key("cases", 0, "texts", 0, "text", to=None)),
    Bad("tokens-none", "golden-values", CASE, tensors(VALUES, changed(f"{CASE}/tokens.0", lambda ids: ids[:0]))),
    Bad("tokens-in-a-row", "golden-values", CASE, tensors(VALUES, changed(f"{CASE}/tokens.0", lambda ids: ids[None]))),
    Bad("vectors-gone", "golden-values", CASE, tensors(VALUES, lambda kept: kept.pop(f"{CASE}/embedding"))),
    Bad("tokens-gone", "golden-values", CASE, tensors(VALUES, lambda kept: kept.pop(f"{CASE}/tokens.0"))),
    Bad("tokens-fractions", "golden-values", CASE, tensors(VALUES, scaled(f"{CASE}/tokens.0", 0.5))),
    Bad("vectors-short", "golden-shape", CASE, set_key("cases", 0, "dimensions", to=32)),
    Bad("vectors-doubled", "golden-norm", CASE, tensors(VALUES, scaled(f"{CASE}/embedding", 2.0))),
    Bad("vectors-nan", "golden-norm", CASE, tensors(VALUES, scaled(f"{CASE}/embedding", np.nan))),
    Bad("bound-zero", "golden-bound", CASE, first_bound(0.0)),
    Bad("bound-below-zero", "golden-bound", CASE, first_bound(-1e-6)),
    Bad("bound-nan", "golden-bound", CASE, first_bound(float("nan"))),
    Bad("bound-endless", "golden-bound", CASE, first_bound(1e9)),
    Bad("bound-a-word", "golden-bound", CASE, first_bound("1e-6")),
    Bad("bound-gone", "golden-bound", CASE, drop("cases", 0, "bounds", "float32", "embedding")),
    Bad("bounds-emptied", "golden-bound", CASE, set_key("cases", 0, "bounds", to={})),
    Bad("stage-gone", "golden-stages", "pooled", tensors(STAGES, lambda kept: kept.pop(f"{CASE}/pooled"))),
    Bad("stage-nan", "golden-stages", "pooled", tensors(STAGES, scaled(f"{CASE}/pooled", np.nan))),
    Bad("stage-zeros", "golden-stages", "all zeros", tensors(STAGES, scaled(f"{CASE}/pooled", 0.0))),
    Bad("stage-without-a-bound-of-its-own", "golden-stages", "layer.00.out", set_key("cases", 0, "stages", to=[])),
    Bad(
        "stage-of-fewer-tokens",
        "golden-stage-shape",
        "tokens",
        tensors(STAGES, changed(f"{CASE}/layer.00.out", lambda rows: rows[:1])),
    ),
    Bad(
        "stage-narrower",
        "golden-stage-shape",
        "another than in",
        tensors(STAGES, changed(f"{CASE}/layer.00.out", lambda rows: rows[:, :40])),
    ),
    Bad(
        "stage-without-its-tokens",
        "golden-stage-shape",
        "tokens",
        tensors(STAGES, changed(f"{CASE}/layer.00.out", lambda rows: rows[0])),
    ),
    Bad("stages-emptied", "golden-leftover", STAGES, manifest(without_stages)),
    Bad(
        "tensor-of-no-case", "golden-leftover", "x/embedding", tensors(VALUES, lambda k: k.update({"x/embedding": 1.0}))
    ),
    Bad("defects-emptied", "golden-no-defects", "no known mistake", set_key("defects", to={})),
    Bad("defect-taken-out", "golden-leftover", "causal", manifest(without_a_defect)),
    Bad("defect-without-cases", "golden-defects", "causal", set_key("defects", "causal", "cases", to=[])),
    Bad("defect-without-separations", "golden-defects", "causal", set_key("defects", "causal", "separation", to={})),
    Bad("bounds-ten-thousandfold", "golden-separation", "changed", manifest(bounds_times(1e4))),
    Bad("bounds-a-tenth-wider", "golden-separation", "changed", manifest(bounds_times(1.1))),
    Bad(
        "separation-raised",
        "golden-separation",
        "causal",
        set_key("defects", "causal", "separation", "int4", "ratio", to=50.0),
    ),
    Bad(
        "distance-raised",
        "golden-separation",
        "causal",
        set_key("defects", "causal", "distances", "text-markup", to=1.9),
    ),
    Bad(
        "defect-vectors-nan",
        "golden-separation",
        "causal",
        tensors(DEFECTS, scaled("causal/text-markup", np.nan)),
    ),
    Bad("flags-emptied", "golden-flags", CASE, set_key("cases", 0, "flags", to=[])),
    Bad("flag-of-no-defect", "golden-flags", "no-such", manifest(lambda c: c["cases"][0]["flags"].append("no-such"))),
    Bad("one-bound-wider", "golden-flags", "text-arabic", manifest(lambda c: wider(c, "text-arabic"))),
    Bad("defect-vectors-gone", "golden-defects", "causal", tensors(DEFECTS, lambda kept: kept.clear())),
    Bad("defect-of-no-case", "golden-defects", "causal", set_key("defects", "causal", "cases", to=["no-such-case"])),
    Bad("defect-an-empty-entry", "golden-defects", "causal", set_key("defects", "causal", to={})),
    Bad(
        "separation-a-word",
        "golden-defects",
        "causal",
        set_key("defects", "causal", "separation", "float32", "ratio", to="far"),
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The twin, as links to its files; to be spoilt."""
    copy = tmp_path / "twin"
    for file in (file for file in TWIN.rglob("*") if file.is_file()):
        link = copy / file.relative_to(TWIN)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    return copy


def test_untouched_copy_opens(folder: Path):
    """Wrong if the damage that the other tests see is not theirs."""
    assert len(open_suite(folder).cases) == len(open_suite(TWIN).cases) > 0


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
def test_damage_is_refused(row: Bad, folder: Path, capsys: pytest.CaptureFixture[str]):
    """Wrong if a verdict could rest on this damaged folder, or its owner is not told in one line what happened."""
    row.spoil(folder)
    tracemalloc.start()
    began = time.perf_counter()
    try:
        status = main(["verify", "--suite", str(folder), "--backend", "numpy"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    out, err = capsys.readouterr()
    assert status == 2
    assert not out
    assert err.count("\n") == 1
    assert f"[{row.id}]" in err
    assert row.says in err
    assert time.perf_counter() - began < SECONDS
    assert peak < MEBIBYTES * 2**20


def test_refused_before_the_port_is_started(folder: Path, tmp_path: Path):
    """Wrong if a port is run for nothing, against vectors that cannot be trusted."""
    (folder / "manifest.json").unlink()
    assert main(["verify", "--suite", str(folder), "--command", f"touch {tmp_path / 'started'}"]) == 2
    assert not (tmp_path / "started").exists()


def test_unknown_suite_is_refused():
    """Wrong if a name that stands for nothing is verified against something else."""
    with pytest.raises(RefembedError, match="no golden vectors of 'no-such-model'") as caught:
        golden_folder("no-such-model")
    assert caught.value.id == "golden-missing"


def test_every_id_of_a_golden_folder_is_in_the_table():
    """Wrong if a way to refuse a golden folder was never seen, or fewer than twenty kinds are told apart."""
    ids = {row.id for row in ROWS}
    of_damage = {id for id in ERRORS if id.startswith("golden-")} - {"golden-data"}  # that one is of folders in order
    assert of_damage == ids
    assert len(ids) >= 20
    assert len({row.slug for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("name", SHIPPED)
def test_table_of_shipped_editions_is_true(name: str):
    """Wrong if a report says of these golden vectors that they are somebody else's, or of others that they are ours."""
    manifest = (golden_folder(name) / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest().startswith(SHIPPED[name])
    assert len(SHIPPED[name]) == 12


def test_every_shipped_folder_is_in_the_table():
    """Wrong if the golden vectors of a model may be changed without a report saying so."""
    assert set(SHIPPED) == {file.parent.name for file in TWIN.parent.glob("*/manifest.json")}


def test_changed_golden_vectors_are_said_to_be_foreign(folder: Path, capsys: pytest.CaptureFixture[str]):
    """Wrong if a whole and consistent folder that is not the shipped one gives a verdict under its name."""
    set_key("cases", 0, "why", to="another reason")(folder)
    assert main(["verify", "--suite", str(folder), "--backend", "numpy", "--levels", "vectors", "--json", "-"]) == 0
    out = capsys.readouterr().out
    assert "NOT the golden vectors of twin that refembed" in out.splitlines()[1]
    assert '"golden_shipped": false' in out
    set_key("model", "name", to="my-model")(folder)
    assert main(["verify", "--suite", str(folder), "--backend", "numpy", "--levels", "vectors"]) == 0
    assert "NOT the golden vectors" not in capsys.readouterr().out
