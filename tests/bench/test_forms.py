"""The command that writes spec/forms.md: its own arithmetic, and that it goes on where it ended."""

import json
from pathlib import Path

import forms
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays

FLOATS = arrays(np.float32, 8, elements=some.floats(-(2.0**99), 2.0**99, width=32))


@given(FLOATS)
def test_bfloat16_is_pytorchs(values: np.ndarray) -> None:
    """Wrong if the bfloat16 checkpoint holds other numbers than the nearest, ties to even."""
    np.testing.assert_array_equal(
        forms.to_bfloat16(values).view(np.uint16), torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    )


def test_a_result_is_made_once(tmp_path: Path) -> None:
    """Wrong if a run that goes on measures again what it has, or keeps half a result."""
    file = tmp_path / "scores.json"
    with pytest.raises(TypeError):
        forms.kept(file, lambda: {"value": object()})
    assert not file.exists()
    assert forms.kept(file, lambda: {"value": 1}) == {"value": 1}
    assert forms.kept(file, lambda: pytest.fail("made again")) == {"value": 1}


@pytest.mark.parametrize("data", [None, "no-such-folder"])
def test_without_data_it_ends_at_once(
    data: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong if an hour of calibrating comes before a traceback."""
    monkeypatch.delenv("REFEMBED_DATA", raising=False)
    place = tmp_path / "place"
    options = ["--data", str(tmp_path / data)] if data else []
    monkeypatch.setattr("sys.argv", ["forms.py", str(tmp_path), str(place), "texts.jsonl", *options])
    with pytest.raises(SystemExit):
        forms.main()
    assert "eval/stsb_multi_mt" in capsys.readouterr().err
    assert not place.exists()


def test_texts_are_embedded_once_for_all_lengths() -> None:
    """Wrong if every length costs a run of the model, or another text's or task's vectors are given."""
    asked = []

    def encode(texts: list[str], task: str, titles: list[str] | None = None) -> np.ndarray:
        asked.append((texts, task))
        return np.full((len(texts), 4), len(asked), np.float32)

    remembered = forms.Remembered(encode)
    short, whole = remembered.at(2)(["a", "b"], "query"), remembered.at(4)(["a", "b"], "query")
    assert (short.shape, whole.shape) == ((2, 2), (2, 4))
    np.testing.assert_allclose(short, np.sqrt(0.5), rtol=1e-6)
    remembered.at(4)(["a", "b"], "document")
    remembered.at(4)(["a"], "query")
    assert asked == [(["a", "b"], "query"), (["a", "b"], "document"), (["a"], "query")]


def test_the_page_says_what_is_lost(tmp_path: Path) -> None:
    """Wrong if a row's mean loss is not its scores' distance to float32's, or a form's row has another's numbers."""
    names = ("float32", "int4-block")
    for place, name in enumerate(names):
        (tmp_path / name / "2_Dense").mkdir(parents=True)
        for folder in ("", "2_Dense"):
            (tmp_path / name / folder / "model.safetensors").write_bytes(bytes((place + 1) * 1_000_000))
    subjects = [
        {"name": name, "peak_memory_mib": 100 + place, "start_s": 0.5, "query_p50_ms": 5.0, "tokens_per_s": 1000.0,
         "cosine_mean": 1.0, "cosine_least": 0.9}
        for place, name in enumerate(names)
    ]  # fmt: skip
    timed = {
        "subjects": subjects[::-1], "machine": {"processor": "P"}, "threads": 2, "rounds": 1,
        "workload": {"queries": {"mean_tokens": 18.0}, "documents": {"mean_tokens": 122.0}},
    }  # fmt: skip
    whole = dict.fromkeys(forms.TASKS, 80.0)
    judged = {
        "float32": {"768 float32": whole, "128 binary": whole | {"CoSQA": 70.0}},
        "int4-block": {"768 float32": whole | {"SICK-R": 79.0, "CoSQA": 81.5}},
    }
    folders = {name: tmp_path / name for name in names}
    page = forms.page(folders, json.loads(json.dumps(timed)), judged, "texts.jsonl", "today")
    rows = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ") for row in page.splitlines() if "|" in row}
    assert rows["int4-block"][:3] == ["int4-block", "4", "101"]
    assert rows["int4-block"][-6:] == ["80.00", "79.00", "80.00", "81.50", "80.00", "-0.10"]
    assert rows["float32"][-1] == "0.00"
    assert rows["128"] == ["128", "binary", "16", "80.00", "80.00", "80.00", "70.00", "80.00", "2.00"]
