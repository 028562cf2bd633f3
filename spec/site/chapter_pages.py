"""What the build adds to a chapter: code with its witness, figures, a golden case's numbers, the catalogue's traps."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from book import BookError, Chapter, insert
from listing import Witness, function_listing
from numpy.typing import NDArray
from safetensors.numpy import load_file
from upstream import in_html

from refembed.conformance.defects import DEFECTS, Defect

Array = NDArray[Any]
SHOWN = 4  # numbers of a tensor
DRAWN = "_figures"
FOLDERS = ("kernels",)  # pages with figures that are the README of a folder of spec/
PROVENANCE = {"R": "reported", "C": "read in a port's code", "N": "of a neighbouring model", "M": "measured"}


def raw(html: str) -> str:
    return f"````{{raw}} html\n{html}\n````\n"


def extended(root: Path, chapter: Chapter, witness: Witness) -> str:
    """A chapter's Markdown with everything that is computed for it."""
    up = "../"  # every chapter lies in spec/

    def code(part: str) -> str:
        shown = chapter.shows.get(part, [])
        return "\n".join(raw(function_listing(root, one, witness, f"{up}source/{one.file}.html")) for one in shown)

    under = {id: code(id) for id in chapter.shows if id}
    rest = f"## The rest of the code\n\n{code('')}\n" if "" in chapter.shows else ""
    text = insert(chapter.text, under, rest + numbers(root, chapter))
    return f"{text}\n{traps(root, chapter)}"


def with_figures(text: str, figures: str) -> str:
    """A page with its figures before its first section."""
    start = re.search(r"^##", text, re.MULTILINE)
    assert start, "a page with figures has sections"
    return f"{text[: start.start()]}{figures}\n{text[start.start() :]}"


# -------------------------------------------------------------------------------------------------------- the numbers
@cache
def golden(root: Path, folder: str) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
    """A golden folder's cases by id, and all its tensors but those of mistakes."""
    place = root / "golden" / folder
    if not (place / "manifest.json").exists():
        return {}, {}
    cases = {case["id"]: case for case in json.loads((place / "manifest.json").read_text())["cases"]}
    files = [place / name for name in ("values.safetensors", "stages.safetensors")]
    return cases, {name: array for file in files if file.exists() for name, array in load_file(file).items()}


def tensors_of(tensors: Mapping[str, Array], case: str, patterns: tuple[str, ...]) -> dict[str, Array]:
    """The tensors of a case, by their own names: all, or those that fit a pattern. Of layers the first, 00."""
    own = {name.partition("/")[2] or name: array for name, array in tensors.items() if name.partition("/")[0] == case}
    if not patterns:
        return {name: array for name, array in own.items() if not name.startswith("layer.")}
    wanted = [pattern.replace("NN", "00") for pattern in patterns]
    return {
        name: array
        for pattern in wanted
        for name, array in sorted(own.items())
        if fnmatch(name, pattern) or fnmatch(name, f"layer.00.*.{pattern}") or name == f"{pattern}.0"
    }


def numbers(root: Path, chapter: Chapter) -> str:
    """The stage's tensors in a golden case: one that watches over this chapter's code and has them all."""
    named = Counter(place for one in chapter.definitions for place in one.witnesses)
    places = [place for place, _ in named.most_common()]
    if chapter.traces:
        places += [("twin", case) for case in golden(root, "twin")[0]]
        places = [place for place in places if place[0] == "twin"]
        for pattern in chapter.traces:
            if not any(tensors_of(golden(root, "twin")[1], case, (pattern,)) for _, case in places):
                raise BookError(f"{chapter.stem}: no tensor of golden/twin is named {pattern}")
    found = {place: tensors_of(golden(root, place[0])[1], place[1], chapter.traces) for place in places}
    most = max((len(tensors) for tensors in found.values()), default=0)
    if not most:
        return next((written(root, case) for folder, case in places if folder == "ul2"), "")
    place, tensors = next((place, tensors) for place, tensors in found.items() if len(tensors) == most)
    case = golden(root, place[0])[0][place[1]]
    said = "".join(f": `{text['text']}`" for text in case.get("texts", [])[:1] if isinstance(text, dict))
    rows = [
        f"| `{name}` | {' x '.join(map(str, array.shape)) or 'scalar'} | {first(array)} | {norm(array)} |"
        for name, array in tensors.items()
    ]
    return (
        f"## The numbers of a golden case\n\n`{place[1]}` of golden/{place[0]}, {case['why']}{said}\n\n"
        "| tensor | shape | first numbers | norm |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


def written(root: Path, denoiser: str) -> str:
    """A case of golden/ul2, which holds ids and no tensors."""
    golden = json.loads((root / "golden/ul2/cases.json").read_text())
    case = next(case for case in golden["cases"] if case["denoiser"] == denoiser)
    rows = {"the text": "ids", "the encoder reads": "inputs", "the decoder writes": "targets"}
    modes = ", ".join(f"{mode} {id}" for mode, id in golden["modes"].items())
    return (
        f"## The numbers of a golden case\n\n`{denoiser}` of golden/ul2, drawn by hand. BOS is {golden['bos']}, EOS "
        f"{golden['eos']}; modes: {modes}; marks: {', '.join(map(str, golden['sentinels']))}.\n\n"
        "| who | ids |\n| --- | --- |\n"
        + "".join(f"| {who} | {', '.join(map(str, case[part]))} |\n" for who, part in rows.items())
    )


def first(array: Array) -> str:
    numbers = array.ravel()[:SHOWN]
    shown = [str(one) if np.issubdtype(array.dtype, np.integer) else f"{one:.6g}" for one in numbers]
    return ", ".join(shown) + (", ..." if array.size > SHOWN else "")


def norm(array: Array) -> str:
    return "" if np.issubdtype(array.dtype, np.integer) else f"{np.linalg.norm(array.astype(np.float64).ravel()):.6g}"


# ---------------------------------------------------------------------------------------------------------- the traps
def traps(root: Path, chapter: Chapter) -> str:
    """The catalogue's mistakes of which this chapter says what is right."""
    mistakes = [defect for defect in DEFECTS if defect.chapter == f"{chapter.stem}.md"]
    if not mistakes:
        return ""
    return (
        "## Mistakes that verify knows by name\n\n"
        "From [the catalogue](defects.md), which measures each.\n\n"
        + "\n".join(raw(trap(root, defect)) for defect in mistakes)
    )


def trap(root: Path, defect: Defect) -> str:
    manifest = twin(root)
    entry = manifest["defects"][defect.id]["separation"]["float32"]
    sees = sum(defect.id in case["flags"] for case in manifest["cases"])
    best = "never" if entry["ratio"] != "infinite" and float(entry["ratio"]) < 1 else f"<code>{entry['case']}</code>"
    rows = {
        "What users see": escape(defect.effect),
        "Seen in": in_html(escape(evidence(defect.reported))),
        "Least input that shows it": escape(defect.exposed),
        "Golden case that shows it best": f"{best}, one of {sees} of the twin's {len(manifest['cases'])} that see it",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{said}</dd>" for name, said in rows.items())
    return (
        f'<details class="trap"><summary>{defect.family} <code>{defect.id}</code> {escape(defect.title)}</summary>'
        f'<dl>{listed}</dl><p><a href="defects.html#{defect.id}">How far each precision sees it</a></p></details>'
    )


@cache
def twin(root: Path) -> Mapping[str, Any]:
    manifest: Mapping[str, Any] = json.loads((root / "golden/twin/manifest.json").read_text())
    return manifest


def evidence(reported: str) -> str:
    """The catalogue's letters of provenance as words."""
    if reported == "-":
        return "nowhere yet"
    return re.sub(r"(^|; )([RCNM])\b", lambda found: f"{found[1]}{PROVENANCE[found[2]]}:", reported).removesuffix(":")


# --------------------------------------------------------------------------------------------------------- the figures
def draw(out: Path, chapters: Mapping[str, Any]) -> dict[str, str]:
    """Draw every page's figures, light and dark, as SVG under out: page's key in chapters -> HTML that shows them."""
    from look import MODES, coloured, svg

    shown: dict[str, str] = {}
    (out / DRAWN).mkdir(parents=True, exist_ok=True)
    for page, functions in chapters.items():
        up, html = "../../" if page in FOLDERS else "../", ""
        for function in functions:
            caption = escape(" ".join((function.__doc__ or "").split("\n\n")[0].split()))
            drawn, images = svg(function()), ""
            for mode in MODES:
                name = f"{function.__name__}-{mode}.svg"
                (out / DRAWN / name).write_text(coloured(drawn, mode))
                images += f'<img class="only-{mode}" src="{up}{DRAWN}/{name}" alt="{caption}">'
            html += f'<figure class="drawn">{images}<figcaption aria-hidden="true">{caption}</figcaption></figure>\n'
        shown[page] = raw(html)
    return shown
