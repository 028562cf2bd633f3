"""The built-in model is what its card says."""

import re
from collections.abc import Iterator
from pathlib import Path

import default_model
import pytest

import refembed
from refembed.embedder import DEFAULT_MODEL

LEAST = {"STS-B en": 76, "Cranfield": 36, "XQuAD-R en": 85, "Banking77": 78}
TOLERANCE = 0.1  # of a score in percent: another CPU sums in another order, and few texts change places
CARD = (DEFAULT_MODEL / "README.md").read_text()


def rows_of(card: str) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Form of the weights, dimensions, and scores of each line of the card's table."""
    table = card[card.index("| model |") :].partition("\n\n")[0]
    header, *lines = re.findall(r"^\|(.+)\|$", table, re.M)
    names = [cell.strip() for cell in header.split("|")]
    for line in lines[1:]:
        cells = dict(zip(names, (cell.strip() for cell in line.split("|")), strict=True))
        yield cells["weights"], int(cells["dimensions"]), {name: float(cells[name]) for name in LEAST}


def cuts_of(card: str) -> dict[int, dict[str, float]]:
    """Dimensions -> scores, of the card's table of cuts."""
    table = card[card.index("\n| dimensions |") + 1 :].partition("\n\n")[0]
    (_, *cuts), _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    columns = zip(*([float(cell) for cell in cells] for _, *cells in lines), strict=True)
    names = [line[0] for line in lines]
    return {int(cut): dict(zip(names, column, strict=True)) for cut, column in zip(cuts, columns, strict=True)}


LONG = ("Banking77", "Cranfield", "XQuAD-R en")  # half a minute or more


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in LEAST])
def test_scores_are_those_of_the_card(name: str, data: Path) -> None:
    """Wrong if the model in the package is another than the one its card describes, a backend spoils it, or a new one
    falls below these scores.
    """
    model = refembed.load(DEFAULT_MODEL, backend="numba")
    told = {(weights, dimensions): scores for weights, dimensions, scores in rows_of(CARD)}
    dimensions = model.config.dimensions
    said = cuts_of(CARD) | {size: scores for (weights, size), scores in told.items() if weights == model.info.weights}
    assert {dimensions, dimensions // 4} < said.keys()
    found = {size: scores[name] for size, scores in default_model.measure(model, data, [name], list(said))}
    assert found == pytest.approx({size: scores[name] for size, scores in said.items()}, abs=TOLERANCE)
    assert found[dimensions] >= LEAST[name]
    assert told["float32", dimensions][name] - found[dimensions] <= 0.5  # by rounding


def test_pairs_are_judged_by_which_answer_comes_first() -> None:
    """If this failed, a recipe would be chosen by chance."""
    rows = [("red fox", "a fox, which is red"), ("blue sky", "the sky in blue"), ("old tree", "this tree is old")]
    by_words = default_model.ByWords
    assert default_model.ndcg_of_pairs(by_words(), rows) == 100
    swapped = [(query, rows[place - 1][1]) for place, (query, _) in enumerate(rows)]
    assert default_model.ndcg_of_pairs(by_words(), swapped) < 70
