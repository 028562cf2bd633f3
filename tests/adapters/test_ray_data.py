"""The Ray Data adapter, on a Ray of two cores."""

import logging
import shutil
import tempfile
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import pytest
from distributed_rows import FAULTY, HOW, TEXTS, TITLES, TWIN, alone, check, embedded, example
from support import missing

import refembed
from refembed.adapters import ray_data
from refembed.adapters.ray_data import Embed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")  # its own of its own
KINDS = [pa.string(), pa.large_string(), pa.binary()]


def rows(kind: pa.DataType = KINDS[0]) -> pa.Table:
    """The texts, then a null and one that is no UTF-8, which Arrow lets through."""
    raw = pa.array([*(text.encode() for text in TEXTS), None, b"the \xff"], pa.binary())
    texts = raw.view(pa.string()).cast(kind)
    return pa.table({"id": pa.array(range(len(raw)), pa.int16()), "text": texts, "title": [*TITLES, None, None]})


@pytest.fixture(scope="module")
def engine():
    """Ray with the least it can have, in a folder that goes with it."""
    if find_spec("ray") is None:
        missing("ray", "pip install -c constraints.txt -e '.[ray]'")
    import ray.data

    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a socket's path must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
        ray.init(num_cpus=2, object_store_memory=80 * 2**20, _temp_dir=folder, **quiet)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield ray
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_a_job_on_ray(engine, tmp_path):
    """Wrong if a job cut into blocks and batches for two actors gives other bits than each text alone or the local
    command, loses a column or a row, or a faulty row takes others with it.
    """
    table = rows()
    done = engine.data.from_arrow([table[:20], table[20:21], table[21:]]).map_batches(
        Embed,
        fn_constructor_kwargs={"model": TWIN, "title": "title", "dimensions": 24, **HOW},
        batch_format="pyarrow",
        batch_size=7,
        compute=engine.data.ActorPoolStrategy(size=2),
    )
    found = pa.concat_tables(engine.get(done.to_arrow_refs()))
    types = {"embedding": pa.list_(pa.float32(), 24), "fault": pa.string()}
    assert dict(zip(found.schema.names, found.schema.types, strict=True)) == {
        **dict(zip(table.schema.names, table.schema.types, strict=True)),
        **types,
    }
    for expected in (alone(titled=True, dimensions=24), embedded(tmp_path)):
        check(found.drop_columns("text").to_pylist(), expected)


@pytest.mark.long  # Ray starts, half a minute
def test_the_example_runs(engine, capsys):
    """Wrong if the example of the module and of spec/running.md does not run as written (on the twin in place of
    EmbeddingGemma).
    """
    code = example(ray_data).replace('"dimensions": 256', '"dimensions": 16, "backend": "numpy"')
    exec(code, {})
    first, second = sorted(eval(capsys.readouterr().out), key=lambda row: row["id"])
    model = refembed.load(TWIN, **HOW)
    assert np.array_equal(np.float32(first["embedding"]), model.encode("Mars is red.", dimensions=16))
    assert (second["embedding"], second["fault"]) == (None, FAULTY[len(TEXTS)])


@pytest.mark.parametrize(("kind", "quantize"), list(zip(KINDS, [None, "int8", "binary"], strict=True)), ids=str)
@pytest.mark.filterwarnings("ignore:.* were cut")
def test_forms_and_types(kind, quantize):
    """Wrong if texts of another Arrow type, or vectors of another form, are not what encode() gives."""
    done = Embed(TWIN, quantize=quantize, task="query", **HOW)(rows(kind))
    expected = alone(quantize=quantize, task="query")
    assert done.schema.field("embedding").type == pa.list_(pa.from_numpy_dtype(expected.dtype), expected.shape[1])
    check(done.drop_columns("text").to_pylist(), expected)


@pytest.mark.filterwarnings("ignore:.* were cut")
def test_again_and_nothing():
    """Wrong if embedding what is embedded doubles columns, or no rows or only faulty ones fail."""
    embedding = Embed(TWIN, **HOW)
    done = embedding(rows())
    assert embedding(done) == done
    for few in (rows()[:0], rows()[len(TEXTS) :]):
        assert embedding(few) == done[len(done) - len(few) :]


def test_batches_of_another_format():
    """Wrong if a map_batches without the batch format ends in something else than what to do."""
    with pytest.raises(refembed.RefembedError, match='a batch is dict; say batch_format="pyarrow"'):
        Embed(TWIN, **HOW)({"text": np.array(["a"])})
