"""What an install weighs: python tests/bench/install_size.py [EXTRA | PACKAGE==VERSION ...]

For refembed itself and for each extra (all but those of developers, where none is named), and for each other package
named, a fresh virtual environment: how many packages pip put there, not counting itself, and how many millions of bytes
lie in it. PyTorch is the build that constraints.txt fixes, for CPUs. It asks the package index, and takes minutes.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEVELOPERS = {"audit", "docs", "golden", "test"}


def size(need: str) -> tuple[int, float]:
    """Packages and megabytes of an environment with this requirement in it, over an empty one."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        (packages,) = Path(folder).glob("lib/python*/site-packages")
        before = measure(packages)
        pip = [f"{folder}/bin/pip", "install", "-q", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, need], check=True, stderr=subprocess.DEVNULL)
        count, bytes = measure(packages)
        return count - before[0], (bytes - before[1]) / 1e6


def measure(packages: Path) -> tuple[int, int]:
    files = [file for file in packages.rglob("*") if file.is_file() and not file.is_symlink()]
    return len(list(packages.glob("*.dist-info"))), sum(file.stat().st_size for file in files)


def main(named: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    others = [name for name in named if name not in extras]
    wanted = [name for name in named if name in extras] or ([] if others else [*extras.keys() - DEVELOPERS])
    needs = [] if named else [(".", str(ROOT))]
    needs += [(f".[{extra}]", f"{ROOT}[{extra}]") for extra in sorted(wanted)]
    print("| install | packages | MB |\n| --- | --- | --- |")
    for name, need in [*needs, *((other, other) for other in others)]:
        count, megabytes = size(need)
        print(f"| {name} | {count} | {megabytes:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
