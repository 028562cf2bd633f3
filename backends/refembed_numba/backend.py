"""backend="numba", found through the entry-point group refembed.backends. Numba is imported only in load."""

import platform
import sys
from importlib.util import find_spec

from refembed.backend import Encoder
from refembed.checkpoint import Checkpoint
from refembed.tokenizer import Tokenizer

MACHINES = {"x86_64", "amd64", "arm64", "aarch64"}


class NumbaBackend:
    """Compiled for the CPU it runs on.

    In int8 rows are rounded to 8 bits on their way into a product, and weights are a quantised checkpoint's own levels
    of 8 or 4 bits, as they are stored; of a checkpoint of floats they are rounded to 8 bits at load. In float32 a
    quantised checkpoint's weights become floats.
    """

    name = "numba"
    priority = 10
    precisions = ("float32", "int8")

    def why_not(self) -> str | None:
        if find_spec("numba") is None:
            return "the numba package is not installed (pip install 'refembed[numba]')"
        if platform.machine().lower() not in MACHINES:
            return f"it is for x86-64 and 64-bit Arm, and this is {platform.machine()}; take backend numpy"
        if sys.byteorder != "little":
            return "it is for little-endian CPUs; take backend numpy"
        return None

    def tokenizer(self, checkpoint: Checkpoint) -> Tokenizer:
        from .tokenizer import open_tokenizer

        return open_tokenizer(checkpoint.tokenizer, checkpoint.config)

    def usual(self, checkpoint: Checkpoint) -> str:
        return "int8" if checkpoint.quantized else "float32"

    def describe(self) -> list[str]:
        from refembed.cache import cache_folder

        from .compiled import stamp, writable
        from .instructions import BYTE_PATHS, CPU, FLOAT_PATHS
        from .matmul import BYTE_PATH, FEATURES, FLOAT_PATH

        matter = {"fma"}.union(*(path.needs for path in FLOAT_PATHS + BYTE_PATHS))
        folder = cache_folder() / "numba"
        kept = "" if writable(folder / stamp()) else ", which cannot be written: every process compiles anew"
        return [
            f"CPU {CPU}: {', '.join(sorted(matter & FEATURES)) or 'no feature that matters here'}",
            f"float32 by {FLOAT_PATH.name}, int8 by {BYTE_PATH.name}",
            "quantised models in int8 unless float32 is asked for: their weights of 8 or 4 bits as they are stored",
            f"compiled code in {folder}{kept}",
        ]

    def load(self, checkpoint: Checkpoint, precision: str, threads: int | None) -> Encoder:
        from .encoder import NumbaEncoder

        return NumbaEncoder(checkpoint, precision, threads)


BACKEND = NumbaBackend()
