"""Vectors to Parquet files, by pyarrow (extra arrow), some rows at a time."""

import io
from collections.abc import Sequence
from itertools import islice
from typing import IO, Any

from numpy.typing import NDArray

from ..output import Pieces
from ..textfiles import Row
from .parquet import pa, parquet

PIECES_IN_A_GROUP = 8  # a group is held in memory, and each makes the footer larger


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
        with pa.ipc.new_stream(kept, batch.schema) as writer:
            writer.write_batch(batch)
        return kept.getvalue()

    def join(self, handle: IO[bytes], pieces: Pieces, like: NDArray[Any]) -> None:
        batches = (pa.ipc.open_stream(piece.packed).read_all() for piece in pieces() if piece.good)
        nothing = pa.ipc.open_stream(self.pack(0, [], [], like)).read_all()
        first = next(batches, nothing)
        with parquet.ParquetWriter(handle, first.schema, use_dictionary=False) as writer:
            while first is not None:
                writer.write_table(pa.concat_tables([first, *islice(batches, PIECES_IN_A_GROUP - 1)]))
                first = next(batches, None)
