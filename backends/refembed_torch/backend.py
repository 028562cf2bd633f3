"""backend="torch", found through the entry-point group refembed.backends. PyTorch is imported only in load."""

import os
import shutil
from functools import cache
from importlib.util import find_spec

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
        return None

    def describe(self) -> list[str]:
        import torch

        from .products import onednn

        if not use_cuda():
            return [f"PyTorch {torch.__version__} on the CPU, float32 by {'oneDNN' if onednn() else 'its BLAS'}"]
        device = f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}"
        return [device, f"{COMPILE}=1: {'compiled' if compile_asked() else 'not asked for; pays for many texts'}"]

    def load(self, checkpoint: Checkpoint, precision: str, threads: int | None) -> Encoder:
        from .encoder import TorchEncoder

        return TorchEncoder(checkpoint, precision, threads, compiling=compile_asked())


def check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        why = f": {REFUSED[precision]}" if precision in REFUSED else ""
        raise RefembedError(
            "precision-unknown", f"backend torch computes in {', '.join(PRECISIONS)}, not {precision!r}{why}"
        )


@cache
def use_cuda() -> bool:
    """Whether PyTorch sees a CUDA device; asked, which imports PyTorch, only where there is a driver."""
    if not any(map(os.path.exists, DRIVERS)) and shutil.which("nvidia-smi") is None:
        return False
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def compile_asked() -> bool:
    """Whether the environment asks for torch.compile: about a minute once, worth it for many texts on CUDA."""
    return os.environ.get(COMPILE, "") not in ("", "0")


BACKEND = TorchBackend()
