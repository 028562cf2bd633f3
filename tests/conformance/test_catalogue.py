"""The catalogue of known mistakes, and the page that is written from it."""

from pathlib import Path

import catalogue

from refembed.conformance.defects import CONTROLS, DEFECTS

SPEC = Path(__file__).parents[2] / "spec"


def test_the_page_of_defects_is_the_catalogue() -> None:
    """spec/defects.md says something else than the catalogue and the manifests: run tests/conformance/catalogue.py."""
    assert (SPEC / "defects.md").read_text() == catalogue.page()


def test_the_catalogue_is_complete() -> None:
    """Fewer mistakes than promised, an id that stands for two, an empty word, or a page that is not there."""
    assert len({defect.id for defect in DEFECTS}) == len(DEFECTS) >= 40
    assert not {defect.id for defect in DEFECTS} & set(CONTROLS)
    for defect in DEFECTS:
        assert all((defect.title, defect.effect, defect.reported, defect.exposed))
        assert (SPEC / defect.chapter).exists()
