"""Texts from Parquet files, by pyarrow (extra arrow), some rows at a time."""

from collections.abc import Iterator
from typing import Any

from ..errors import RefembedError
from ..textfiles import NO_FIELDS, TEXT_FIELD, Fields, Row, checked, row_of

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError as error:
    raise RefembedError(
        "arrow-missing", "Parquet files need the pyarrow package; pip install 'refembed[arrow]'"
    ) from error

__all__ = ["Table", "pa", "parquet"]
ROWS_AT_ONCE = 1024


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
    """Python's values, bytes as texts; what is no UTF-8 becomes a text that the tokenizer finds at fault."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return [cell.decode(errors="surrogateescape") if isinstance(cell, bytes) else cell for cell in column.to_pylist()]
