"""Many texts: each its own vector or fault; files larger than memory, and what is left when a run is killed."""

import numpy as np
import pytest
from support import SMALL

import refembed
from refembed.bulk import encode_each
from refembed.errors import RefembedError

TEXTS = ["the end", "in the air", "", "birds", "the " * 100]


@pytest.fixture(scope="module")
def model(small_folder) -> refembed.Embedder:
    return refembed.load(small_folder, backend="numpy")


@pytest.mark.parametrize("quantize", [None, "int8", "binary"])
def test_each_text_has_a_vector_or_a_fault(model, quantize) -> None:
    """Wrong if a bad text sinks a good one, a row goes to another text, or a row without a vector looks like one."""
    texts = ["the end", None, "in the air", 5, "\ud800", "birds"]
    found = encode_each(model, texts, quantize=quantize, dimensions=8, task="query")
    good = model.encode_query(["the end", "in the air", "birds"], quantize=quantize, dimensions=8)
    np.testing.assert_array_equal(found.vectors[[0, 2, 5]], good)
    assert found.vectors.dtype == good.dtype
    rest = found.vectors[[1, 3, 4]]
    assert np.isnan(rest).all() if quantize is None else not rest.any()
    assert [fault and fault.id for fault in found.faults] == [
        None, "text-type", None, "text-type", "text-encoding", None]  # fmt: skip


def test_each_with_titles(model) -> None:
    """Wrong if titles move to other texts, or a column of titles that are all empty is refused with a query prompt."""
    titles = ["birds", None, "a"]
    np.testing.assert_array_equal(
        encode_each(model, TEXTS[:3], titles).vectors, model.encode_document(TEXTS[:3], titles=titles)
    )
    queries = encode_each(model, TEXTS[:3], [None] * 3, task="query")
    np.testing.assert_array_equal(queries.vectors, model.encode_query(TEXTS[:3]))


def test_each_of_nothing(model) -> None:
    """Wrong if a part of a table that is empty, or all at fault, ends a job."""
    assert encode_each(model, []).vectors.shape == (0, SMALL.dimensions)
    none = encode_each(model, [None, None], quantize="binary")
    assert (none.vectors.shape, none.vectors.dtype) == ((2, SMALL.dimensions // 8), np.uint8)


@pytest.mark.parametrize(
    ("options", "id"),
    [({"dimensions": 0}, "option-dimensions"), ({"task": "no"}, "option-task"), ({"quantize": "4"}, "option-quantize")],
)
def test_each_refuses_wrong_options(model, options, id) -> None:
    """Wrong if a mistake of the call passes for a fault of every text."""
    with pytest.raises(RefembedError) as caught:
        encode_each(model, ["a"], **options)
    assert caught.value.id == id
