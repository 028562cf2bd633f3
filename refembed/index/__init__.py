"""A folder of vectors: texts added, replaced, removed and searched; whole after a kill at any point."""

from .index import Hit, Index, open_index

__all__ = ["Hit", "Index", "open_index"]
