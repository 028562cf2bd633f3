"""what is installed here: backends and why not, threads, caches, model folders

refembed doctor
refembed doctor --warm
"""

import argparse
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..backend import Found, choose_backend, find_backends
from ..embedder import DEFAULT_MODEL, load

PACKAGES = (
    "refembed",
    "numpy",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "threadpoolctl",
    "numba",
    "torch",
    "usearch",
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--warm",
        metavar="MODEL",
        nargs="?",
        const=str(DEFAULT_MODEL),
        help="load a model (the built-in one) at every precision of the best backend, which keeps what it compiles",
    )


def run(given: argparse.Namespace) -> int:
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        print(f"  {package} {installed(package)}")
    print("backends, best first")
    for found in find_backends():
        precisions = f" in {', '.join(found.backend.precisions)}" if found.backend else ""
        print(f"  {found.name}: {found.why_not or 'can run'}{precisions}")
        for line in described(found):
            print(f"    {line}")
    print(f"threads: {os.cpu_count()} processors" + "".join(threads_asked()))
    print("models")
    print(f"  built-in: {DEFAULT_MODEL}")
    for folder in hub_models():
        print(f"  {folder}")
    if given.warm is not None:
        warm(given.warm)
    return 0


def warm(model: str) -> None:
    """Load and use a model at every precision of the backend that is taken where none is named."""
    backend, _ = choose_backend(None)
    print(f"warming backend {backend.name} with {model}", flush=True)
    for precision in backend.precisions:
        start = time.perf_counter()
        load(model, backend=backend.name, precision=precision).encode("warm")
        print(f"  {precision}: loaded and embedded a text in {time.perf_counter() - start:.1f} s", flush=True)


def described(found: Found) -> list[str]:
    """What a backend that can run says of itself."""
    describe = getattr(found.backend, "describe", None)
    if found.why_not or describe is None:
        return []
    try:
        return list(describe())
    except Exception as error:
        return [f"cannot describe itself: {type(error).__name__}: {error}"]


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def threads_asked() -> list[str]:
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return [f", {name}={os.environ[name]}" for name in names if name in os.environ]


def hub_models() -> list[str]:
    """The hub client's cache, whether it may go online, and the Gemma embedding models in it."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return ["hub: huggingface_hub is not installed, so models are loaded from folders only"]
    cache = Path(constants.HF_HUB_CACHE)
    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    folders = [str(folder) for folder in sorted(cache.glob("models--*embeddinggemma*/snapshots/*"))]
    return [f"hub cache: {cache}{offline}", *(folders or ["no embeddinggemma in it yet"])]
