"""transformers conforms, and the mistakes put into it from outside are named by the diagnosis. All of them:
the confusion matrix; here a few of every family, in one process, all but one of them with pytest -m long.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import sampled

from refembed.conformance.defects import CONTROLS, DEFECTS
from refembed.conformance.port import CommandPort, PortError
from refembed.conformance.suite import Suite, golden_folder, open_suite
from refembed.conformance.verify import LEVELS, Report, verify

PORT = Path(__file__).parent / "transformers_port.py"
CHECKPOINT = golden_folder("twin") / "checkpoint"
COMMAND = f"{sys.executable} {PORT} {CHECKPOINT}"
JUDGED = ("vectors", "prompts", "laws")
SAMPLE = (
    "causal-full-layers",
    "window-short-on-the-left",
    "pads-attended",
    "pool-without-prompt",
    "prompt-capitalised",
    "cut-without-eos",
    "query-key-norm-late",
    "zeros",
)


@pytest.fixture(scope="module")
def suite() -> Suite:
    return open_suite(golden_folder("twin"))


@pytest.fixture(scope="module")
def port() -> Iterator[CommandPort]:
    command = CommandPort(COMMAND)
    yield command
    command.close()


@pytest.fixture(scope="module")
def said() -> tuple[dict[str, Any], list[str]]:
    """What --list prints, and the modules that were loaded for it."""
    program = f"""import runpy, sys
sys.argv = [{str(PORT)!r}, "--list"]
runpy.run_path({str(PORT)!r}, run_name="__main__")
print(*sys.modules)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    listed, modules = done.stdout.splitlines()
    return json.loads(listed), modules.split()


def with_mistake(port: CommandPort, suite: Suite, mistake: str) -> Report:
    port.call({"call": "start", "protocol": 1, "defect": mistake})
    try:
        return verify(suite, port, levels=JUDGED)
    finally:
        port.call({"call": "start", "protocol": 1})


def named(report: Report) -> list[str]:
    return [one.defect.id for one in report.explanations]


def test_right_port_conforms(port: CommandPort, suite: Suite) -> None:
    """Wrong if a right port with real padding is accused, or what the mistakes are put into is wrong by itself."""
    report = verify(suite, port)
    assert report.conforms
    assert {outcome.level for outcome in report.outcomes if outcome.verdict == "right"} == set(LEVELS)
    assert report.used()[0] <= 0.5


@pytest.mark.parametrize("mistake", sampled(SAMPLE, 8))
def test_mistake_is_named_first(port: CommandPort, suite: Suite, mistake: str) -> None:
    """Wrong if the diagnosis knows a mistake in the reference's code only."""
    report = with_mistake(port, suite, mistake)
    assert not report.conforms
    assert named(report)[:1] == [mistake]


@pytest.mark.long
@pytest.mark.parametrize("mistake", ["layers-swapped", "order-by-length", "accents-lost"])
def test_other_mistake_is_unknown(port: CommandPort, suite: Suite, mistake: str) -> None:
    """Wrong if a mistake that the catalogue does not know passes, or is taken for one that it knows."""
    report = with_mistake(port, suite, mistake)
    assert not report.conforms
    assert named(report) == []


@pytest.mark.long
def test_two_mistakes_are_one_of_the_two_or_unknown(port: CommandPort, suite: Suite) -> None:
    """Wrong if only one of two is made, or both are taken for a third."""
    report = with_mistake(port, suite, "causal+eos-missing")
    assert not report.conforms
    assert named(report) == []


@pytest.mark.long
def test_control_conforms(port: CommandPort, suite: Suite) -> None:
    """Wrong if a port is accused of a change that alters nothing."""
    assert with_mistake(port, suite, "dense-before-mean").conforms


@pytest.mark.long
def test_nothing_is_left_of_a_mistake(port: CommandPort, suite: Suite, said: Any) -> None:
    """Wrong if a mistake outlasts its turn, so that the next one is made together with it."""
    case = next(case for case in suite.cases if case.id == "batch-wide-gap")
    before = port.embed(case, case.prompted)
    other = []
    for mistake in [id for ids in said[0].values() for id in ids]:
        port.call({"call": "start", "protocol": 1, "defect": mistake})
        other.append(port.embed(case, case.prompted) != before)
    port.call({"call": "start", "protocol": 1})
    assert port.embed(case, case.prompted) == before
    assert sum(other) > 80


def test_unknown_mistake_is_refused(port: CommandPort) -> None:
    """Wrong if a misspelled mistake is taken for none, and the right port for one that nobody sees."""
    with pytest.raises(PortError, match="no mistake 'causl'"):
        port.call({"call": "start", "protocol": 1, "defect": "causl"})


@pytest.mark.long
def test_lists_are_the_catalogues(said: Any) -> None:
    """Wrong if an id moved on, a mistake of the catalogue is missing, or one outside it stands in it."""
    listed, _ = said
    known = [defect.id for defect in DEFECTS]
    assert sorted(listed["defects"]) == sorted(known)
    assert sorted(listed["controls"]) == sorted(CONTROLS)
    assert not set(listed["others"]) & {*known, *CONTROLS}
    assert len(listed["others"]) >= 12


@pytest.mark.long
def test_nothing_comes_from_refembed(said: Any) -> None:
    """Wrong if the port shares code with what judges it."""
    _, modules = said
    assert "transformers.models.gemma3.modeling_gemma3" in modules
    assert not [name for name in modules if name.partition(".")[0] == "refembed"]
