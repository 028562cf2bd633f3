"""The house rules: lint, types, the README's example, what the wheel carries, what is pinned and how large."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT_IN = ROOT / "refembed" / "default_model"


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_lint_and_types(command):
    """Wrong if the code does not pass the project's own ruff and mypy --strict settings."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_packages_carry_what_users_need(tmp_path):
    """Wrong if the source package is not the repository's files, or the wheel made of it lacks the types, the built-in
    model or the entry points, or carries tests.
    """
    built = subprocess.run([sys.executable, "-m", "build", "-o", tmp_path, ROOT], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        carried = {name.partition("/")[2] for name in archive.getnames()}
    repository = {str(file.relative_to(ROOT)) for file in tracked_files()} - {".ci/run"}
    assert repository <= carried
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    needed = {"py.typed", "reference/model.py", "default_model/model.safetensors", "default_model/tokenizer.json"}
    needed |= {
        "golden/twin/manifest.json",
        "golden/twin/checkpoint/model.safetensors",
        "golden/embeddinggemma-300m/manifest.json",
        "golden/embeddinggemma-300m/defects.safetensors",
        "golden/quantised/manifest.json",
        "golden/losses/manifest.json",
        "golden/gradients/manifest.json",
        "golden/ul2/cases.json",
        "golden/vectors/cases.json",
        "bench/texts.txt",
        "inspection/page.html",
        "inspection/page.css",
        "inspection/page.js",
        "bench/peers/__init__.py",
    }
    assert needed <= {name.removeprefix("refembed/") for name in names}
    assert {"refembed_numba/backend.py", "refembed_numba/encoder.py", "refembed_torch/backend.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "spec/"))]
    assert "[refembed.backends]" in points
    assert wheel.stat().st_size < 20 * 2**20


def test_built_in_model_is_small():
    """Wrong if what everybody downloads outgrows the 12 MB it was given."""
    assert sum(file.stat().st_size for file in BUILT_IN.rglob("*") if file.is_file()) <= 12_000_000


@pytest.mark.parametrize("page", ["README.md", "spec/running.md"])
def test_python_blocks_run(page):
    """Wrong if a page's Python example does not run as written (on the built-in model in place of the real one)."""
    (block,) = re.findall(r"```py(?:thon)?\n(.*?)```", (ROOT / page).read_text(), re.S)
    exec(block.replace('"google/embeddinggemma-300m"', ""), {})


def beside(line: str) -> dict[str, str]:
    """A line of README's table of others, by program."""
    rows = [
        row.strip("|").split(" | ") for row in (ROOT / "README.md").read_text().splitlines() if row.startswith("| ")
    ]
    (names,) = (row for row in rows if len(row) == 7 and row[1] == "refembed")
    (cells,) = (row for row in rows if len(row) == 7 and row[0].strip().startswith(line))
    return dict(zip(names[1:], (cell.strip() for cell in cells[1:]), strict=True))


def test_table_of_others():
    """Wrong if README says of sentence-transformers or refembed what is not in the package that is installed here."""
    import inspect
    from importlib.metadata import entry_points, version

    import sentence_transformers as other
    from sentence_transformers import SentenceTransformer

    from refembed.vectors import QUANTIZED

    (name,) = (name for name in beside("CUDA") if name.startswith("sentence-transformers"))
    assert name.split()[1].split(".")[:2] == version("sentence-transformers").split(".")[:2]
    options = inspect.signature(SentenceTransformer.encode).parameters
    for line, option in [("prompts by", "prompt_name"), ("shorter", "truncate_dim"), ("vectors in", "precision")]:
        assert beside(line)[name].startswith("yes")
        assert option in options
    assert "ONNX or OpenVINO" in beside("weights in")[name]
    assert other.export_dynamic_quantized_onnx_model
    assert other.export_static_quantized_openvino_model
    assert beside("sparse")[name] == "yes"
    assert other.SparseEncoder
    assert other.CrossEncoder
    assert not [point for point in entry_points(group="console_scripts") if "sentence_transformers" in point.value]
    assert beside("HTTP")[name] == "no"
    commands = set(entry_points(group="refembed.commands").names)
    assert {"serve", "train"} <= commands
    assert beside("HTTP")["refembed"].startswith("OpenAI")
    assert {"int8", "binary"} <= set(QUANTIZED)
    assert "parquet" in entry_points(group="refembed.readers").names


def test_only_constraints_pin():
    """Wrong if a version is fixed anywhere but in constraints.txt."""
    assert "torch==" in (ROOT / "constraints.txt").read_text()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [settings["project"]["dependencies"], *settings["project"]["optional-dependencies"].values()]
    assert not [need for group in [*groups, settings["build-system"]["requires"]] for need in group if "==" in need]


def test_no_weights_in_the_repository():
    """Wrong if a file of the size of a real weight matrix is tracked; golden vectors and the built-in model have limits
    of their own.
    """
    others = [file for file in tracked_files() if "golden" not in file.parts and BUILT_IN not in file.parents]
    assert max(file.stat().st_size for file in others) < 2_000_000


def test_links_lead_somewhere():
    """Wrong if a link between the repository's own pages is broken."""
    pages = (
        file for file in tracked_files() if file.suffix == ".md" and "spec" not in file.parts
    )  # spec's tests do those
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
