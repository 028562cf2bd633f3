"""What the installed packages, ours among them, add to refembed: their entry points."""

import os
import sys
from collections.abc import Hashable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints


def plugins(group: str) -> "EntryPoints":
    """The entry points of a group, such as "refembed.backends", none of them imported yet."""
    found: EntryPoints = installed(tuple(map(state, sys.path))).select(group=group)
    return found


def state(folder: str) -> Hashable:
    """What changes when a package is installed into a folder of sys.path."""
    with suppress(OSError):
        return os.path.abspath(folder), os.stat(folder or ".").st_mtime_ns
    return folder


@lru_cache(maxsize=1)  # a look at every package, and a command asks for four groups or five
def installed(path: tuple[Hashable, ...]) -> Any:
    """All entry points. Their class depends on Python's version.

    path   the states of the folders looked through, of which only the last are kept
    """
    from importlib.metadata import entry_points  # 15 ms, not spent by an import of refembed alone

    return entry_points()
