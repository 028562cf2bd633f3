"""An index: texts with their vectors in a folder, changed a whole step at a time and searched."""

import hashlib
import json
import os
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..embedder import DEFAULT_MODEL, Embedder, check_texts, levels_up, load, raise_first
from ..errors import RefembedError
from ..plugins import plugins
from ..progress import Progress
from ..vectors import BINARY, INT8, Table, best, check_quantize, quantize_vectors, shorten, similarity
from .folder import Graph, State, check_digests, new_file, read_state, stored_file, sweep, write_state, writing
from .scan import check_query, cosines, equal_bits
from .segment import Segment, groups, levels, living, open_segment, write_segment

EXACT_ROWS = 100_000  # up to here each is compared with a query: 256 floats each in 5 ms of a core, int8 in 10
GRAPHS = "refembed.graphs"  # the entry point of an adapter that makes them
LEAST_SEEN = 100  # rows asked of a graph
NO_GRAPHS = (
    "each of {} texts is compared with a query, because the usearch package is not installed; more than "
    f"{EXACT_ROWS:,} want a graph: pip install 'refembed[index]'"
)
SEEN_AGAIN = 4  # how many times k rows of a graph are scored by the vectors kept
CONTENT = 16  # bytes of a digest: enough that no two texts ever share one


class Hit(NamedTuple):
    """A text found, and its cosine with the query."""

    score: float
    id: str
    text: str
    title: str | None


class Changed(NamedTuple):
    """What update() did: texts put in or replaced, texts embedded, rows removed, and why it is not kept."""

    put: int
    embedded: int
    removed: int
    not_kept: str | None = None


def open_index(
    folder: str | Path, model: Embedder | None = None, quantize: str | None = None, **options: Any
) -> "Index":
    """Open the index in a folder, or begin one: the folder is made by the first change.

    model      the model of its texts; where not given, the one that the index was begun with is loaded when needed
    quantize   how a new index keeps its vectors: None, "int8", or "binary" (with int8 beside the bits, to rescore by)
    options    of refembed.load, for the model that is not given

    Raises RefembedError where there is none and no model is given, it is of another model or form, or is damaged.
    """
    folder = Path(folder)
    state = read_state(folder)
    if state is None:
        if model is None:
            raise RefembedError("index-missing", f"{folder} holds no index; make one: refembed index add {folder} FILE")
        return Index(folder, model, empty(model, quantize))
    if model:
        check_model(folder, state, model)
    if quantize not in (None, state.quantize):
        raise RefembedError(
            "option-quantize", f"{folder} keeps {state.quantize or 'float32'} vectors, not {quantize}; leave it out"
        )
    return Index(folder, model, state, options)


def check_model(folder: Path, state: State, model: Embedder) -> None:
    """Raise RefembedError where an index is of another model; its digest is not asked for while no file has changed."""
    name, digest, stamp = state.model
    if stamp != model.checkpoint.stamp and digest != model.checkpoint.digest:
        raise RefembedError(
            "index-model",
            f"{folder} was made with {name} (digest {digest[:12]}), not with {model.name} "
            f"({model.checkpoint.digest[:12]}); name that model, or another folder",
        )


def open_renewed(folder: Path, model: Embedder, quantize: str | None) -> "Index":
    """The same, begun anew where what is there is of another model, backend, precision or form, or damaged."""
    try:
        index = open_index(folder, model, quantize)
        if (index.state.by, index.state.quantize) == (computed_by(model), quantize):
            return index
    except RefembedError:
        pass
    return Index(folder, model, empty(model, quantize), anew=True)


def empty(model: Embedder, quantize: str | None) -> State:
    """The state of an index not begun yet."""
    check_quantize(quantize, model.config.dimensions)
    return State(0, described(model), computed_by(model), model.config.dimensions, quantize)


def described(model: Embedder) -> tuple[str, str, str]:
    """What a manifest says of a model: the name to load it by, its digest and its stamp."""
    local = model.checkpoint.folder != DEFAULT_MODEL and os.path.exists(model.name)
    return os.path.abspath(model.name) if local else model.name, model.checkpoint.digest, model.checkpoint.stamp


def computed_by(model: Embedder) -> str:
    """Backend and precision, which a vector's last digits depend on."""
    return f"{model.backend.name} {model.encoder.precision}"


@cache  # an import that fails is not tried again by every query
def graphs() -> ModuleType | None:
    """The adapter that makes and searches graphs, where its library is installed."""
    for entry in plugins(GRAPHS):
        with suppress(ImportError):
            return entry.load()
    return None


class Index:
    """An index as it was when it was opened, or last changed here; refresh() looks again. Made by open_index."""

    def __init__(
        self, folder: Path, model: Embedder | None, state: State, options: Any = None, anew: bool = False
    ) -> None:
        self.folder, self.options, self.anew, self.said = folder, options or {}, anew, False
        if model:
            self.model = model
        self.take(state)

    @cached_property
    def model(self) -> Embedder:
        """The model of its texts."""
        name = self.state.model[0]
        model = load(None if name == "default" else name, **self.options)
        check_model(self.folder, self.state, model)
        return model

    def take(self, state: State) -> None:
        """Be of this state."""
        self.maps: tuple[dict[str, int], dict[bytes, int]] | None = None
        self.state = state
        self.starts = list(accumulate((len(one.keys) for one in state.segments), initial=0))
        self.keys = np.concatenate([one.keys for one in state.segments] or [np.empty(0, np.int64)])  # (rows,)
        self.alive = ~np.isin(self.keys, np.fromiter(state.removed, np.int64))  # (rows,)
        self.found: Any = None  # the graph, opened when it is needed

    def refresh(self) -> None:
        """See what others have changed since."""
        none = replace(self.state, generation=0, segments=(), removed=frozenset(), graph=None)
        state = read_state(self.folder) or none
        if state.model[1] != self.state.model[1]:
            raise RefembedError("index-model", f"{self.folder} was made anew with {state.model[0]}; open it again")
        if (state.generation, state.files) != (self.state.generation, self.state.files):
            self.take(state)

    def __len__(self) -> int:
        """How many texts there are."""
        return int(self.alive.sum())

    def __iter__(self) -> Iterator[tuple[str, str, str | None]]:
        """Id, text and title of each text, in the order they came."""
        return (self.row(place) for place in np.flatnonzero(self.alive).tolist())

    # --------------------------------------------------------------------------------------------------------- changes
    def add(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        titles: Sequence[str | None] | None = None,
        show_progress: bool = False,
    ) -> Changed:
        """Put texts in, each in the place of what has its id; those embedded before are not embedded again.

        Raises RefembedError where a text cannot be embedded, or another process is changing the index; then nothing is
        changed.
        """
        texts = check_texts(texts)
        batch = raise_first(self.model.prepare(texts, titles=titles))
        rows = list(zip(ids, texts, titles or [None] * len(texts), strict=False))
        if len(ids) != len(texts) or not all(isinstance(id, str) for id in ids):
            raise RefembedError("index-ids", f"{len(ids)} ids for {len(texts)} texts; one text each is needed")
        return self.update(rows, batch, show_progress=show_progress)

    def remove(self, ids: Sequence[str]) -> int:
        """Take texts out; how many there were of these ids."""
        if isinstance(ids, str):
            raise RefembedError("index-ids", f"ids is the string {ids!r}; a list of ids is needed, such as [{ids!r}]")
        return self.update([], [], remove=ids).removed

    def compact(self, show_progress: bool = False) -> None:
        """Write all rows as one file, without those removed, and the graph anew."""
        self.update([], [], compact=True, show_progress=show_progress)

    def check(self) -> None:
        """Read every file, and raise RefembedError where a byte of one has changed."""
        check_digests(self.folder, self.state.files)

    def update(
        self,
        rows: Sequence[tuple[str, str, str | None]],
        batch: Sequence[NDArray[Any]],
        remove: Sequence[str] = (),
        compact: bool = False,
        must_keep: bool = True,
        show_progress: bool = False,
    ) -> Changed:
        """One change as a whole: rows (id, text, title) put in, ids removed.

        batch       (rows) id arrays: what Embedder.prepare made of them
        must_keep   False: what cannot be written is searched all the same, until this process ends
        """
        not_kept = None
        with ExitStack() as held:
            try:
                held.enter_context(writing(self.folder))
                if not self.anew:
                    self.refresh()
                    sweep(self.folder, self.state)
            except RefembedError as error:
                if must_keep:
                    raise
                not_kept = str(error)
            given = {row[0]: (row, tokens) for row, tokens in zip(rows, batch, strict=True)}
            state, changed, put = self.changed(given, remove, show_progress)
            if (state is not self.state or compact or self.anew) and not not_kept:
                try:
                    state = self.written(state, compact, show_progress)
                    self.anew = False
                except RefembedError as error:
                    if must_keep:
                        raise
                    not_kept = str(error)
            if state is not self.state:
                ids, contents = self.known()
                for id in {*remove} - {*given}:
                    ids.pop(id, None)
                ids |= {id: key for id, (key, _) in put.items()}
                contents |= {content: key for key, content in put.values()}
                self.take(state)
                self.maps = ids, contents
        return changed._replace(not_kept=not_kept)

    def changed(
        self, given: dict[str, tuple[tuple[str, str, str | None], NDArray[Any]]], remove: Sequence[str], show: bool
    ) -> tuple[State, Changed, dict[str, tuple[int, bytes]]]:
        """The state after a change, its new rows in memory, and the new rows' keys and contents by id."""
        ids, _ = self.known()
        gone = {ids[id] for id in {*remove} - {*given} if id in ids}
        removed, put = len(gone), {}
        fresh: list[tuple[bytes, bytes, NDArray[Any]]] = []
        for id, (row, tokens) in given.items():
            content = hashlib.sha256(np.asarray(tokens, "<i8").tobytes()).digest()[:CONTENT]
            text, old = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"), ids.get(id)
            if old is not None:
                segment, place = self.at(int(np.searchsorted(self.keys, old)))
                if segment.json(place) == text and segment.contents[place].tobytes() == content:
                    continue
                gone.add(old)
            put[id] = self.state.next_key + len(fresh), content
            fresh.append((text, content, tokens))
        if not fresh and not gone:
            return self.state, Changed(0, 0, 0), {}
        segments, embedded = self.state.segments, 0
        if fresh:
            segment, embedded = self.segment_of(fresh, show)
            segments = (*segments, segment)
        state = replace(
            self.state,
            segments=segments,
            removed=self.state.removed | gone,
            next_key=self.state.next_key + len(fresh),
        )
        return state, Changed(len(fresh), embedded, removed), put

    def segment_of(self, fresh: list[tuple[bytes, bytes, NDArray[Any]]], show: bool) -> tuple[Segment, int]:
        """New rows as a segment in memory, and how many had to be embedded: no content is twice."""
        contents = self.places_of({content for _, content, _ in fresh})
        new = {content: tokens for _, content, tokens in fresh if content not in contents}
        quantize, size, count = self.state.quantize, self.state.dimensions, len(fresh)
        vectors = self.model.encode_tokens(list(new.values()), size, show)
        tables: dict[str, Any] = {"bits": None, "vectors": quantize_vectors(vectors, INT8 if quantize else None)}
        if quantize == BINARY:
            tables["bits"] = quantize_vectors(vectors, BINARY)
        order = {content: place for place, content in enumerate(new)}
        made = np.array([order.get(content, -1) for _, content, _ in fresh], np.int64)
        kept = np.array([contents.get(content, -1) for _, content, _ in fresh], np.int64)
        for name, table in tables.items():
            if table is None:
                continue
            rows = np.empty((count, table.shape[1]), table.dtype)
            rows[made >= 0] = table[made[made >= 0]]
            rows[kept >= 0] = self.gather(name, kept[kept >= 0])
            tables[name] = rows
        texts = [text for text, _, _ in fresh]
        segment = Segment(
            keys=np.arange(count, dtype=np.int64) + self.state.next_key,
            ends=np.cumsum([len(text) for text in texts], dtype=np.int64),
            contents=np.frombuffer(b"".join(content for _, content, _ in fresh), np.uint8).reshape(count, CONTENT),
            rows=np.frombuffer(b"".join(texts), np.uint8),
            **tables,
        )
        return segment, len(new)

    def written(self, state: State, compact: bool, show: bool) -> State:
        """Write a change, and return the state as it is now on the disk. On an error nothing is changed."""
        segments: list[Segment] = []
        removed: set[int] = set()
        for group in groups(state.segments, state.removed, compact):
            one, places = group[0]
            if len(group) == 1 and one.stored and len(places) * 2 >= len(one.keys) and not compact:  # as it is
                segments.append(one)
                removed.update(state.removed.intersection(one.keys.tolist()))
            elif sum(len(places) for _, places in group):
                # what is damaged must not be written anew, with a digest that says it is not
                check_digests(self.folder, [segment.stored for segment, _ in group if segment.stored])
                with new_file(self.folder, "segment") as file:
                    write_segment(file, group)
                segments.append(open_segment(self.folder, stored_file(file)))
        state = replace(
            state,
            generation=state.generation + 1,
            model=described(self.model) if "model" in vars(self) else state.model,
            segments=tuple(segments),
            removed=frozenset(removed),
        )
        state = replace(state, graph=self.graph_of(state, compact, show))
        write_state(self.folder, state)
        return state

    def graph_of(self, state: State, anew: bool, show: bool) -> Graph | None:
        """The graph for a state: the one there is while it leaves out no more rows than are compared one by one."""
        parts = [(segment, living(segment, state.removed)) for segment in state.segments]
        count, old = sum(len(places) for _, places in parts), state.graph
        if count <= EXACT_ROWS or state.quantize == BINARY:
            return None
        inside = sum(int((one.keys[places] < old.until).sum()) for one, places in parts) if old else 0
        if old and (anew or inside * 2 < old.rows):  # it is mostly of rows removed
            old, inside = None, 0
        if old and count - inside <= EXACT_ROWS:
            return old
        adapter = graphs()
        if adapter is None:
            warnings.warn(NO_GRAPHS.format(count), stacklevel=levels_up())
            return old
        until = old.until if old else 0
        new = (one for segment, places in parts for one in levels(segment, places[segment.keys[places] >= until]))
        with new_file(self.folder, "graph") as file, Progress(count - inside, show, "texts in the graph") as progress:
            adapter.extend(old and self.folder / old.stored.file, file, state.dimensions, new, progress.add)
        rows = count - inside + (old.rows if old else 0)
        return Graph(stored_file(file), state.next_key, rows)

    # --------------------------------------------------------------------------------------------------- what is there
    def known(self) -> tuple[dict[str, int], dict[bytes, int]]:
        """The key of each id, and of a row of each content."""
        if self.maps is None:
            ids, contents = {}, {}
            for segment in self.state.segments:
                for place in living(segment, self.state.removed).tolist():
                    key = int(segment.keys[place])
                    ids[segment.row(place)[0]] = contents[segment.contents[place].tobytes()] = key
            self.maps = ids, contents
        return self.maps

    def places_of(self, contents: set[bytes]) -> dict[bytes, int]:
        """The places of rows of these contents, where there are any."""
        known = self.known()[1]
        there = {content: known[content] for content in contents if content in known}
        places = np.searchsorted(self.keys, np.fromiter(there.values(), np.int64, len(there))).tolist()
        found = dict(zip(there, places, strict=True))
        return {one: at for one, at in found.items() if at < len(self.keys) and self.keys[at] == there[one]}

    def at(self, place: int) -> tuple[Segment, int]:
        """A row's segment, and its place there."""
        number = bisect_right(self.starts, place) - 1
        return self.state.segments[number], place - self.starts[number]

    def row(self, place: int) -> tuple[str, str, str | None]:
        """A row's id, text and title."""
        segment, row = self.at(place)
        return segment.row(row)

    def gather(self, column: str, places: NDArray[np.int64]) -> Table:
        """Some rows of "vectors" or "bits", in the order of their places: (places, ...)."""
        parts = [self.at(place) for place in places.tolist()]
        if not parts:
            return np.empty((0, self.state.dimensions // (8 if column == "bits" else 1)), np.uint8)
        return np.stack([getattr(segment, column)[row] for segment, row in parts])

    # ---------------------------------------------------------------------------------------------------------- search
    def search(self, query: str | Table, k: int = 10, dimensions: int | None = None, rescore: int = 4) -> list[Hit]:
        """The k texts nearest to a query, best first, those that came earlier first among equals.

        query        a text, or its embedding (d,), floats
        dimensions   compare the first numbers only (MAT-4, MAT-7); the graph is then of no use
        rescore      of a binary index: k * rescore rows are found by bits, then scored by int8 (MAT-9); 0: by bits

        Every row is compared where there are up to EXACT_ROWS, or bits; else a graph names rows to score.
        """
        size = self.state.dimensions if dimensions is None else self.model.check_dimensions(dimensions)
        check_quantize(self.state.quantize, size)
        if isinstance(query, str):
            query = self.model.encode_query(query, dimensions=size)
        asked = check_query(query, k, rescore, size)
        graph = self.graph(size)
        places = self.from_scan(asked, k, rescore, self.state.graph.until if graph and self.state.graph else 0)
        if graph:
            places = np.union1d(self.from_graph(graph, asked, k), places)
        column = "bits" if self.state.quantize == BINARY and not rescore else "vectors"
        finer = shorten(self.gather(column, places), size) if len(places) else np.empty((0, size), np.float32)
        if column == "bits":
            asked = quantize_vectors(asked, BINARY)
        scores = similarity(asked, finer)[0]
        return [Hit(float(scores[one]), *self.row(int(places[one]))) for one in best(scores, k)]

    def graph(self, size: int) -> Any:
        """The graph, opened, where one can name the rows near a query of this size; None where all are compared."""
        graph = self.state.graph
        if self.state.quantize == BINARY or size != self.state.dimensions or not (graph or len(self) > EXACT_ROWS):
            return None
        adapter = graphs()  # imported for this alone
        if adapter is None and not self.said:
            self.said = True
            warnings.warn(NO_GRAPHS.format(len(self)), stacklevel=levels_up())
        if graph is None or adapter is None:
            return None
        if self.found is None:
            file = self.folder / graph.stored.file
            try:
                self.found = adapter.opened(file, size)
            except RefembedError:
                if file.exists():
                    raise
                return None  # a writer has removed it since: every row is compared, as they were
        return self.found

    def from_graph(self, graph: Any, asked: Table, k: int) -> NDArray[np.int64]:
        """Places of the nearest rows that a graph holds: at least SEEN_AGAIN * k where it has so many."""
        adapter, about = graphs(), self.state.graph
        assert adapter is not None
        assert about is not None
        wanted = min(SEEN_AGAIN * k, int((self.alive & (self.keys < about.until)).sum()))
        count, level = min(max(wanted, LEAST_SEEN), about.rows), quantize_vectors(asked, INT8)
        while True:
            keys = np.sort(adapter.search(graph, level, count))
            places = np.searchsorted(self.keys, keys)
            there = places < len(self.keys)
            places = places[there][self.keys[places[there]] == keys[there]]
            places = places[self.alive[places]]
            if len(places) >= wanted or count >= about.rows:  # rows removed since take places from others
                return places
            count = min(4 * count, about.rows)

    def from_scan(self, asked: Table, k: int, rescore: int, since: int) -> NDArray[np.int64]:
        """Of the rows compared one by one, the places of all that scoring in float64 could put first."""
        binary = self.state.quantize == BINARY
        coarse = np.full(len(self.keys), -np.inf, np.float32)
        for start, segment in zip(self.starts, self.state.segments, strict=False):
            first = int(np.searchsorted(segment.keys, since))
            table: Any = segment.bits if binary else segment.vectors
            found = (equal_bits if binary else cosines)(asked, table[first:])
            coarse[start + first : start + first + len(found)] = found
        coarse[~self.alive] = -np.inf
        if binary:
            return best(coarse, k * max(rescore, 1))
        kth = best(coarse, k)
        if len(kth) < k:
            return kth
        margin = 4 * len(asked) * np.finfo(np.float32).eps  # what float32 sums of unit vectors may be off, twice
        return np.flatnonzero(coarse >= coarse[kth[-1]] - margin)
