"""The golden folders as they are committed: whole and small."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from refembed.reference import quantize

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "golden"


def test_golden_stays_small() -> None:
    """The vectors outgrow the 8 MB that a port's author should have to fetch."""
    files = [file for file in GOLDEN.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")]
    assert sum(file.stat().st_size for file in files) < 8_000_000


@pytest.mark.parametrize("manifest", sorted(GOLDEN.glob("*/manifest.json")), ids=lambda path: path.parent.name)
def test_every_file_is_as_the_manifest_says(manifest: Path) -> None:
    """A file was changed, added or forgotten."""
    files = json.loads(manifest.read_text())["files"]
    found = {str(path.relative_to(manifest.parent)): path for path in manifest.parent.rglob("*") if path.is_file()}
    assert set(found) == {*files, "manifest.json"}
    for name, entry in files.items():
        assert hashlib.sha256(found[name].read_bytes()).hexdigest() == entry["sha256"], name


def test_quantised_cases() -> None:
    """The reference quantises otherwise than the golden cases, which were computed in exact fractions."""
    values = load_file(GOLDEN / "quantised" / "values.safetensors")
    manifest = json.loads((GOLDEN / "quantised" / "manifest.json").read_text())
    assert manifest["number_of_cases"] == len(manifest["cases"]) > 0
    for case in manifest["cases"]:
        for name in case["grids"]:
            grid = quantize.Grid(**manifest["grids"][name])
            expected = {part: values[f"{case['id']}/{name}/{part}"] for part in ("scales", "levels", "back")}
            found = quantize.quantize(values[f"{case['id']}/weight"], grid)
            np.testing.assert_array_equal(found.scales, expected["scales"])
            np.testing.assert_array_equal(found.levels, expected["levels"])
            np.testing.assert_array_equal(quantize.dequantize(found), expected["back"])
            if grid.bits == 4:
                packed = values[f"{case['id']}/{name}/packed"]
                np.testing.assert_array_equal(quantize.pack_int4(found.levels), packed)
                np.testing.assert_array_equal(quantize.unpack_int4(packed), expected["levels"])
