"""backend="torch", found through the entry-point group refembed.backends. PyTorch is imported only in load."""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from refembed.backend import Encoder
from refembed.checkpoint import Checkpoint
from refembed.errors import RefembedError

PRECISIONS = ("float32", "bfloat16")
REFUSED = {
    "float16": "EmbeddingGemma's residual stream passes its largest number, 65,504, around layer 22; take bfloat16, "
    "which is as small and as fast"
}
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's on Linux, Windows' own within Linux, AMD's
COMPILE = "REFEMBED_TORCH_COMPILE"
ABOVE_THE_CPU, BELOW_NUMBA = 20, 5


class TorchBackend:
    """On CUDA's current device where there is one, else on the CPU; CUDA_VISIBLE_DEVICES= keeps it there.

    refused   precisions it has a reason against
    """

    name = "torch"
    precisions = PRECISIONS
    refused = REFUSED

    @property
    def priority(self) -> int:
        return ABOVE_THE_CPU if use_cuda() else BELOW_NUMBA

    def why_not(self) -> str | None:
        if find_spec("torch") is None:
            return "the torch package is not installed (pip install 'refembed[torch]')"
        return import_fault() if has_driver() else None

    def describe(self) -> list[str]:
        import torch

        from .products import onednn

        if not use_cuda():
            return [f"PyTorch {torch.__version__} on the CPU, float32 by {'oneDNN' if onednn() else 'its BLAS'}"]
        device = f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}"
        compiled = f"{COMPILE}=1: {'compiled' if compile_asked() else 'not asked for; pays for many texts'}"
        return [device, compiled, *attention_lines(torch.device("cuda"), compile_asked())]

    def load(self, checkpoint: Checkpoint, precision: str, threads: int | None) -> Encoder:
        fault = import_fault()  # which why_not asks for only where there is a driver
        if fault:
            raise RefembedError("backend-cannot-run", f"backend torch cannot run here: {fault}")
        from .encoder import TorchEncoder

        return TorchEncoder(checkpoint, precision, threads, compiling=compile_asked())

    def device(self) -> str:
        return "cuda" if use_cuda() else "cpu"

    def training(
        self, checkpoint: Checkpoint, precision: str, threads: int | None, columns: Sequence[Sequence[Any]]
    ) -> Callable[[], float]:
        from .timed import step_on

        return step_on(checkpoint.folder, precision, columns, threads, compiling=compile_asked())


def check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        why = f": {REFUSED[precision]}" if precision in REFUSED else ""
        raise RefembedError(
            "precision-unknown", f"backend torch computes in {', '.join(PRECISIONS)}, not {precision!r}{why}"
        )


def has_driver() -> bool:
    return any(map(os.path.exists, DRIVERS)) or shutil.which("nvidia-smi") is not None


@cache
def import_fault() -> str | None:
    """Why PyTorch, which is installed, cannot be imported, if it cannot. Asking imports it."""
    try:
        import torch  # noqa: F401
    except Exception as error:  # OSError for a library of CUDA's that is missing or of another version
        return (
            f"PyTorch cannot be imported ({type(error).__name__}: {error}); install a build for this machine's driver"
        )
    return None


@cache
def use_cuda() -> bool:
    """Whether PyTorch sees a CUDA device; asked, which imports PyTorch, only where there is a driver.

    Never raises: priority asks it, for which a PyTorch that is broken must not keep other backends from being found.
    """
    if not has_driver() or find_spec("torch") is None or import_fault():
        return False
    import torch

    return torch.cuda.is_available()


def attention_lines(device: Any, compiling: bool) -> list[str]:
    """For each precision the way of attention that the released shape gets on a device, and why not a faster one."""
    from refembed.reference import Config

    from .attention import choose_way
    from .parameters import float_type

    lines = []
    for precision in PRECISIONS:
        way, why = choose_way(Config(), device, float_type(precision), compiling, False)
        lines.append(f"attention in {precision} by {way}{f' ({why})' if why else ''}")
    return lines


def compile_asked() -> bool:
    """Whether the environment asks for torch.compile: about a minute once, worth it for many texts on CUDA."""
    return os.environ.get(COMPILE, "") not in ("", "0")


BACKEND = TorchBackend()
