"""The site that is built of spec/: no link of it is broken, browsers can read it, and it cannot outlive the code."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import book
import chapter_pages
import listing
import pytest
import upstream
from support import accessibility_faults

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("spec", "refembed/reference")  # what a fault is planted in; the rest is linked to
PAGES = (
    "README",
    "spec/04-rotary-positions",
    "source/refembed/reference/trace.py",
)  # one of each kind


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-c", "spec/site", ".", str(out)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


class Page(HTMLParser):
    """What links into and out of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.ids += [given["id"]] if given.get("id") else []
        self.links += [given["href"]] if tag == "a" and given.get("href") else []
        address = given.get("src") or (given.get("href") if tag == "link" else None)
        self.loads += [address] if address and not address.startswith("data:") else []


@cache
def parsed(file: Path) -> Page:
    return Page(file.read_text())


def target(page: Path, link: str) -> tuple[Path, str]:
    """The file a relative link leads to, and the id in it."""
    address, fragment = urldefrag(link)
    path = unquote(urlsplit(address).path)
    return ((page.parent / path).resolve() if path else page), unquote(fragment)


def broken(page: Path) -> Iterator[str]:
    """What a page links to or loads, and is not there; what it loads from a network."""
    for link in (*parsed(page).links, *parsed(page).loads):
        if urlsplit(link).scheme:
            if link in parsed(page).loads:
                yield f"{page.name} loads {link}"
            continue
        file, id = target(page, link)
        if not file.is_file() or (id and file.suffix == ".html" and id not in parsed(file).ids):
            yield f"{page.name}: {link}"


def test_no_link_is_broken_and_nothing_is_loaded_from_a_network(site):
    """Wrong if a link of the site leads nowhere, two places of a page have one address, or it needs a network."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    assert [fault for page in pages for fault in broken(page)] == []
    assert [page for page in pages if len(set(parsed(page).ids)) < len(parsed(page).ids)] == []


def test_a_broken_link_is_found(tmp_path):
    """Wrong if the test above could not fail."""
    page = tmp_path / "page.html"
    page.write_text('<a href="#a" id="a">a</a><a href="gone.html">b</a><a href="#b">c</a><img src="https://x.org/y">')
    assert list(broken(page)) == ["page.html: gone.html", "page.html: #b", "page.html loads https://x.org/y"]


def lines_of(html: str) -> dict[str, str]:
    """Address -> code, of every line shown."""
    found = re.findall(r'<div class="line" id="([^"]+)"><a [^>]*>\d+</a><code[^>]*>(.*?)</code>', html)
    return {id: unescape(re.sub("<[^>]*>", "", code)).rstrip() for id, code in found}


def test_chapters_show_the_code_as_it_stands_with_its_witness(site):
    """Wrong if a line of the reference is shown otherwise than it is, or a mutated one without the cases that fail."""
    mutated = {(id.partition(".")[0], entry["line"]) for id, entry in listing.read_witness(ROOT).record.items()}
    shown = set()
    for stem, chapter in book.read_book(ROOT).items():
        html = (site / "spec" / f"{stem}.html").read_text()
        lines = lines_of(html)
        for one in chapter.definitions:
            source = (ROOT / one.file).read_text().splitlines()
            for number in range(one.first, one.last + 1):
                assert lines.pop(listing.address(one.file, number)) == source[number - 1].rstrip()
                if one.file.parent == book.REFERENCE and (one.module, number) in mutated:
                    shown.add((one.module, number))
        assert not lines, "a line of no definition"
        own = {(one.module, line) for one in chapter.definitions for line in range(one.first, one.last + 1)}
        assert html.count('<details class="witness">') == len(own & mutated)
    functions = {
        (one.module, line)
        for file in (ROOT / book.REFERENCE).glob("*.py")
        for one in book.definitions_of(ROOT, file.relative_to(ROOT))
        for line in range(one.first, one.last + 1)
    }
    assert shown == mutated & functions


WITHOUT_NUMBERS = {"13-adaptation", "14-recipe"}  # which say why
WITHOUT_TRAPS = {"09-quantised-weights", "10-losses", "11-gradients", "12-ul2", *WITHOUT_NUMBERS}  # of the catalogue


def test_chapters_show_numbers_traps_and_figures(site):
    """Wrong if a chapter lacks a golden case's numbers, or one of the forward the catalogue's mistakes."""
    for stem in book.read_book(ROOT):
        html = (site / "spec" / f"{stem}.html").read_text()
        assert ("The numbers of a golden case" in html) == (stem not in WITHOUT_NUMBERS), stem
        assert ("There is no golden case: " in html) == (stem in WITHOUT_NUMBERS), stem
        assert ('<details class="trap">' in html) == (stem not in WITHOUT_TRAPS), stem
    assert "9, 48, 49, 50, 10, 53, 54, 12, 59, 60, 61, 1" in (site / "spec" / "12-ul2.html").read_text()
    adaptation = (site / "spec" / "13-adaptation.html").read_text()
    assert adaptation.count("if it is changed, tests/reference/test_reference_decoder.py test_") >= 3
    attention = (site / "spec" / "05-attention-and-windows.html").read_text().replace("<wbr>", "")
    assert re.search(r"layer\.00\.attention\.scores.*?3 x 10 x 10", attention, re.S)
    thread = (
        'sentence-transformers <a href="https://github.com/huggingface/sentence-transformers/issues/3513">#3513</a>'
    )
    assert thread in attention


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "transformers\n  #41922.",
            "transformers\n  [#41922](https://github.com/huggingface/transformers/issues/41922).",
        ),
        ("utensils/mold #1074", "utensils/mold [#1074](https://github.com/utensils/mold/issues/1074)"),
        (
            "plur PR #1, fixed in #2 and #3; #4",
            "plur PR [#1](https://github.com/plur-ai/plur/issues/1), fixed in [#2](https://github.com/plur-ai/plur/issues/2)"
            " and [#3](https://github.com/plur-ai/plur/issues/3); #4",
        ),
        ("efficient-transformers #940, Liger #74, transformers.js #1418", ""),
        ("```text\ntransformers #1\n```", ""),
    ],
)
def test_threads_of_other_projects_are_linked(said, shown):
    """Wrong if evidence cannot be followed where the project is known, or leads to another's thread."""
    assert upstream.in_markdown(said) == (shown or said)


def within_two(start: Path, links: Callable[[Path], list[str]]) -> dict[Path, set[str]]:
    """Pages at most two links from the start -> the places in them that those links lead to."""
    reached = {start: {""}}
    for _ in range(2):
        for page in list(reached):
            for link in links(page) if page.suffix in (".html", ".md") and page.is_file() else []:
                if not urlsplit(link).scheme:
                    file, id = target(page, link)
                    reached.setdefault(file, {""}).add(id)
    return reached


def markdown_links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", book.prose(page.read_text()))


SOUGHT = {  # what a reader looks for: where in the repository and in the site it stands, and what is to be read there
    "the line that sets the window": ("refembed/reference/positions.py", "distance <= reach"),
    "why the norm adds one": ("spec/03-norms", "training starts with"),
    "the loss equation": ("spec/10-losses", "L_C = mean over i of"),
    "its gradient": ("spec/10-losses", "d sim(q_i, p+_j) ="),
    "the case that catches causal attention": ("spec/defects", "distinct-last-reach-plus-one"),
    "how to verify a port in C": ("spec/protocol", "gcc -std=c99 -O2 -o twin"),
}


@pytest.mark.parametrize("what", SOUGHT)
def test_what_a_reader_looks_for_is_at_most_two_links_from_the_readme(what, site):
    """Wrong if more than two links lie between README.md and one of these, in the repository or in the site."""
    name, said = SOUGHT[what]
    in_repository = ROOT / (name if name.endswith(".py") else f"{name}.md")
    assert in_repository in within_two(ROOT / "README.md", markdown_links)
    assert said in in_repository.read_text()
    in_site = site / (f"source/{name}.html" if name.endswith(".py") else f"{name}.html")
    assert in_site in within_two(site / "README.html", lambda page: parsed(page).links)
    assert said in unescape(re.sub("<[^>]*>", "", in_site.read_text()))


MODES = [(width, mode) for width in (390, 1280) for mode in ("light", "dark")]
BROKEN = """() => [...document.querySelectorAll("article td, article th")].flatMap((cell) => {
  const found = [], texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), range = document.createRange();
  for (let text; (text = texts.nextNode());)
    for (const word of text.data.matchAll(/[A-Za-z]{2,}/g)) {
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      if (range.getClientRects().length > 1) found.push(word[0]);
    }
  return found;
})"""
OVER = """() => [...document.querySelectorAll("article td, article th")].flatMap((cell) => {
  const range = document.createRange(), edge = cell.getBoundingClientRect().right;
  range.selectNodeContents(cell);
  const over = [...range.getClientRects()].some((part) => part.right > edge + 1);
  return over ? [cell.textContent.trim().slice(0, 40)] : [];
})"""
# What is many times the same is judged by its first: axe's time grows with what a page holds.
FEWER = """() => {
  for (const one of [...document.querySelectorAll(".listing .line")].slice(30)) one.remove();
  for (const one of document.querySelectorAll("tbody tr:nth-child(n + 9)")) one.remove();
}"""


def faults_of(page: Any, file: Path, width: int, mode: str) -> list[str]:
    """What is wrong with a file of the site: it is wider than the screen, breaks words in a table or paints
    them over the next cell, or axe says so.
    """
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=mode, reduced_motion="reduce")
    page.goto(file.as_uri())
    wide = page.evaluate("document.documentElement.scrollWidth")
    found = [f"{wide} pixels wide on {width}"] if wide > width else []
    found += [f"broken in a table: {word}" for word in page.evaluate(BROKEN)]
    found += [f"over its cell's edge: {text}" for text in page.evaluate(OVER)]
    page.evaluate(FEWER)
    return found + accessibility_faults(page)


def pages_of(site: Path) -> list[Path]:
    return [file for file in sorted(site.rglob("*.html")) if file.name != "index.html"]


@pytest.mark.parametrize(
    ("width", "mode"), [MODES[0], *(pytest.param(*one, marks=pytest.mark.long) for one in MODES[1:])]
)
def test_pages_in_a_browser(width, mode, page, site):
    """Wrong if a page has an error in its console, a fault that axe finds, or does not fit the screen's width."""
    for name in PAGES:
        assert faults_of(page, site / f"{name}.html", width, mode) == [], name


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<p style='width: 500px'>wide</p>", "500 pixels wide on 390"),
        (
            "<table><tr><td style='width: 3em; word-break: break-all'>Matryoshka</table>",
            "broken in a table: Matryoshka",
        ),
        (
            "<table style='table-layout: fixed; width: 9em'><tr><td>layer.00.attention.query_rotated<td>10</table>",
            "over its cell's edge: layer.00.attention.query_rotated",
        ),
        ("<p style='color: #ccc'>pale</p>", 'color-contrast: <p style="color: #ccc">pale</p>'),
    ],
)
def test_a_planted_fault_of_a_page_is_found(body, fault, page, tmp_path):
    """Wrong if the test above could not fail."""
    file = tmp_path / "page.html"
    head = "<!doctype html><html lang=en><title>a</title><body style='margin: 0; background: #fff'><main><h1>a</h1>"
    file.write_text(f"{head}<article>{body}</article></main>")
    assert faults_of(page, file, 390, "light") == [fault]


@pytest.mark.long
def test_every_page_in_a_browser(page, site):
    """Wrong if any other page has one of these faults; each is seen at one width and in one mode, drawn by its name."""
    for file in pages_of(site):
        drawn = hashlib.sha256(str(file.relative_to(site)).encode()).digest()[0] % len(MODES)
        assert faults_of(page, file, *MODES[drawn]) == [], file


# planted faults: the build refuses code that moved


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository, as far as the site needs it, to be changed."""
    root = tmp_path / "repository"
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for place in (ROOT, ROOT / "refembed"):
        for entry in place.iterdir():
            here = root / entry.relative_to(ROOT)
            if not here.exists() and entry.name not in (".git", "build"):
                here.symlink_to(entry)
    return root


def change(root: Path, file: str, old: str, new: str) -> None:
    text = (root / file).read_text()
    assert text.count(old) == 1, old
    (root / file).write_text(text.replace(old, new))


FAULTS = {
    "a function that no chapter shows": (
        "refembed/reference/model.py",
        "def embed_tokens(",
        "def unexplained() -> None:\n    pass\n\n\ndef embed_tokens(",
        "model.py: unexplained is shown by no chapter",
    ),
    "a chapter that names a function that is no more": (
        "refembed/reference/model.py",
        "def truncate(",
        "def shorten(",
        "08-matryoshka: refembed/reference/model.py has no truncate",
    ),
    "an example of a function that is no more": (
        "refembed/reference/operations.py",
        "def gelu(",
        "def gaussian_error(",
        "03-norms: refembed/reference/operations.py has no gelu",
    ),
    "a chapter beside a file that is no more": (
        "spec/04-rotary-positions.md",
        "../refembed/reference/positions.py",
        "../refembed/reference/places.py",
        "04-rotary-positions: refembed/reference/places.py is not there",
    ),
    "a function that a chapter's prose calls by another name": (
        "spec/10-losses.md",
        "(`stop_gradient`)",
        "(`stop_gradients`)",
        "10-losses: there is no stop_gradients",
    ),
    "a requirement's code that is no more": (
        "spec/05-attention-and-windows.md",
        "Code: `positions.positions_of`.",
        "Code: `attention.positions_of`.",
        "05-attention-and-windows: there is no attention.positions_of",
    ),
    "a requirement that is no more": (
        "spec/05-attention-and-windows.md",
        "### ATT-3\n",
        "### ATT-9\n",
        "window_mask cites ATT-3, which no chapter defines",
    ),
}


def test_a_trace_that_is_no_more_is_refused():
    """Wrong if a chapter's table would silently lose a tensor that code calls by another name."""
    chapter = book.read_book(ROOT)["05-attention-and-windows"]
    assert "layer.00.attention.scores" in chapter_pages.numbers(ROOT, chapter)
    with pytest.raises(book.BookError, match=r"no tensor of golden/twin is named query_turned"):
        chapter_pages.numbers(ROOT, replace(chapter, traces=(*chapter.traces, "query_turned")))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_chapter_whose_code_moved_is_refused(fault, copy):
    """Wrong if the build would go on with chapters and code that do not fit."""
    book.read_book(copy)
    file, old, new, said = FAULTS[fault]
    change(copy, file, old, new)
    with pytest.raises(book.BookError, match=re.escape(said)):
        book.read_book(copy)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("spec/08-matryoshka.md", "`truncate` in", "`shorten` in", "refembed/reference/model.py has no shorten"),
        ("refembed/reference/positions.py", "distance <= reach, 0", "distance < reach, 0", "window_mask:"),
    ],
    ids=["a name that is no more", "a line that the witness does not know"],
)
def test_the_build_fails(file, old, new, said, copy, tmp_path):
    """Wrong if the command that builds the site ends well though spec/ and the code do not fit."""
    change(copy, file, old, new)
    done = build(copy, tmp_path / "out")
    assert done.returncode == 1
    last = done.stderr.partition("The site is not built:\n")[2]
    assert said in last
    assert "Traceback" not in done.stderr
    assert "developers" not in done.stderr  # Sphinx's, who have no part in it
