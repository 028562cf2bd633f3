"""What the installed packages, ours among them, add to refembed: their entry points."""

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints


def plugins(group: str) -> "EntryPoints":
    """The entry points of a group, such as "refembed.backends", none of them imported yet."""
    found: EntryPoints = installed(tuple(sys.path)).select(group=group)
    return found


@lru_cache(maxsize=1)  # a look at every package: 80 ms where 200 are installed, and one command asks five times
def installed(path: tuple[str, ...]) -> Any:
    """All entry points that are found by way of sys.path, which this is. Their class depends on Python's version."""
    from importlib.metadata import entry_points  # 15 ms, not spent by an import of refembed alone

    return entry_points()
