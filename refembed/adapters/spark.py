"""Any refembed model as a Spark pandas UDF: every Python worker loads it once, and Spark says which rows go where.

    from pyspark.sql import SparkSession
    from refembed.adapters.spark import embed

    session = SparkSession.builder.getOrCreate()
    rows = session.createDataFrame([(1, "Mars is red."), (2, None)], "id int, text string")
    done = embed(rows, "google/embeddinggemma-300m", dimensions=256)
    done.show()  # or done.write.parquet("embedded")

Every column stays, and two come: embedding, array<float>, null where a text is at fault; and fault, which says why,
null elsewhere. embedding_udf() is the same for select() and SQL, both in a struct:

    session.udf.register("embed", embedding_udf("google/embeddinggemma-300m", task="query"))
    session.sql("SELECT embed('red planet').embedding")

A worker loads the model by its name: a folder must be there on every machine. A task has one thread, and Spark runs as
many tasks as there are cores; for more threads set spark.task.cpus likewise.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame, functions

from ..bulk import encode_each
from ..embedder import Embedder, load
from ..vectors import BINARY, INT8, check_quantize

KINDS = {None: "array<float>", INT8: "array<tinyint>", BINARY: "binary"}


def embedding_udf(
    model: str | Path | None = None,
    *,
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = 1,
    revision: str | None = None,
    **options: Any,
) -> Any:
    """A function of a column of texts, and of one of titles where there are, as strings or as their bytes in UTF-8, to
    struct<embedding, fault>. options are encode_each()'s: task, prompt, dimensions, quantize, on_long.
    """
    check_quantize(options.get("quantize"), 8)  # here, not in a worker; the number of dimensions is known there
    how = {"backend": backend, "precision": precision, "threads": threads, "revision": revision}

    def embeddings(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            texts, *titles = map(values, [batch] if isinstance(batch, pd.Series) else batch)
            vectors, faults = encode_each(loaded(model, **how), texts, *titles, **options)
            rows = map(bytes, vectors) if options.get("quantize") == BINARY else vectors
            found = [None if fault else row for row, fault in zip(rows, faults, strict=True)]
            yield pd.DataFrame(
                {"embedding": found, "fault": [fault and f"{fault.id}: {fault.reason}" for fault in faults]}
            )

    return functions.pandas_udf(embeddings, f"struct<embedding: {KINDS[options.get('quantize')]}, fault: string>")


def embed(
    rows: DataFrame, model: str | Path | None = None, *, text: str = "text", title: str | None = None, **options: Any
) -> DataFrame:
    """The rows with their embedding and fault; text and title name columns, the rest is embedding_udf()'s."""
    columns = [functions.col(name).cast("binary") for name in (text, title) if name is not None]
    both = rows.withColumn("embedding", embedding_udf(model, **options)(*columns))
    return both.withColumns({"fault": both.embedding.fault, "embedding": both.embedding.embedding})


@cache
def loaded(model: str | Path | None, **how: Any) -> Embedder:
    """load() once in a Python worker, which serves many tasks; cache(load) itself would be sent there as load."""
    return load(model, **how)


def values(column: pd.Series) -> list[Any]:
    """A column's values; of bytes that are not UTF-8, text that is no Unicode, which is the fault of its row alone."""
    known = column.astype(object).where(column.notna(), None)
    return [one.decode("utf-8", "surrogateescape") if isinstance(one, bytes) else one for one in known]
