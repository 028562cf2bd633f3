"""Where what takes long to make is kept between processes."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Where what is compiled or packed is kept: $REFEMBED_CACHE, else the system's place for caches."""
    if named := os.environ.get("REFEMBED_CACHE"):
        return Path(named)
    usual = {"win32": os.environ.get("LOCALAPPDATA", "~"), "darwin": "~/Library/Caches"}
    base = usual.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "refembed"
