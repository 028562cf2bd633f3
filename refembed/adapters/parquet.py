"""Texts from Parquet files and vectors to them, by pyarrow (extra arrow), some rows at a time."""

import io
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO, Any

from numpy.typing import NDArray

from ..errors import RefembedError
from ..output import Pieces
from ..textfiles import NO_FIELDS, TEXT_FIELD, Fields, Row, checked, row_of

try:
    import pyarrow as pa
    from pyarrow import ipc, parquet
except ImportError as error:
    raise RefembedError(
        "arrow-missing", "Parquet files need the pyarrow package; pip install 'refembed[arrow]'"
    ) from error

ROWS_AT_ONCE = 1024  # of those read
PIECES_IN_A_GROUP = 8  # of those written: a group is held in memory, and each makes the footer larger


class Table:
    """The rows of a .parquet file, as textfiles.Texts has those of others."""

    def __init__(self, source: str, fields: Fields = NO_FIELDS) -> None:
        self.source, self.fields = source, fields
        self.columns = [fields.text or TEXT_FIELD, *Fields(title=fields.title, id=fields.id).given]
        try:
            self.file = parquet.ParquetFile(source, buffer_size=2**16, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise RefembedError("input-missing", f"{source}: {error}") from error
        types = {field.name: field.type for field in self.file.schema_arrow}
        for name in self.columns:
            if name not in types:
                raise RefembedError(
                    "input-columns", f"{source} has no column {name!r}; it has {', '.join(map(repr, list(types)[:20]))}"
                )
            kind = types[name].value_type if pa.types.is_dictionary(types[name]) else types[name]
            texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
            if not texts and not (name == fields.id and pa.types.is_integer(kind)):
                raise RefembedError("input-columns", f"{source}: column {name!r} is {kind}, texts are needed")

    def expected(self) -> int:
        return self.file.metadata.num_rows

    def __iter__(self) -> Iterator[Row]:
        return checked(self.read(), self.source, self.fields)

    def read(self) -> Iterator[Row]:
        number = 0
        for batch in self.file.iter_batches(ROWS_AT_ONCE, columns=self.columns, use_threads=False):
            for cells in zip(*(cells_of(batch.column(name)) for name in self.columns), strict=True):
                number += 1
                yield row_of(f"{self.source}:{number}", dict(zip(self.columns, cells, strict=True)), self.fields)


def cells_of(column: Any) -> list[Any]:
    """Python's values; what is no UTF-8 becomes a text that the tokenizer finds at fault."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column.to_pylist()
    cells = column.cast(pa.large_binary()).to_pylist()
    return [cell if cell is None else cell.decode(errors="surrogateescape") for cell in cells]


class Parquet:
    """Columns index, id where there is one, text, and embedding, a list of fixed size."""

    one_pass = True

    def pack(self, first: int, rows: Sequence[Row], good: Sequence[int], vectors: NDArray[Any]) -> bytes:
        flat = pa.array(vectors[list(good)].ravel())
        chosen = [rows[place] for place in good]
        ids = {"id": pa.array([row.id for row in chosen])} if any(row.id is not None for row in chosen) else {}
        columns = {
            "index": pa.array([first + place for place in good], pa.int64()),
            **ids,
            "text": pa.array([row.text for row in chosen], pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
        batch = pa.RecordBatch.from_pydict(columns)
        kept = io.BytesIO()
        with ipc.new_stream(kept, batch.schema) as writer:
            writer.write_batch(batch)
        return kept.getvalue()

    def join(self, handle: IO[bytes], pieces: Pieces, like: NDArray[Any]) -> None:
        batches = (ipc.open_stream(piece.packed).read_all() for piece in pieces() if piece.good)
        nothing = ipc.open_stream(self.pack(0, [], [], like)).read_all()
        first = next(batches, nothing)
        with parquet.ParquetWriter(handle, first.schema, use_dictionary=False) as writer:
            while first is not None:
                writer.write_table(pa.concat_tables([first, *islice(batches, PIECES_IN_A_GROUP - 1)]))
                first = next(batches, None)
