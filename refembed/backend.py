"""What a backend is, and how one is found: the entry-point group refembed.backends.

A third party adds one by naming a Backend object in that group; nothing here knows the backends by name.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .errors import RefembedError
from .plugins import plugins
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "refembed.backends"


class Encoder(Protocol):
    """A loaded model: token ids in, unit vectors out.

    precision   what it computes in
    threads     how many threads it computes with
    """

    precision: str
    threads: int

    def encode(self, batch: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The embedding of each id array (tokens_i,), in order: (texts, dimensions) float32."""

    def trace(self, ids: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The named intermediate tensors of one text, in the order of computation; names in spec/tensors.md."""


@runtime_checkable
class Backend(Protocol):
    """A way to run the model. Its module imports the library it needs only in load, so that finding it costs nothing.

    It may also have tokenizer(checkpoint), which returns a refembed.tokenizer.Tokenizer of its own that gives the same
    ids; otherwise the tokenizers library makes them. And it may have usual(checkpoint), the precision that is taken for
    this checkpoint where none is named; otherwise the first is. And describe(), which returns a list of lines for
    `refembed doctor`: what it found on this machine and what it makes of it; refused, precisions and the reason against
    each; and its encoder tokens_at_once, how many it would like to be given in one call. For `refembed bench` it may
    have device(), "cuda" or "cpu", which is meant where it is missing; and training(checkpoint, precision, threads,
    columns), which returns a function that takes one step of training and gives the contrastive loss before it;
    columns are id arrays of queries, positives and hard negatives.

    name         as users write it
    priority     the runnable backend of highest priority is taken where none is named; below 0: only when named
    precisions   what it computes in, the default first
    """

    name: str
    priority: int
    precisions: tuple[str, ...]

    def why_not(self) -> str | None:
        """None where it can run here, else the reason in words and what to do about it."""

    def load(self, checkpoint: Checkpoint, precision: str, threads: int | None) -> Encoder:
        """Get the checkpoint ready to encode. threads=None leaves the number to the backend."""


class Found(NamedTuple):
    """One registered backend, or why it could not be had."""

    name: str
    backend: Backend | None
    why_not: str | None


def registered() -> "Iterable[EntryPoint]":
    """The entry points of the group, none of them imported yet."""
    return plugins(GROUP)


def find_backends() -> list[Found]:
    """Every registered backend by name, best first, with the reason where it cannot run."""
    found = [open_backend(point.name, point) for point in registered()]
    return sorted(found, key=lambda one: (-(one.backend.priority if one.backend else math.inf), one.name))


def open_backend(name: str, point: Any) -> Found:
    """Import one entry point; a broken one is reported, and harms no other."""
    try:
        backend = point.load()
    except Exception as error:
        return Found(name, None, f"cannot be imported: {type(error).__name__}: {error}")
    if not isinstance(backend, Backend):
        return Found(name, None, f"{point.value} is no refembed backend")
    if backend.name != name:
        return Found(name, None, f"{point.value} calls itself {backend.name}")
    try:
        return Found(name, backend, backend.why_not())
    except Exception as error:
        return Found(name, backend, f"cannot tell whether it runs: {type(error).__name__}: {error}")


def choose_backend(name: str | None) -> tuple[Backend, str]:
    """The backend of this name, or the best that can run, and why it was taken.

    Raises RefembedError: never another backend than the one named.
    """
    if name is None:
        found = find_backends()
        passed_over: list[str] = []
        for one in found:
            if one.backend and one.backend.priority >= 0 and not one.why_not:
                return one.backend, "; ".join(["the best that can run here", *passed_over])
            if one.backend is None or one.backend.priority >= 0:
                passed_over.append(f"{one.name}: {one.why_not}")
        raise RefembedError("backend-cannot-run", f"no backend can run here: {'; '.join(passed_over) or 'none found'}")
    for point in registered():
        if point.name == name:  # the others are not even imported
            one = open_backend(name, point)
            if one.backend is None:
                raise RefembedError("backend-broken", f"backend {name} {one.why_not}")
            if one.why_not:
                raise RefembedError("backend-cannot-run", f"backend {name} cannot run here: {one.why_not}")
            return one.backend, "it was named"
    known = ", ".join(sorted(point.name for point in registered())) or "none"
    raise RefembedError("backend-unknown", f"no backend {name!r}; installed: {known}")


def open_tokenizer(backend: Backend, checkpoint: Checkpoint) -> Tokenizer:
    """The backend's own tokenizer, or refembed's."""
    make = getattr(backend, "tokenizer", None)
    return make(checkpoint) if make else Tokenizer(checkpoint.tokenizer, checkpoint.config)


def choose_precision(backend: Backend, precision: str | None, checkpoint: Checkpoint) -> str:
    """The precision asked for, or the backend's default for this checkpoint; never another."""
    if precision is None:
        return str(backend.usual(checkpoint)) if hasattr(backend, "usual") else backend.precisions[0]
    if precision not in backend.precisions:
        why = getattr(backend, "refused", {}).get(precision)
        raise RefembedError(
            "precision-unknown",
            f"backend {backend.name} computes in {', '.join(backend.precisions)}, not {precision!r}"
            + (f": {why}" if why else ""),
        )
    return precision
