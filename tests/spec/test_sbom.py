"""spec/sbom.py's bill of materials: valid, whole, and without the address of any registry."""

import json
import re
import tomllib
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest
import sbom
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CLUSTERS = {"ray": "ray", "spark": "pyspark"}  # extras that are installed for pytest -m long alone, and what shows it
LISTED = [extra for extra in sbom.extras() if extra not in CLUSTERS or find_spec(CLUSTERS[extra])]
CARD = (sbom.MODEL / "README.md").read_text()


@cache
def text() -> str:
    """The bill of every extra that is installed; written() refuses what CycloneDX's own schema does."""
    return sbom.written(sbom.bill({extra: sbom.extras()[extra] for extra in LISTED}))


def components() -> dict[str, Any]:
    return {one["name"]: one for one in json.loads(text())["components"]}


def test_every_runtime_dependency_is_there_with_version_and_licence() -> None:
    """Wrong if something that users install were left out, or stood there without what an auditor asks of it."""
    project = tomllib.loads((sbom.ROOT / "pyproject.toml").read_text())["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    found = components()
    assert {*LISTED, *CLUSTERS} >= groups.keys() - sbom.NOT_SHIPPED
    for extra in {*LISTED} - sbom.NOT_SHIPPED:
        for line in groups[extra]:
            one = found[canonicalize_name(Requirement(line).name)]
            assert extra in {kept["value"] for kept in one["properties"]}, line
    packages = [one for name, one in found.items() if not name.startswith("refembed")]
    assert len(packages) > 20, "what is needed by what is needed"
    assert [one["name"] for one in packages if not (one["version"] and one["licenses"] and one["purl"])] == []


def test_an_extra_that_is_not_asked_for_is_left_out() -> None:
    """Wrong if the bill of a light install listed a framework."""
    light = json.loads(sbom.written(sbom.bill({"core": sbom.extras()["core"]})))
    names = {one["name"] for one in light["components"]}
    assert {"numpy", "safetensors", "tokenizers", "refembed-built-in-model"} <= names
    assert not names & {"torch", "numba", "scipy", "pytest"}


def test_the_built_in_model_is_there_with_its_texts() -> None:
    """Wrong if what the model learned from, or under which terms, were not on the bill."""
    built_in = components()["refembed-built-in-model"]
    rows = sbom.data_rows(CARD)
    assert {(one["name"], one["licenses"][0]["license"].get("name", "")) for one in built_in["components"]} <= {
        (name, terms) for name, _, _, terms in rows
    } | {(name, "") for name, *_ in rows}
    assert len(built_in["components"]) == len(rows) > 5
    assert "as above" not in text()
    assert re.fullmatch(r"[0-9a-f]{64}", built_in["hashes"][0]["content"])
    assert built_in["licenses"] == [{"license": {"id": "Apache-2.0"}}]


def test_no_registry_is_named() -> None:
    """Wrong if the bill told where its maker fetches packages."""
    assert set(re.findall(r"https?://[^/\"]+", text())) == {"http://cyclonedx.org"}


def test_what_is_not_installed_is_named() -> None:
    """Wrong if a package without version and licence were left out in silence."""
    with pytest.raises(SystemExit, match="not installed, and so without version and licence: no-such-package"):
        sbom.bill({"core": [Requirement("numpy"), Requirement("No_such.package")]})


def test_a_card_without_its_table_is_refused() -> None:
    """Wrong if the card could be written otherwise and the bill lose the model's texts."""
    with pytest.raises(ValueError, match="no table"):
        sbom.data_rows(CARD.replace("| texts | number |", "| sets | number |"))


def test_an_invalid_bill_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if the bill could break CycloneDX's schema and be written."""
    whole = sbom.bill({"core": [Requirement("safetensors")]})
    monkeypatch.setattr(sbom.JsonV1Dot6, "output_as_string", lambda self, indent: '{"bomFormat": "other"}')
    with pytest.raises(SystemExit, match="not valid"):
        sbom.written(whole)
