"""What docstrings name as their witness, golden case or test, fails when the function is changed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("witnessed.py")
# The functions whose witness is asked here; all others have theirs held by the tests that witnessed.py names.
FEWEST = 20
MASK = "decoder.causal_mask=tests/reference/test_reference_decoder.py"


def answers(*asked: str) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, SCRIPT, *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def false_witnesses(found: list[dict[str, Any]]) -> list[str]:
    """Functions whose witness fails as they are, or passes for more than one in four of their changes."""
    return [one["function"] for one in found if not one["sound"] or 4 * len(one["unseen"]) > one["tried"]]


@pytest.mark.long
def test_every_witness_fails_when_its_function_changes() -> None:
    """Wrong if a docstring names a case or a test that does not see its function."""
    found = answers()
    assert len(found) >= FEWEST
    assert all(one["tried"] for one in found)
    assert false_witnesses(found) == [], json.dumps(found, indent=1)


@pytest.mark.long
def test_planted_false_witnesses_are_noticed() -> None:
    """Wrong if a docstring could name a case or a test that passes whatever its function does."""
    planted = {
        f"{MASK}::test_the_loss_by_hand": True,
        "ul2.corrupt=tests/reference/test_reference_ul2.py::test_the_mixture_is_the_published_one": True,
        "pooling.first_pool=golden/gradients::last-pooler": True,
        "pooling.last_pool=golden/gradients::last-pooler": False,
    }
    found = answers(*planted)
    assert all(one["sound"] for one in found)
    assert [bool(false_witnesses([one])) for one in found] == list(planted.values())


@pytest.mark.long
def test_a_witness_that_does_not_run_is_no_witness() -> None:
    """Wrong if a test that is not there counted as one that fails."""
    done = subprocess.run([sys.executable, SCRIPT, f"{MASK}::test_nothing"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "did not run" in done.stderr
