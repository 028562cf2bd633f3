"""What packages register is found, also of one that is installed while refembed runs."""

from pathlib import Path

import pytest

from refembed.plugins import plugins


def test_a_package_installed_meanwhile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a backend that a notebook installs were unknown until refembed is imported anew."""
    monkeypatch.syspath_prepend(tmp_path)
    assert "late" not in plugins("refembed.backends").names
    about = tmp_path / "late-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[refembed.backends]\nlate = json:dumps\n")
    assert "late" in plugins("refembed.backends").names
