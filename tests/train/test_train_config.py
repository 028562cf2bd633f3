"""Training files: every wrong key is named with its file; paths are the file's own."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from refembed_torch.train.chance import generator
from refembed_torch.train.config import Optimizer, Run, load, plain, read

from refembed.errors import RefembedError


@dataclass(frozen=True)
class Part:
    file: Path
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate is {self.rate}, at least 0 needed")


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    pair: tuple[float, int] = (1.0, 2)
    kind: Literal["a", "b"] = "a"
    rates: dict[str, float] = field(default_factory=dict)
    other: Part | None = None
    on: bool = False


FILE = Path("/somewhere/train.toml")


def test_a_table_becomes_its_dataclass(monkeypatch):
    """Wrong if a nested table, array, choice or path did not arrive as written, or a whole number not as a number."""
    monkeypatch.setenv("PLACE", "/c")
    table = {
        "parts": [{"file": "a.jsonl", "rate": 2}, {"file": "/b.jsonl"}],
        "pair": [3, 4],
        "kind": "b",
        "rates": {"x": 1},
        "other": {"file": "$PLACE/d"},
        "on": True,
    }
    found = read(Whole, table, FILE)
    assert found == Whole(
        (Part(Path("/somewhere/a.jsonl"), 2.0), Part(Path("/b.jsonl"))),
        (3.0, 4),
        "b",
        {"x": 1.0},
        Part(Path("/c/d")),
        True,
    )
    assert type(found.parts[0].rate) is type(found.rates["x"]) is float
    assert plain(found)["parts"][1] == {"file": "/b.jsonl", "rate": 1.0}


def test_a_file_is_the_same_from_everywhere(tmp_path, monkeypatch):
    """If this failed, a killed run could not go on from another folder: its settings would look like others."""
    monkeypatch.chdir(tmp_path)
    assert read(Part, {"file": "a/b"}, Path("train.toml")) == read(Part, {"file": "a/b"}, tmp_path / "train.toml")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"parts": [], "kinds": 1}, "kinds is not a key of this table; did you mean kind?"),
        ({"parts": [], "zzz": 1}, "zzz is not a key of this table; there are parts, pair"),
        ({}, "parts is missing"),
        ({"parts": [{"rate": 1.0}]}, "parts[0].file is missing"),
        ({"parts": [{"file": "a", "rate": -1.0}]}, "parts[0] rate is -1.0, at least 0 needed"),
        ({"parts": [{"file": "a", "rate": "1"}]}, "parts[0].rate is '1', a number needed"),
        ({"parts": [{"file": "a", "rate": True}]}, "parts[0].rate is True, a number needed"),
        ({"parts": {"file": "a"}}, "parts is a table, an array needed"),
        ({"parts": ["a"]}, "parts[0] is 'a', a table needed"),
        ({"parts": [{"file": 3}]}, "parts[0].file is 3, a path needed"),
        (
            {"parts": [{"file": "$NOT_SET_AT_ALL/a"}]},
            "parts[0].file is '$NOT_SET_AT_ALL/a', and the environment has no",
        ),
        ({"parts": [{"file": ""}]}, "parts[0].file is '', a path needed"),
        ({"parts": [{"file": "a\0b"}]}, "parts[0].file is 'a\\x00b', a path needed"),
        ({"parts": [], "pair": [1]}, "pair has 1 values, 2 needed"),
        ({"parts": [], "pair": [1, 2.5]}, "pair[1] is 2.5, a whole number needed"),
        ({"parts": [], "kind": "c"}, "kind is 'c', one of a, b needed"),
        ({"parts": [], "rates": 3}, "rates is 3, a table needed"),
        ({"parts": [], "rates": {"x": "y"}}, "rates.x is 'y', a number needed"),
        ({"parts": [], "on": 1}, "on is 1, true or false needed"),
        (3, "the whole is 3, a table needed"),
    ],
)
def test_a_wrong_table_is_named(table, said):
    """If this failed, a slip of a key would go unseen, or its place unsaid."""
    with pytest.raises(RefembedError) as caught:
        read(Whole, table, FILE)
    assert caught.value.id == "train-config"
    assert caught.value.reason.startswith(f"{FILE}: {said}")


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (Run, {"out": "a", "steps": 0}),
        (Run, {"out": "a", "steps": 1, "keep": 0}),
        (Optimizer, {"learning_rate": -1.0}),
        (Optimizer, {"learning_rate": float("nan")}),
        (Optimizer, {"learning_rate": 1.0, "warm_up": 1.5}),
        (Optimizer, {"learning_rate": 1.0, "epsilon": float("inf")}),
        (Optimizer, {"learning_rate": 1.0, "betas": [0.9, 1.0]}),
    ],
)
def test_numbers_out_of_range_are_refused(kind, table):
    """If this failed, a run would start that cannot go well."""
    with pytest.raises(RefembedError, match=r"train\.toml"):
        read(kind, table, FILE)


@pytest.mark.parametrize("content", [None, b"a = ", b"a = '\xff'"])
def test_a_file_that_is_no_toml(tmp_path, content):
    """Wrong if a missing or damaged file raised anything else than the one line."""
    file = tmp_path / "x.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RefembedError) as caught:
        load(file)
    assert caught.value.id == "train-config"


def test_random_numbers_depend_on_seed_and_place_alone():
    """If this failed, a resumed run would draw other numbers than the killed one, or two places the same."""
    np.random.seed(0)
    first = generator(1, "set", 2).integers(2**62, size=4)
    np.random.seed(1)
    assert generator(1, "set", 2).integers(2**62, size=4).tolist() == first.tolist()
    places = [(1, "a", 1), (1, "a", 2), (2, "a", 1), (1, "a1"), (1, "a", "1"), (1, "a\0int 1")]
    assert len({tuple(generator(*place).integers(2**62, size=2)) for place in places}) == len(places)
