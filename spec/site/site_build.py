"""The extension that makes the site: it reads and checks the book, then adds to each page what is computed for it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import book
import chapter_pages
import listing
import repository
import upstream
from docutils import nodes
from figures import CHAPTERS
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).resolve().parents[2]
CONTENTS = """
```{toctree}
:hidden:
:glob:
:caption: The model
spec/README
spec/0*
```

```{toctree}
:hidden:
:glob:
:caption: Its training
spec/1*
```

```{toctree}
:hidden:
:glob:
:caption: Tables and measurements
spec/[a-z]*
spec/*/*
```

```{toctree}
:hidden:
:glob:
:caption: Beside the specification
*/README
*/*/README
tests/bench/LOG
CHANGELOG
```
"""


@contextmanager
def last_word() -> Iterator[None]:
    """What is wrong with the book ends the build and is the last thing said: no error of Sphinx, no traceback."""
    try:
        yield
    except book.BookError as fault:
        raise SystemExit(f"The site is not built:\n{fault}") from None


class Site:
    """What the build has read and checked before its first page."""

    @last_word()
    def __init__(self, app: Sphinx) -> None:
        self.chapters = book.read_book(ROOT)
        self.witness = listing.read_witness(ROOT)
        if unknown := set(CHAPTERS) - {*self.chapters, *chapter_pages.FOLDERS}:
            raise book.BookError(f"figures.py draws for {', '.join(unknown)}, which is no page with figures")
        self.figures = chapter_pages.draw(Path(app.outdir), CHAPTERS)
        self.pages = [Path(app.project.doc2path(name, absolute=False)) for name in app.project.discover()]
        self.sources = repository.linked(ROOT, self.pages)
        self.sources |= {one.file for chapter in self.chapters.values() for one in chapter.definitions}

    @last_word()
    def read(self, app: Sphinx, name: str, source: list[str]) -> None:
        """A page's Markdown with what is added to it."""
        page, text = Path(app.project.doc2path(name, absolute=False)), source[0]
        key = page.parent.name if page.stem == "README" else page.stem
        if page.parent == Path("spec") and key in self.chapters:
            text = chapter_pages.extended(ROOT, self.chapters[key], self.witness)
        if key in self.figures:
            text = chapter_pages.with_figures(text, self.figures[key])
        text = text.replace("\n\n```\n", "\n```\n")  # the empty line that ends an example for doctest
        text = upstream.in_markdown(repository.rewritten(ROOT, page, text, self.pages))
        source[0] = text + CONTENTS if name == app.config.root_doc else text

    def resolve(self, app: Sphinx, doctree: nodes.document, name: str) -> None:
        """Links to files of the repository lead to their pages."""
        for link in doctree.findall(nodes.reference):
            if link.get("refuri", "").startswith(repository.SCHEME):
                file = Path(link["refuri"].removeprefix(repository.SCHEME))
                link["refuri"] = f"{'../' * name.count('/')}{repository.name_of(ROOT, file)}.html"
                link["internal"] = True

    def collect(self, app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
        return repository.source_pages(ROOT, self.sources, self.witness, self.chapters.values())


ACCESSIBLE = {  # what scrolls sideways must be reached by keyboard, and what axe finds wrong with the theme
    "<pre>": '<pre tabindex="0">',
    '<th class="head"><p></p></th>': "<td></td>",
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    '<aside class="sidebar-drawer"': '<aside aria-label="all pages" class="sidebar-drawer"',
    '<aside class="toc-drawer': '<aside aria-label="this page" class="toc-drawer',
    'class="caption" role="heading"': 'class="caption"',
    '<div id="search-results"></div>': '<h1>Search</h1><div id="search-results"></div>',
}
FRONT = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title><meta http-equiv="refresh" content="0; url={page}">
<a href="{page}">{title}</a></html>
"""


TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
NAME = re.compile(r'(?<=<span class="pre">)[^<]+')


def breakable(html: str) -> str:
    """Names of code in a page's tables may go on in another line after a point, underscore or slash."""
    return TABLE.sub(
        lambda table: NAME.sub(lambda name: re.sub(r"([._/:])(?=\w)", r"\1<wbr>", name[0]), table[0]), html
    )


def finish(app: Sphinx, error: Exception | None) -> None:
    """Make every page accessible and its tables narrow, and open the folder on the README."""
    if error is None:
        for page in Path(app.outdir).rglob("*.html"):
            html = page.read_text()
            for old, new in ACCESSIBLE.items():
                html = html.replace(old, new)
            page.write_text(breakable(html))
        front = FRONT.format(title=app.config.project, page=f"{app.config.root_doc}.html")
        (Path(app.outdir) / "index.html").write_text(front)


def every_page(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """A page may have changed though its Markdown has not: all are read anew, which takes seconds."""
    return sorted(env.found_docs)


def begin(app: Sphinx) -> None:
    site = Site(app)
    app.connect("env-get-outdated", every_page)
    app.connect("source-read", site.read)
    app.connect("doctree-resolved", site.resolve)
    app.connect("html-collect-pages", site.collect)
    app.connect("build-finished", finish)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", begin)
    return {"parallel_read_safe": True}
