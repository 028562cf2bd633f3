"""scikit-learn's own pipelines, searches over parameters and estimator checks on refembed's transformer."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline, make_union
from sklearn.utils import estimator_checks

import refembed
from refembed.adapters import scikit_learn
from refembed.adapters.scikit_learn import TextEmbedder
from refembed.embedder import DEFAULT_MODEL
from refembed.errors import RefembedError

TWIN = Path(__file__).parents[2] / "golden/twin/checkpoint"
SPACE = [
    "The planet Mars looks red.",
    "Venus is the hottest planet.",
    "A comet orbits the sun.",
    "The moon orbits the earth.",
    "Saturn is a planet with rings.",
    "Stars shine in the galaxy.",
]
MONEY = [
    "The bank lends money.",
    "A loan costs interest.",
    "Shares fell on the stock market.",
    "She paid the bill by card.",
    "The rent is due to the bank.",
    "Save money for taxes.",
]
TEXTS, LABELS = SPACE + MONEY, ["space"] * len(SPACE) + ["money"] * len(MONEY)


def test_classifies() -> None:
    """Wrong if a pipeline with the transformer, pickled and back, does not tell texts of two kinds apart."""
    classifier = make_pipeline(TextEmbedder(DEFAULT_MODEL), LogisticRegression()).fit(TEXTS, LABELS)
    again = pickle.loads(pickle.dumps(classifier))
    assert list(again.predict(["Jupiter is a large planet.", "Pay in cash?"])) == ["space", "money"]
    assert len(pickle.dumps(classifier)) < 50_000, "the model itself is not to be in there"


def test_grid_search() -> None:
    """Wrong if a search over dimensions cannot set them, or loads the model once for each copy it makes."""
    scikit_learn.opened.cache_clear()
    pipeline = make_pipeline(TextEmbedder(DEFAULT_MODEL), LogisticRegression())
    search = GridSearchCV(pipeline, {"textembedder__dimensions": [1, 64]}, cv=2).fit(TEXTS, LABELS)
    few, many = search.cv_results_["mean_test_score"]
    assert few < 0.8 < many
    assert search.best_params_ == {"textembedder__dimensions": 64}
    assert scikit_learn.opened.cache_info().misses == 1


def test_vectors_are_the_librarys() -> None:
    """Wrong if a parameter does not reach the model, or whatever holds the texts changes what they become."""
    model, texts = refembed.load(TWIN), ["mars is red", "venus"]
    expected = model.encode(texts, task="clustering", dimensions=8)
    embedder = TextEmbedder(TWIN, task="clustering", dimensions=8, backend="numpy")
    for given in (texts, tuple(texts), np.array(texts), pd.Series(texts, index=[5, 3]), iter(texts)):
        np.testing.assert_array_equal(embedder.transform(given), expected)
    np.testing.assert_array_equal(embedder.fit_transform(texts), expected)
    plain = TextEmbedder(TWIN).set_params(prompt="say: ")
    np.testing.assert_array_equal(plain.transform(texts), model.encode(texts, prompt="say: "))
    default = TextEmbedder(TWIN).transform(texts)
    np.testing.assert_array_equal(default, model.encode(texts, task="classification"))


def test_names_of_columns() -> None:
    """Wrong if a data frame of the vectors, or several transformers side by side, cannot name their columns."""
    frame = TextEmbedder(TWIN, dimensions=3).set_output(transform="pandas").fit_transform(["mars", "venus"])
    assert list(frame.columns) == ["textembedder0", "textembedder1", "textembedder2"]
    both = make_union(TextEmbedder(TWIN, dimensions=1), TextEmbedder(TWIN, task=None, dimensions=2))
    assert both.fit_transform(["mars"]).shape == (1, 3)
    assert list(both.get_feature_names_out()) == [
        "textembedder-1__textembedder0",
        "textembedder-2__textembedder0",
        "textembedder-2__textembedder1",
    ]


def test_one_column_of_a_data_frame() -> None:
    """Wrong if the names of a data frame's columns are embedded in place of its texts."""
    frame = pd.DataFrame({"text": ["mars", "venus"], "size": [1.0, 2.0]})
    beside = ColumnTransformer([("text", TextEmbedder(TWIN, dimensions=4), "text")], remainder="passthrough")
    found = beside.fit_transform(frame)
    np.testing.assert_allclose(found[:, :4], TextEmbedder(TWIN, dimensions=4).transform(["mars", "venus"]))
    for wrong in (frame, frame[["text"]], np.array([["mars"]]), "mars"):
        with pytest.raises(RefembedError, match="one column of texts"):
            TextEmbedder(TWIN).transform(wrong)


def test_nothing_is_opened_before_the_first_text() -> None:
    """Wrong if a parameter that is to be set later is refused when it is made, cloned, fitted or copied."""
    absent = TextEmbedder("/nowhere", task="?", dimensions=-1)
    again = pickle.loads(pickle.dumps(clone(absent).fit(["mars"])))
    assert again.get_params() == absent.get_params()
    with pytest.raises(RefembedError, match="nowhere"):
        again.transform(["mars"])


# ------------------------------------------------------------------------------------------ scikit-learn's own checks
class OfNumbers(TextEmbedder):
    """The same of a table of numbers, each row a text: nearly all of scikit-learn's checks make such tables, and leave
    out an estimator that takes none, its own of texts too.
    """

    def transform(self, X: Any) -> Any:  # noqa: N803
        return super().transform([" ".join(f"{float(value):.1f}" for value in row) for row in np.asarray(X)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False
        tags.no_validation = True  # of shapes, NaN and kinds of numbers, which texts do not have
        return tags


FAILING = {"check_estimator_sparse_tag": "fit looks at nothing, a sparse table neither"}


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks() -> None:
    """Wrong if it is no estimator by scikit-learn's own rules: parameters, copies, pickles, order of rows, tags ..."""
    (of_texts,) = estimator_checks.check_estimator(TextEmbedder(TWIN), on_skip=None)  # raises where one fails
    assert of_texts["status"] == "passed"
    found = estimator_checks.check_estimator(
        OfNumbers(TWIN, dimensions=4), expected_failed_checks=FAILING, on_skip=None
    )
    by_status = {
        status: {one["check_name"] for one in found if one["status"] == status} for status in ("passed", "xfail")
    }
    assert by_status["xfail"] == set(FAILING)
    assert len(by_status["passed"]) >= 30
