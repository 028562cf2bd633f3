"""The C port, compiled for a test."""

import shutil
import subprocess
from pathlib import Path

from support import missing

from refembed.conformance.suite import golden_folder

SOURCE = Path(__file__).parent / "c" / "twin.c"
CHECKPOINT = golden_folder("twin") / "checkpoint"
STRICT = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror")


def compile_port(target: Path, *flags: str) -> Path:
    """The program at `target`, or the test skipped for want of a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or missing("compiler", "install gcc or clang")
    done = subprocess.run([str(compiler), *flags, "-o", target, SOURCE, "-lm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target
