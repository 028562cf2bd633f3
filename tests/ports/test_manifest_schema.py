"""golden/manifest.schema.json: every committed manifest fits it, and hardly anything else does."""

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from refembed.conformance.defects import DEFECTS
from refembed.conformance.suite import FORMAT, STORED

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
MANIFESTS = sorted(GOLDEN.glob("*/manifest.json"))
MAPS = ("generator", "files", "defects", "grids", "bounds.float32", "distances", "unsupported")  # free keys
NAMED = ("values.safetensors", "stages.safetensors", "defects.safetensors", "refembed", "numpy", "embedding")
OPTIONAL = ("task", "title")
Way = tuple[str | int, ...]


@cache
def schema() -> Any:
    from jsonschema import Draft202012Validator  # 4 s: not while tests are collected

    return Draft202012Validator(json.loads((GOLDEN / "manifest.schema.json").read_text()))


def small(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with two cases and two defects with two distances, so that each violation is checked in no time."""
    cases = [case for case in manifest["cases"] if case.get("stages")][:1] + manifest["cases"][:1]
    defects = {
        id: {key: dict(list(value.items())[:2]) if key == "distances" else value for key, value in defect.items()}
        for id, defect in list(manifest.get("defects", {}).items())[:2]
    }
    return manifest | ({"defects": defects} if defects else {}) | {"cases": cases}


def ways(node: Any, way: Way = ()) -> Iterator[Way]:
    """The way to every member and the first item of every list."""
    inside = node.items() if isinstance(node, dict) else list(enumerate(node))[:1] if isinstance(node, list) else ()
    for key, value in inside:
        yield (*way, key)
        yield from ways(value, (*way, key))


def at(manifest: Any, way: Way) -> Any:
    for key in way:
        manifest = manifest[key]
    return manifest


def changed(manifest: dict[str, Any], way: Way, *value: Any) -> dict[str, Any]:
    """With another value there, or nothing; what does not lead there is shared, not copied."""
    result = place = copy.copy(manifest)
    for key in way[:-1]:
        place[key] = copy.copy(place[key])
        place = place[key]
    if value:
        place[way[-1]] = value[0]
    else:
        del place[way[-1]]
    return result


def may_go(way: Way) -> bool:
    """Whether nothing is wrong without this: an item, a member of a map, an optional one."""
    held_by = ".".join(str(key) for key in way[:-1])
    in_map = held_by.endswith(MAPS) or "bounds" in way[:-1]
    return isinstance(way[-1], int) or way[-1] in OPTIONAL or (in_map and way[-1] not in NAMED)


@pytest.fixture(scope="module", params=MANIFESTS, ids=lambda path: path.parent.name)
def manifest(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text())


def test_the_schema_is_one() -> None:
    """Wrong if a keyword of the schema has a wrong form, so that it checks nothing."""
    schema().check_schema(schema().schema)


def test_there_are_manifests() -> None:
    """Wrong if the tests below have nothing to run on."""
    assert "twin" in {path.parent.name for path in MANIFESTS}


def test_every_manifest_fits(manifest: dict[str, Any]) -> None:
    """Wrong if the generator writes what the schema does not say."""
    assert [f"{list(error.path)}: {error.message[:200]}" for error in schema().iter_errors(manifest)] == []


def test_no_member_may_be_missing(manifest: dict[str, Any]) -> None:
    """Wrong if a consumer may meet a manifest without a member that is always there."""
    sample = small(manifest)
    tried = [way for way in ways(sample) if not may_go(way)]
    assert len(tried) >= 15
    assert [way for way in tried if schema().is_valid(changed(sample, way))] == []


@pytest.mark.parametrize("other", [None, True, -1, 0.5, "", "Not A Slug", [], {}, [[]], [1], {"x": 1}], ids=repr)
def test_no_value_may_be_of_another_type(manifest: dict[str, Any], other: Any) -> None:
    """Wrong if a consumer that trusts the schema may meet a text for a number, or a list for an object."""
    sample, passed = small(manifest), []
    for way in ways(sample):
        value = at(sample, way)
        if type(value) is not type(other) and not fine(way, other) and schema().is_valid(changed(sample, way, other)):
            passed.append(way)
    assert passed == []


def fine(way: Way, other: Any) -> bool:
    """Numbers where another number may stand, and a block that is the whole row."""
    numbers = isinstance(other, float) and (way[-1] == "ratio" or "bounds" in way or way[0] == "spread")
    return numbers or (way[-1] == "block" and other is None)


def test_unknown_members_are_refused(manifest: dict[str, Any]) -> None:
    """Wrong if a misspelled member passes."""
    sample = small(manifest)
    for way in [(), *ways(sample)]:
        if isinstance(at(sample, way), dict):
            assert not schema().is_valid(changed(sample, (*way, "Bound"), 1)), way


PLANTED = {
    "a newer format": (("format",), FORMAT + 1),
    "a digest in capitals": (("model", "digest"), "A" * 64),
    "a digest cut short": (("files", "values.safetensors", "sha256"), "0" * 63),
    "a count of no cases": (("number_of_cases",), 0),
    "a count that is no whole number": (("number_of_cases",), 1.5),
    "no cases": (("cases",), []),
    "a case without texts": (("cases", 0, "texts"), []),
    "a title without its task": (("cases", 0, "texts", 0), {"text": "x", "title": "y"}),
    "an id with a space": (("cases", 0, "id"), "two words"),
    "a stage of no such name": (("cases", 0, "stages", 0), "layer.0.out"),
    "a stage twice": (("cases", 0, "stages"), ["pooled", "pooled"]),
    "a bound of nothing": (("cases", 0, "bounds", "float32", "embedding"), 0),
    "a bound that lets everything pass": (("cases", 0, "bounds", "float32", "embedding"), 2.0),
    "a negative bound of a stage": (("cases", 0, "bounds", "int8", "pooled"), -1e-6),
    "an unknown precision": (("cases", 0, "bounds", "float16"), {"embedding": 0.1}),
    "a defect without vectors": (("defects", "causal", "cases"), []),
    "a negative separation": (("defects", "causal", "separation", "int8", "ratio"), -1),
    "an infinity that is not spelled so": (("defects", "causal", "separation", "int8", "ratio"), "inf"),
    "a file outside the folder": (("files", "../secret"), {"bytes": 1, "sha256": "0" * 64}),
    "a file at the root": (("files", "/etc/passwd"), {"bytes": 1, "sha256": "0" * 64}),
    "a file of negative size": (("files", "values.safetensors", "bytes"), -1),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_violations_are_found(fault: str) -> None:
    """Wrong if this passes as a manifest."""
    sample = small(json.loads((GOLDEN / "twin" / "manifest.json").read_text()))
    assert schema().is_valid(sample)
    assert not schema().is_valid(changed(sample, *PLANTED[fault]))


def test_the_schema_knows_what_the_code_knows() -> None:
    """Wrong if a defect's id, the format or a needed file moved on without the schema."""
    model = schema().schema["$defs"]["model"]
    assert schema().schema["$defs"]["format"] == {"const": FORMAT}
    assert set(model["properties"]["files"]["required"]) == set(STORED)
    slug = schema().evolve(schema=schema().schema["$defs"]["slug"])
    assert [defect.id for defect in DEFECTS if not slug.is_valid(defect.id)] == []
