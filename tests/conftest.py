"""Where the tests find the real weights and data, and a loud word at the end on what did not run for want of them."""

import os
from collections import Counter
from pathlib import Path

import pytest
from support import SMALL, write_checkpoint

REQUIRED = set(filter(None, os.environ.get("REFEMBED_REQUIRE", "").split(",")))
MISSING: Counter[str] = Counter()


def missing(what: str, how: str) -> None:
    """Skip this test for want of something, or fail it where REFEMBED_REQUIRE names that thing."""
    if what in REQUIRED:
        pytest.fail(f"REFEMBED_REQUIRE={what}, and there is none: {how}", pytrace=False)
    MISSING[f"{what}: {how}"] += 1
    pytest.skip(f"no {what}: {how}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason, count in MISSING.items():
        terminalreporter.write_sep("!", f"{count} tests DID NOT RUN, no {reason}", red=True, bold=True)


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder of the real checkpoint."""
    folder = Path(os.environ.get("EMBEDDINGGEMMA_DIR") or Path.home() / ".cache" / "embeddinggemma-300m")
    if not (folder / "model.safetensors").exists():
        missing("weights", "set EMBEDDINGGEMMA_DIR to a folder of google/embeddinggemma-300m")
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of evaluation and training data."""
    folder = os.environ.get("REFEMBED_DATA")
    if not folder or not Path(folder).is_dir():
        missing("data", "set REFEMBED_DATA to the data folder")
    return Path(str(folder))


@pytest.fixture(scope="session")
def real(weights: Path):
    """The real model on the NumPy backend."""
    import refembed

    return refembed.load(weights, backend="numpy")


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint in the released layout; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("small"), SMALL)
