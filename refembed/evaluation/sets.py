"""Evaluation sets from folders of plain files: what one holds is seen by the names and columns of its files.

form        files                                                              tasks
pairs       .tsv of score, sentence1, sentence2                                sts
labelled    .tsv of label, text; one split of them is train                    classification, clustering
bitext      .tsv of lang, sentence, english                                    bitext
retrieval   qrels[_NAME][-SPLIT].tsv of query-id, corpus-id, score;            retrieval
            queries[-SPLIT].jsonl of _id, text [lang, split, answers or answer];
            NAME.jsonl, corpus.jsonl where there is no NAME, of _id, text [lang, title]

Any file may end in .gz. Tables have their columns' names in the first line, tabs between cells and no quoting. A
table's language and split are its columns lang and split, or its file's name: LANGUAGE-SPLIT.tsv, SPLIT.tsv. answers
are what a passage that answers the query says, in that passage's language.
"""

import json
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import RefembedError
from ..textfiles import BYTE_ORDER_MARK, lines_of, open_source, read_line

FORMS = {
    "pairs": {"score", "sentence1", "sentence2"},
    "labelled": {"label", "text"},
    "bitext": {"lang", "sentence", "english"},
    "retrieval": {"query-id", "corpus-id", "score"},
}
QRELS = re.compile(r"qrels(?:_(?P<corpus>\w+))?(?:-(?P<split>\w+))?\.tsv")
TABLE = re.compile(r"(?:(?P<lang>[a-z]{2,3})-)?(?P<split>train|trial|dev|validation|test)\.tsv")
TEXTS = ("_id", "text", "title", "lang", "split")  # what is a text where a query or document has it
ALL = "all"
Row = dict[str, Any]
Relevant = dict[str, dict[str, int]]


class Search(NamedTuple):
    """Queries, the documents they are asked of, and which is relevant: query id -> document id -> above 0 if it is."""

    queries: list[Row]
    documents: list[Row]
    relevant: Relevant


@dataclass(frozen=True)
class Set:
    """Examples of one form, each with language and split, "" where none is said; of retrieval they are the queries."""

    name: str
    form: str
    rows: list[Row]
    documents: list[Row] = field(default_factory=list)
    relevant: Relevant = field(default_factory=dict)

    def select(self, split: str, languages: Sequence[str] = ()) -> dict[str, list[Row]]:
        """The examples of a split, by language; where a set names no split, or no language, it is taken whole."""
        rows = self.pick("split", self.rows, [] if split == ALL else [split])
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in self.pick("lang", rows, languages):
            groups[row["lang"]].append(row)
        return dict(groups)

    def pick(self, key: str, rows: list[Row], wanted: Sequence[str]) -> list[Row]:
        known = {row[key] for row in rows}
        if not wanted or known == {""}:
            return rows
        for one in wanted:
            check_choice(self.name, {"lang": "language"}.get(key, key), one, known)
        return [row for row in rows if row[key] in wanted]

    def searches(
        self, split: str, languages: Sequence[str] = (), of: str | None = None
    ) -> Iterator[tuple[str, Search]]:
        """One search for each language of the queries; queries to which no document is relevant are left out.

        of   the language of the documents, or "all"; where not given, the queries' own if there are such documents,
             else all
        """
        spoken, same = {document["lang"] for document in self.documents}, self.translations()
        check_choice(self.name, "documents in", of or ALL, {ALL, *spoken})
        for lang, queries in self.select(split, languages).items():
            own = of or (lang if lang in spoken else ALL)
            documents = [document for document in self.documents if own in (ALL, document["lang"])]
            known, found = {document["_id"] for document in documents}, Search([], documents, defaultdict(dict))
            for query in queries:
                asked = same.get(query["_id"].removeprefix(f"{lang}-"), [query])
                judged = {id: score for one in asked for id, score in self.relevant.get(one["_id"], {}).items()}
                judged = {id: score for id, score in judged.items() if id in known}
                if max(judged.values(), default=0) > 0:
                    read = [one for one in asked if len(asked) == 1 or own in (ALL, one["lang"])]
                    found.queries.append(query | {"answers": [answer for one in read for answer in one["answers"]]})
                    found.relevant[query["_id"]] = judged
            if found.queries:
                yield lang, found

    def translations(self) -> dict[str, list[Row]]:
        """Where every id is LANGUAGE-ID, an ID is one thing in every language: ID -> the queries that are it."""
        shared: dict[str, list[Row]] = defaultdict(list)
        if all(row["lang"] and row["_id"].startswith(f"{row['lang']}-") for row in [*self.rows, *self.documents]):
            for query in self.rows:
                shared[query["_id"].removeprefix(f"{query['lang']}-")].append(query)
        return shared


def open_folder(folder: Path, split: str) -> list[Set]:
    """The sets that a folder holds: its tables as one, or one for each file of relevance judgements of this split.

    Raises RefembedError, with file and line where a row is at fault.
    """
    if not folder.is_dir():
        raise RefembedError("set-unknown", f"{folder} is no folder")
    present = sorted(file for file in folder.iterdir() if file.is_file())
    files = {file.name.removesuffix(".gz"): file for file in present}
    if twice := [file for file in present if file not in files.values()]:
        raise RefembedError("set-unknown", f"{twice[0]} is there plain and as .gz; remove one of them")
    judged = [match for name in files if (match := QRELS.fullmatch(name))]
    if not judged:
        return [read_tables(folder, {name: file for name, file in files.items() if name.endswith(".tsv")})]
    splits = {match["split"] or split for match in judged}
    check_choice(str(folder), "split", split, splits)
    return [read_collection(folder, files, match) for match in judged if match["split"] in (None, split)]


def read_tables(folder: Path, files: Mapping[str, Path]) -> Set:
    rows: list[Row] = []
    for name, file in files.items():
        match = TABLE.fullmatch(name)
        said = {key: value or "" for key, value in (match.groupdict() if match else {}).items()}
        rows += [{"lang": "", "split": ""} | said | row for row in read_rows(file)]
    forms = [form for form, needed in FORMS.items() if rows and all(needed <= row.keys() for row in rows)]
    if not forms:
        known = "; ".join(", ".join(sorted(needed)) for needed in FORMS.values())
        raise RefembedError(
            "set-unknown", f"{folder} has no qrels.tsv, and no .tsv files that all have one of: {known}"
        )
    return Set(folder.name, forms[0], rows)


def read_collection(folder: Path, files: Mapping[str, Path], judged: re.Match[str]) -> Set:
    queries, documents = f"queries-{judged['split']}.jsonl", f"{judged['corpus'] or 'corpus'}.jsonl"
    queries = queries if queries in files else "queries.jsonl"
    if missing := [name for name in (queries, documents) if name not in files]:
        raise RefembedError("set-unknown", f"{folder} has {judged[0]}, and needs {' and '.join(missing)} beside it")
    asked, found = (by_id(read_rows(files[name])) for name in (queries, documents))
    relevant: Relevant = defaultdict(dict)
    for row in read_rows(files[judged[0]]):
        if not FORMS["retrieval"] <= row.keys():
            raise RefembedError("set-unknown", f"{row['place']}: columns query-id, corpus-id and score needed")
        if row["query-id"] not in asked or row["corpus-id"] not in found:
            raise RefembedError("set-ids", f"{row['place']}: one of its two ids is not in {queries} or {documents}")
        if not row["score"].is_integer():
            raise RefembedError("line-columns", f"{row['place']}: score {row['score']} is no grade, a whole number")
        relevant[row["query-id"]][row["corpus-id"]] = int(row["score"])
    name = f"{folder.name}/{judged['corpus']}" if judged["corpus"] else folder.name
    return Set(name, "retrieval", list(asked.values()), list(found.values()), relevant)


def by_id(rows: Sequence[Row]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:
        if row["_id"] in found:
            raise RefembedError(
                "set-ids", f"{row['place']}: _id {row['_id']!r} is also at {found[row['_id']]['place']}"
            )
        found[row["_id"]] = row
    return found


def read_rows(file: Path) -> list[Row]:
    """The rows of a .tsv, by the names in its first line, or of a .jsonl, each with its place, FILE:LINE."""
    rows: list[Row] = []
    names: list[str] = []
    try:
        with open_source(str(file)) as handle:
            for number, line in enumerate(lines_of(handle), 1):
                found = read_line(f"{file}:{number}", line.removeprefix(BYTE_ORDER_MARK) if line else line)
                if found.fault:
                    raise RefembedError(found.fault.id, f"{found.place}: {found.fault.reason}")
                if ".jsonl" in file.name and found.text:
                    rows.append(read_object(found.place, found.text))
                elif names and found.text:
                    rows.append(read_cells(found.place, names, found.text.split("\t")))
                names = names or found.text.split("\t")
    except (OSError, EOFError, zlib.error) as error:
        raise RefembedError("input-missing", f"{file}: {getattr(error, 'strerror', None) or error}") from error
    return rows


def read_cells(place: str, names: Sequence[str], cells: Sequence[str]) -> Row:
    row: Row = dict(zip(names, cells, strict=False)) | {"place": place}
    if len(cells) != len(names):
        raise RefembedError("line-columns", f"{place}: {len(cells)} columns, {len(names)} needed as in line 1")
    if "score" in row:
        try:
            row["score"] = float(row["score"])
        except ValueError:
            row["score"] = math.nan
        if not math.isfinite(row["score"]):
            raise RefembedError("line-columns", f"{place}: score is no number")
    return row


def read_object(place: str, line: str) -> Row:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RefembedError("line-json", f"{place}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise RefembedError("line-json", f"{place}: a JSON object is needed, not {type(entry).__name__}")
    row = {"title": "", "lang": "", "split": "", "answers": [entry["answer"]] if "answer" in entry else []}
    row |= {key: value for key, value in entry.items() if value is not None} | {"place": place}
    for key in TEXTS:
        if not isinstance(row.get(key), str):
            raise RefembedError("line-field", f"{place}: {key!r} is {type(row.get(key)).__name__}, a text is needed")
    if not isinstance(row["answers"], list) or not all(isinstance(answer, str) for answer in row["answers"]):
        raise RefembedError("line-field", f"{place}: 'answers' is no list of texts")
    return row


def check_choice(name: str, what: str, wanted: str, known: Collection[str]) -> None:
    if wanted not in known:
        raise RefembedError("set-choice", f"{name} has no {what} {wanted!r}; it has {', '.join(sorted(known))}")
