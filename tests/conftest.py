"""Where the tests find the real weights and data, and a loud word at the end on what did not run for want of them."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # before NumPy is there: threads of several processes would spin on each other
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")

from support import REQUIRED, SMALL, WANTS, missing, write_checkpoint

settings.register_profile("refembed", deadline=None, print_blob=True)  # other work on the machine is no fault
settings.load_profile("refembed")


def pytest_configure(config: pytest.Config) -> None:
    unknown = REQUIRED - set(WANTS)
    if unknown:
        raise pytest.UsageError(f"REFEMBED_REQUIRE names {', '.join(unknown)}; it knows {', '.join(WANTS)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.items():
        terminalreporter.write_sep(
            "!", f"{count} tests DID NOT RUN: {reason.removeprefix('Skipped: ')}", red=True, bold=True
        )


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


@pytest.fixture(autouse=True)
def numpy_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test names no backend it means NumPy's, to whose last bit many compare."""
    monkeypatch.setattr("refembed_numba.backend.NumbaBackend.priority", -1)
    monkeypatch.setattr("refembed_torch.backend.TorchBackend.priority", -1)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint in the released layout; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by Playwright."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        missing("browser", "install Chromium (on Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    quiet = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--no-first-run", *quiet])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """An empty page that reaches no network: a test fails at its end for any console error, exception or request that
    failed. `page.goto(file.as_uri())` opens a file.
    """
    context, wrong = browser.new_context(), []
    context.route("http*://**", lambda route: route.abort())
    opened = context.new_page()
    opened.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("requestfailed", lambda request: wrong.append(f"{request.url}: {request.failure}"))
    yield opened
    context.close()
    assert not wrong, wrong
