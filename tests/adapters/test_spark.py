"""The Spark adapter, on a Spark of two cores."""

import shutil
import sys
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from distributed_rows import FAULTY, HOW, TEXTS, TITLES, TWIN, alone, check, embedded, example
from support import missing

import refembed

if find_spec("pyspark"):
    from refembed.adapters import spark
    from refembed.adapters.spark import embed, embedding_udf

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas")]


@pytest.fixture(scope="module", autouse=True)
def package() -> None:
    """Spark's own, which is installed for pytest -m long alone."""
    if not find_spec("pyspark"):
        missing("spark", "pip install -c constraints.txt -e '.[spark]'")


@pytest.fixture(scope="module")
def session():
    """Spark with the least it can have."""
    if shutil.which("java") is None:
        missing("java", "install Java 17 (on Debian: apt-get install openjdk-17-jre-headless)")
    from pyspark.sql import SparkSession

    settings = {
        "spark.driver.memory": "512m",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",  # less to compile and to clear
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.log.level": "FATAL",
        "spark.pyspark.python": sys.executable,
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "7",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    started = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def rows(session):
    """The texts and titles, then a null and one that is no UTF-8, which Spark lets through."""
    raw = [*(bytearray(text.encode()) for text in TEXTS), None, bytearray(b"the \xff")]
    table = list(zip(range(len(raw)), raw, [*TITLES, None, None], strict=True))
    frame = session.createDataFrame(table, "id smallint, text binary, title string")
    return frame.withColumn("text", frame.text.cast("string"))


def test_a_job_on_spark(rows, tmp_path):
    """Wrong if a job cut into partitions and batches gives other bits than each text alone or the local command,
    loses a column or a row, computes a row twice, or a faulty row takes others with it.
    """
    done = embed(rows, TWIN, title="title", dimensions=24, **HOW)
    types = "id:smallint,text:string,title:string,embedding:array<float>,fault:string"
    assert done.schema.simpleString() == f"struct<{types}>"
    assert done.rdd.getNumPartitions() == 2
    assert done._jdf.queryExecution().executedPlan().toString().count("embeddings(") == 1
    found = [row.asDict() for row in done.drop("text").collect()]
    for expected in (alone(titled=True, dimensions=24), embedded(tmp_path)):
        check(found, expected)


def test_forms_of_vectors_and_sql(session, rows):
    """Wrong if vectors of another form, or of the UDF in SQL, are not what encode() gives."""
    rows.createOrReplaceTempView("texts")
    for form in ("int8", "binary"):
        session.udf.register(f"as_{form}", embedding_udf(TWIN, quantize=form, task="query", **HOW))
    raw = "CAST(text AS BINARY)"
    found = session.sql(f"SELECT id, as_int8({raw}) int8, as_binary({raw}) binary FROM texts").collect()
    for form in ("int8", "binary"):
        check([{"id": row.id, **row[form].asDict()} for row in found], alone(quantize=form, task="query"))


def test_the_example_runs(session, capsys):
    """Wrong if the example of the module and of spec/running.md does not run as written (on the twin in place of
    EmbeddingGemma).
    """
    names = {}
    exec(example(spark).replace("dimensions=256", 'dimensions=16, backend="numpy"'), names)
    assert FAULTY[len(TEXTS)][:12] in capsys.readouterr().out
    first, second = names["done"].collect()
    model = refembed.load(TWIN, **HOW)
    assert np.array_equal(np.float32(first.embedding), model.encode("Mars is red.", dimensions=16))
    assert (second.embedding, second.fault) == (None, FAULTY[len(TEXTS)])


def test_a_worker_loads_once(session, monkeypatch):
    """Wrong if weights travel to the workers, or a worker loads the model anew for each task it serves."""
    from pyspark import cloudpickle

    loads = []
    monkeypatch.setattr(
        spark, "load", lambda *given, **options: loads.append(given) or refembed.load(*given, **options)
    )
    spark.loaded.cache_clear()
    sent = cloudpickle.dumps(embedding_udf(TWIN, **HOW).func)
    assert len(sent) < 10_000
    for _ in range(2):
        batches = list(cloudpickle.loads(sent)(iter([pd.Series(["the", None]), pd.Series(["of"])])))
        assert [list(batch.fault.isna()) for batch in batches] == [[True, False], [True]]
    assert loads == [(TWIN,)]


def test_an_unknown_form():
    """Wrong if a form of vectors that there is not is found out by a worker, at its first row."""
    with pytest.raises(refembed.RefembedError, match="quantize is 'int4'"):
        embedding_udf(TWIN, quantize="int4")
