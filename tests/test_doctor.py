"""What `refembed doctor` says of backends that have more to say, and compiling ahead."""

import re
from pathlib import Path

import pytest

from refembed import backend
from refembed.backend import Found
from refembed.cli import main
from refembed.loopback_backend import LoopbackBackend


class Telling(LoopbackBackend):
    """A backend that describes itself."""

    name, precisions = "telling", ("float32", "float64")

    def describe(self) -> list[str]:
        return ["three wheels", "no brakes"]


class Stumbling(Telling):
    name = "stumbling"

    def describe(self) -> list[str]:
        raise OSError("lost for words")


class Waiting(Telling):
    """One that cannot run here."""

    name = "waiting"

    def why_not(self) -> str:
        return "it needs a full moon"


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """refembed doctor where these backends alone are installed: its standard output."""

    def run(*backends: LoopbackBackend, arguments: tuple[str, ...] = ()) -> str:
        found = [Found(one.name, one, one.why_not()) for one in backends]
        monkeypatch.setattr("refembed.cli.doctor.find_backends", lambda: found)
        monkeypatch.setattr("refembed.cli.doctor.choose_backend", lambda _: (backends[0], "it is first"))
        monkeypatch.setattr(backend, "registered", lambda: [Point(one) for one in backends])
        assert main(["doctor", *arguments]) == 0
        return capsys.readouterr().out

    return run


class Point:
    """An entry point."""

    def __init__(self, one: LoopbackBackend) -> None:
        self.name, self.value, self.load = one.name, "nowhere:BACKEND", lambda: one


def test_backends_describe_themselves(doctor) -> None:
    """Wrong if what a backend says of this machine is lost, or stands under another backend."""
    out = doctor(Telling(), LoopbackBackend())
    assert "  telling: can run in float32, float64\n    three wheels\n    no brakes\n  loopback: can run" in out


def test_describing_is_no_duty(doctor) -> None:
    """Wrong if a backend without a description is no backend, or one that fails to describe itself ends the doctor."""
    out = doctor(Stumbling(), LoopbackBackend())
    assert "cannot describe itself: OSError: lost for words" in out
    assert "loopback: can run" in out


def test_who_cannot_run_is_not_asked(doctor) -> None:
    """Wrong if a backend whose library is missing is asked what it found with it."""
    out = doctor(Waiting())
    assert "waiting: it needs a full moon" in out
    assert "three wheels" not in out


@pytest.mark.parametrize("named", [True, False])
def test_warm(doctor, small_folder: Path, named: bool) -> None:
    """Wrong if a precision is left cold, another model than the one named is loaded, or nothing is said."""
    out = doctor(Telling(), arguments=("--warm", str(small_folder)) if named else ("--warm",))
    model = str(small_folder) if named else "default_model"
    assert re.search(rf"warming backend telling with .*{re.escape(model)}\n", out)
    assert re.findall(r"  (\S+): loaded and embedded a text in \d+\.\d s\n", out) == ["float32", "float64"]


def test_nothing_is_warmed_unasked(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a plain doctor loads a model."""
    monkeypatch.setattr("refembed.cli.doctor.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert "warming" not in doctor(Telling())


def test_warm_refuses_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if a mistyped folder ends in a traceback or in status 0."""
    assert main(["doctor", "--warm", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_numba_names_its_paths(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if nobody can tell which instructions a product takes on this machine, or where compiled code is kept."""
    pytest.importorskip("numba")
    from refembed_numba.kept import cache_folder
    from refembed_numba.matmul import BYTE_PATH, CPU, FLOAT_PATH

    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"  numba: can run.*\n    CPU {CPU}: \w+(, \w+)*\n", out)
    assert f"float32 by {FLOAT_PATH.name}, int8 by {BYTE_PATH.name}\n" in out
    assert f"compiled code in {cache_folder() / 'numba'}\n" in out
