"""The golden folders as they are committed: whole, small, and what the page about them says."""

import hashlib
import json
from pathlib import Path

import catalogue
import numpy as np
import pytest
from safetensors.numpy import load_file

from refembed.conformance.defects import CONTROLS, DEFECTS
from refembed.reference import quantize

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "golden"


def test_golden_stays_small() -> None:
    """The vectors outgrow the 8 MB that a port's author should have to fetch."""
    assert sum(file.stat().st_size for file in GOLDEN.rglob("*") if file.is_file()) < 8_000_000


@pytest.mark.parametrize("manifest", sorted(GOLDEN.glob("*/manifest.json")), ids=lambda path: path.parent.name)
def test_every_file_is_as_the_manifest_says(manifest: Path) -> None:
    """A file was changed, added or forgotten."""
    files = json.loads(manifest.read_text())["files"]
    found = {str(path.relative_to(manifest.parent)): path for path in manifest.parent.rglob("*") if path.is_file()}
    assert set(found) == {*files, "manifest.json"}
    for name, entry in files.items():
        assert hashlib.sha256(found[name].read_bytes()).hexdigest() == entry["sha256"], name


def test_the_page_of_defects_is_the_catalogue() -> None:
    """spec/defects.md says something else than the catalogue and the manifests: run python golden/catalogue.py."""
    assert (ROOT / "spec" / "defects.md").read_text() == catalogue.page()


def test_the_catalogue_is_complete() -> None:
    """Fewer mistakes than promised, an id that stands for two, an empty word, or a page that is not there."""
    assert len({defect.id for defect in DEFECTS}) == len(DEFECTS) >= 40
    assert not {defect.id for defect in DEFECTS} & set(CONTROLS)
    for defect in DEFECTS:
        assert all((defect.title, defect.effect, defect.reported, defect.exposed))
        assert (ROOT / "spec" / defect.chapter).exists()


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
