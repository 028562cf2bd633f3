"""A text, looked into: the numbers of its trace, and the page that shows them (`refembed inspect --html`)."""

from .page import build_page
from .reading import read_texts

__all__ = ["build_page", "read_texts"]
