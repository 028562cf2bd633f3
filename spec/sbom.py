"""A software bill of materials, in CycloneDX JSON: what refembed needs, by extra, as it is installed here.

python spec/sbom.py --out sbom.json

Requirements are pyproject.toml's, the runtime ones and each extra's; versions and licences those of the packages that
are installed. The built-in model is a component as well, with the texts it learned from and their licences, out of its
card. Needs the extra `audit`, and the extras that are to be listed.
"""

import argparse
import hashlib
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.spdx import is_expression, is_supported_id
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "refembed" / "default_model"
CORE = "core"
NOT_SHIPPED = {"audit", "docs", "golden", "test"}  # extras for those who work on refembed, not with it
DATA_HEADER = "| texts | number | from | licence |"
CLASSIFIER = "License :: OSI Approved :: "


def extras() -> dict[str, list[Requirement]]:
    """Extra -> what it asks for; `core` for what is always needed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {CORE: project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(one) for one in needs] for name, needs in wanted.items() if name not in NOT_SHIPPED}


def applies(need: Requirement, chosen: Iterable[str] = ()) -> bool:
    """Whether a requirement holds on this machine, with these extras of the package that asks."""
    return need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *chosen))


def closure(needs: Iterable[Requirement], missing: set[str]) -> dict[str, Distribution]:
    """Every package that these ask for, directly or not, by name. Adds the names that are not installed to missing."""
    found: dict[str, Distribution] = {}
    waiting = [need for need in needs if applies(need)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        need = waiting.pop()
        name, chosen = canonicalize_name(need.name), frozenset(need.extras)
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        own = (Requirement(line) for line in found[name].requires or ())
        waiting += [one for one in own if applies(one, chosen)]
    return found


def licences(package: Distribution) -> list[str]:
    """What the package says: an expression if it has one, else its classifiers, else the first line of its licence."""
    said = package.metadata
    if said.get("License-Expression"):
        return [said["License-Expression"]]
    named = [one.rpartition(" :: ")[2] for one in said.get_all("Classifier", []) if one.startswith(CLASSIFIER)]
    text = (said.get("License") or "").strip().splitlines()
    return named or text[:1]


def licence(said: str) -> License:
    """By its SPDX name or expression where it is one, else as it is called."""
    if is_supported_id(said):
        return DisjunctiveLicense(id=said)
    return LicenseExpression(said) if is_expression(said) else DisjunctiveLicense(name=said)


def component(package: Distribution, used_by: Iterable[str]) -> Component:
    name, version = canonicalize_name(package.metadata["Name"]), package.version
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{name}@{version}",
        purl=PackageURL("pypi", name=name, version=version),
        licenses=[licence(one) for one in licences(package)],
        properties=[Property(name="refembed:extra", value=extra) for extra in used_by],
    )


def data_rows(card: str) -> list[tuple[str, str, str, str]]:
    """(texts, number, from, licence) of the card's table; ValueError where there is none."""
    _, found, rest = card.partition(f"{DATA_HEADER}\n")
    lines = [line for line in rest.partition("\n\n")[0].splitlines()[1:] if line.startswith("|")]
    if not found or not lines:
        raise ValueError(f"the model's card has no table {DATA_HEADER}")
    rows = [[cell.strip() for cell in re.sub(r"\]\([^)]*\)|\[", "", line).strip("|").split("|")] for line in lines]
    for above, row in pairwise(rows):
        row[3] = row[3].replace("as above", above[3])
    return [(texts, number, source, terms) for texts, number, source, terms in rows]


def model(version: str) -> Component:
    """The built-in model, its weights' digest, and each kind of text it learned from."""
    card = (MODEL / "README.md").read_text()
    terms = re.search(r"^Licence: ([\w.-]+[\w])", card, re.MULTILINE)
    if terms is None:
        raise ValueError("the model's card names no licence")
    digest = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    texts = [
        Component(
            name=name,
            type=ComponentType.DATA,
            bom_ref=f"built-in-model/{place}",
            description=f"{number}, from: {source}",
            licenses=[licence(its)],
        )
        for place, (name, number, source, its) in enumerate(data_rows(card), 1)
    ]
    return Component(
        name="refembed-built-in-model",
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="built-in-model",
        licenses=[licence(terms[1])],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        components=texts,
    )


def bill(wanted: Mapping[str, Iterable[Requirement]]) -> Bom:
    """The bill of these extras. SystemExit names what is not installed."""
    missing: set[str] = set()
    packages = {extra: closure(needs, missing) for extra, needs in wanted.items()}
    if missing:
        raise SystemExit(f"not installed, and so without version and licence: {', '.join(sorted(missing))}")
    every = {name: package for found in packages.values() for name, package in found.items()}
    users = {name: [extra for extra, found in packages.items() if name in found] for name in every}
    components = {name: component(package, users[name]) for name, package in sorted(every.items())}
    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "refembed" / "__init__.py").read_text(), re.MULTILINE)
    assert version is not None
    whole = Component(
        name="refembed",
        version=version[1],
        type=ComponentType.LIBRARY,
        bom_ref="refembed",
        licenses=[licence("Apache-2.0")],
    )
    built_in = model(version[1])
    made = Bom(components=[*components.values(), built_in])
    made.metadata.component = whole
    made.register_dependency(whole, [built_in, *components.values()])
    for name, package in every.items():
        needs = [Requirement(line) for line in package.requires or ()]
        own = {canonicalize_name(need.name) for need in needs if applies(need)}
        made.register_dependency(components[name], [components[one] for one in sorted(own & components.keys())])
    return made


def written(made: Bom) -> str:
    """As JSON; SystemExit where that is not as CycloneDX 1.6 has it."""
    text: str = JsonV1Dot6(made).output_as_string(indent=1)
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if fault is not None:
        raise SystemExit(f"not valid: {fault}")
    return text


def main() -> None:
    known = extras()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--extras", default=",".join(known), help="of them all: %(default)s")
    given = parser.parse_args()
    chosen = [CORE, *(one for one in given.extras.split(",") if one != CORE)]
    if unknown := [one for one in chosen if one not in known]:
        sys.exit(f"no extra {', '.join(unknown)}; there are {', '.join(known)}")
    given.out.write_text(written(bill({extra: known[extra] for extra in chosen})))


if __name__ == "__main__":
    main()
