"""The repository's own files as pages: what a page links to that is no page is shown as source, a folder as a list."""

import re
from collections.abc import Iterable, Iterator
from html import escape
from os.path import normpath
from pathlib import Path

from book import FENCE, LINK, Chapter
from listing import BESIDE, Witness, listing

SCHEME = "repo:"
SHOWN = {".c", ".h", ".md", ".py", ".sh", ".toml", ".txt", ""}  # a link to any other kind of file is a download
FOLDER = "folder"  # the page of a folder


def target_of(root: Path, page: Path, target: str, pages: Iterable[Path]) -> Path | None:
    """The file or folder a link of a page leads to, from the root, where it is to be shown as source; else None."""
    if ":" in target:
        return None
    path = Path(normpath(root / page.parent / target))
    if not path.exists() or not path.is_relative_to(root):
        return None
    file = path.relative_to(root)
    return None if file in pages or (path.is_file() and file.suffix not in SHOWN) else file


def rewritten(root: Path, page: Path, text: str, pages: Iterable[Path]) -> str:
    """A page's Markdown, its links to what is shown as source marked by SCHEME."""

    def marked(link: re.Match[str]) -> str:
        file = target_of(root, page, link[1], pages)
        return link[0] if file is None else f"{link[0][: link.start(1) - link.start()]}{SCHEME}{file.as_posix()})"

    parts, start = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(marked, text[start : fence.start()]), fence[0]]
        start = fence.end()
    return "".join([*parts, LINK.sub(marked, text[start:])])


def linked(root: Path, pages: Iterable[Path]) -> set[Path]:
    """Every file and folder that a page links to and that is shown as source, and the files of those folders."""
    found = set()
    for page in pages:
        for link in LINK.finditer(FENCE.sub("", (root / page).read_text())):
            file = target_of(root, page, link[1], pages)
            found |= {file} if file is not None else set()
    return found | {inside for file in found if (root / file).is_dir() for inside in within(root, file)}


def within(root: Path, folder: Path) -> list[Path]:
    return sorted(
        file.relative_to(root) for file in (root / folder).iterdir() if file.is_file() and file.suffix in SHOWN
    )


def name_of(root: Path, file: Path) -> str:
    """The page of a file or folder, without .html."""
    return f"source/{file.as_posix()}{f'/{FOLDER}' if (root / file).is_dir() else ''}"


def source_pages(
    root: Path, files: Iterable[Path], witness: Witness, chapters: Iterable[Chapter]
) -> Iterator[tuple[str, dict[str, str], str]]:
    """(name, what the template is given, the template) of each."""
    for file in sorted(files):
        if (root / file).is_dir():
            entries = "".join(
                f'<li><a href="{one.name}.html">{escape(one.name)}</a></li>' for one in within(root, file)
            )
            body = f"<ul>{entries}</ul>"
        else:
            up = "../" * len(file.parts)
            shown = [chapter.stem for chapter in chapters if any(one.file == file for one in chapter.definitions)]
            links = ", ".join(f'<a href="{up}spec/{stem}.html">{stem}</a>' for stem in shown)
            legend = f"<p>Explained in {links}. {BESIDE.capitalize()}.</p>"
            body = f"{legend if shown else ''}{listing(root, file, witness)}"
        context = {"title": file.as_posix(), "body": f"<section><h1>{escape(file.as_posix())}</h1>{body}</section>"}
        yield name_of(root, file), context, "page.html"
