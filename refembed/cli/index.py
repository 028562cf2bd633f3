"""a folder of texts and their vectors: add, remove, list, show, compact

  refembed index add answers answers.txt
  refembed index add answers corpus.jsonl --title-field title
  refembed search answers "how do I cancel?"
  refembed index remove answers corpus.jsonl answers.txt:2
  refembed index list answers
  refembed index show answers --check
  refembed index compact answers

add: each text is put in under its id, in the place of what has that id. An id is the value of --id-field, else
FILE:LINE, and then lines that a FILE no longer has are removed. A text embedded before is not embedded again. The first
add settles --model and --quantize, which later commands then know. remove: an ID, or a FILE for all its lines. compact:
one file in the place of several, without what was removed.

One process changes an index at a time, while others may search it. A change is whole or not there, wherever it is
killed; add keeps every 8,192 texts, and goes on from there. Above 100,000 texts a graph of the usearch package names
those to score, unless --quantize is binary: pip install 'refembed[index]'.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from ..errors import RefembedError, printable
from ..index import Index, open_index
from ..textfiles import Fields, Row
from .shared import add_model_options, add_quantize, load_model, open_rows, prepare_rows

KEPT_AT_ONCE = 8192  # texts that a kill loses at most


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("add", "remove", "list", "show", "compact"))
    command.add_argument("folder", metavar="DIR", help="the index")
    command.add_argument(
        "texts", metavar="FILE|ID", nargs="*", help="with add: files of texts; with remove: ids, files"
    )
    command.add_argument("--text-field", metavar="F", help="the key of a JSON object's text (text)")
    command.add_argument("--title-field", metavar="F", help="the key of a JSON object's title (titles are not used)")
    command.add_argument("--id-field", metavar="F", help="the key of a JSON object's id (FILE:LINE is the id)")
    command.add_argument("--check", action="store_true", help="with show: read every byte, and say what has changed")
    add_quantize(command)
    add_model_options(command)


def run(given: argparse.Namespace) -> int:
    if bool(given.texts) != (given.action in ("add", "remove")):
        needed = {"add": "add needs files", "remove": "remove needs ids"}.get(
            given.action, "only add and remove take more"
        )
        raise RefembedError(
            "option-input", f"index {given.action} {given.folder} and {len(given.texts)} more; {needed}"
        )
    index = open_for(given)
    actions: dict[str, Callable[[argparse.Namespace, Index], int]]
    actions = {"add": add, "remove": remove, "list": list_texts, "show": show, "compact": compact}
    return actions[given.action](given, index)


def open_for(given: argparse.Namespace) -> Index:
    """The index; where there is none, add begins one."""
    options = {"backend": given.backend, "precision": given.precision, "threads": given.threads}
    try:
        return open_index(given.folder, load_model(given) if given.model else None, given.quantize, **options)
    except RefembedError as error:
        if error.id != "index-missing" or given.action != "add":
            raise
        return open_index(given.folder, load_model(given), given.quantize)


def add(given: argparse.Namespace, index: Index) -> int:
    failed = 0
    for file in given.texts:
        rows = said_rows(open_rows(file, Fields(given.text_field, given.title_field, given.id_field)))
        ids = [os.path.normpath(row.place) if row.id is None else str(row.id) for row in rows]
        old = [] if given.id_field else lines_of(index, "stdin" if file == "-" else os.path.normpath(file))
        put, embedded, removed, bad, _ = put_rows(index, rows, ids, old)
        failed += bad
        print(f"{printable(file)}: {put} put in, {embedded} embedded, {removed} removed; {len(index)} texts in all")
    return 1 if failed else 0


def said_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows but for blank ones: a blank text says nothing, and is near to much."""
    return [row for row in rows if row.fault or row.text.strip()]


def lines_of(index: Index, file: str) -> list[str]:
    """Ids of the lines of a file."""
    start = f"{file}:"
    return [id for id in index.known()[0] if id.startswith(start) and id[len(start) :].isdecimal()]


def put_rows(
    index: Index, rows: Sequence[Row], ids: Sequence[str], old: Sequence[str], must_keep: bool = True
) -> tuple[int, int, int, int, str | None]:
    """Put a file's rows in, and remove what it no longer has; faulty ones are reported, with what is old of them.

    old       ids that go unless they are among these
    returns   how many were put in, embedded, removed, and could not be embedded, and why they are not kept
    """
    stale, failed, not_kept = set(old), 0, None
    counts = [0, 0, 0]
    for start in range(0, len(rows) or 1, KEPT_AT_ONCE):
        some = rows[start : start + KEPT_AT_ONCE]
        ready = prepare_rows(index.model, some)
        good = [(ids[start + one], some[one].text, some[one].title) for one in ready.indices]
        stale -= {row[0] for row in good}
        last = start + KEPT_AT_ONCE >= len(rows)
        done = index.update(good, ready.batch, sorted(stale) if last else (), must_keep=must_keep, show_progress=True)
        counts = [before + now for before, now in zip(counts, done[:3], strict=True)]
        failed, not_kept = failed + ready.failed, done.not_kept
    return counts[0], counts[1], counts[2], failed, not_kept


def remove(given: argparse.Namespace, index: Index) -> int:
    known, missing = index.known()[0], 0
    gone: list[str] = []
    for id in given.texts:
        path = os.path.normpath(id)
        found = [one for one in (id, path) if one in known][:1] or lines_of(index, path)
        if not found:
            print(f"refembed: {printable(given.folder)} has no text {printable(id)!r} [index-ids]", file=sys.stderr)
            missing += 1
        gone += found
    removed = index.remove(gone)
    print(f"{removed} removed; {len(index)} texts in all")
    return 1 if missing else 0


def list_texts(given: argparse.Namespace, index: Index) -> int:
    for id, text, _ in index:
        print(f"{printable(id)}\t{printable(text)}")
    return 0


def show(given: argparse.Namespace, index: Index) -> int:
    state = index.state
    if given.check:
        index.check()
    size = sum(stored.bytes for stored in state.files)
    print(f"texts: {len(index)}")
    print(f"model: {printable(state.model[0])}, digest {state.model[1][:12]}, begun with {state.by}")
    print(f"vectors: {state.dimensions} numbers, {state.quantize or 'float32'}")
    print(f"files: {len(state.files)}, {size / 2**20:.1f} MiB{', each as it was written' if given.check else ''}")
    print(f"removed and not yet taken out: {len(state.removed)}")
    print(f"graph: {f'{state.graph.rows} rows' if state.graph else 'none, every text is compared'}")
    return 0


def compact(given: argparse.Namespace, index: Index) -> int:
    index.compact(show_progress=True)
    return show(given, index)
