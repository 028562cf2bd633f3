"""The losses: against PyTorch's autograd, finite differences, numbers worked by hand, and the laws they obey."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses_cases import torch_answer
from numpy.typing import NDArray
from reference_strategies import FEW, LAW, seeds

from refembed.reference import losses
from refembed.reference.losses import Batch, Weights

Array = NDArray[np.float64]
SIDES = ("queries", "positives", "negatives")
ALL = ("contrastive", "spread-out", "matching", "total")


@st.composite
def questions(draw: st.DrawFn, loss: str, temperatures: tuple[float, float] = (-4, 4)) -> dict[str, Any]:
    """Any batch: one to five examples of a few texts, with hard negatives or not, at any temperature.

    The form is that of spec/protocol.md, which PyTorch's side of golden/losses_cases.py reads.
    """
    examples, width, teacher = draw(st.integers(1, 5)), draw(st.integers(2, 9)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(seeds))
    sides = SIDES[: draw(st.integers(2, 3))]
    texts = st.lists(st.sampled_from([[2, 1], [2, 5, 1], [2, 1, 5]]), min_size=examples, max_size=examples)

    def batch(columns: int) -> dict[str, Any]:
        near = rng.standard_normal((examples, columns))
        return {"negatives": None} | {
            side: (near + rng.standard_normal((examples, columns))) * np.exp(rng.uniform(-3, 3, (examples, 1)))
            for side in sides
        }

    return {
        "loss": loss,
        **batch(width),
        "teacher": batch(teacher),
        "mapping": rng.standard_normal((teacher, width)),
        "query_texts": draw(texts),
        "positive_texts": draw(texts),
        "temperature": 10 ** draw(st.floats(*temperatures)),
        "alpha": draw(st.floats(0, 20)),
        "lengths": draw(st.lists(st.integers(1, width), min_size=1, max_size=3)),
        "weights": {name: draw(st.floats(0, 3)) for name in ("contrastive", "spread_out", "matching")},
    }


def batch_of(sides: dict[str, Any]) -> Batch:
    queries, positives, negatives = (sides[side] for side in SIDES)
    return Batch(queries, positives, queries[:, None][:, :0] if negatives is None else negatives[:, None])


def functions(asked: dict[str, Any]) -> tuple[Callable[[Batch], Any], Callable[[Batch], Batch]]:
    """The loss that is asked for and its gradient, of a batch."""
    mask = losses.false_negative_mask(asked["query_texts"], asked["positive_texts"])
    teacher, mapping, lengths = batch_of(asked["teacher"]), asked["mapping"], asked["lengths"]
    heat = asked["temperature"], asked["alpha"]
    if asked["loss"] == "total":
        rest = mask, teacher, mapping, lengths, *heat, Weights(**asked["weights"])
        return lambda one: losses.total(one, *rest), lambda one: losses.total_gradient(one, *rest).student
    if asked["loss"] == "matching":
        return (
            lambda one: losses.embedding_matching(one, teacher, mapping),
            lambda one: losses.embedding_matching_gradient(one, teacher, mapping).student,
        )
    of, slope = (
        (losses.spread_out, losses.spread_out_gradient)
        if asked["loss"] == "spread-out"
        else (
            lambda one: losses.contrastive(one, mask, *heat),
            lambda one: losses.contrastive_gradient(one, mask, *heat),
        )
    )
    return lambda one: losses.matryoshka(of, one, lengths), lambda one: losses.matryoshka_gradient(slope, one, lengths)


def close(found: Any, true: Any, within: float = 1e-9) -> bool:
    return bool(np.max(np.abs(found - true), initial=0) <= within * (1 + np.max(np.abs(true), initial=0)))


def random_batch(seed: int = 0, examples: int = 4, width: int = 6, hard: int = 1) -> Batch:
    rng = np.random.default_rng(seed)
    shapes = (examples, width), (examples, width), (examples, hard, width)
    return Batch(*(rng.standard_normal(shape) for shape in shapes))


def distinct(examples: int) -> Array:
    return losses.false_negative_mask([*range(examples)], [*range(examples)])


# against others


@pytest.mark.parametrize("loss", ALL)
def test_autograd_agrees(loss: str) -> None:
    """If this failed, a loss or one of its hand-written gradients would not be what its equation says."""

    @LAW
    @given(questions(loss))
    def agree(asked: dict[str, Any]) -> None:
        value, gradient = functions(asked)
        batch = batch_of(asked)
        theirs = torch_answer(asked, torch.float64)
        assert close(value(batch), theirs["value"])
        ours = gradient(batch)
        assert close(ours.queries, theirs["queries"])
        assert close(ours.positives, theirs["positives"])
        if asked["negatives"] is not None:
            assert close(ours.negatives[:, 0], theirs["negatives"])
        teacher = batch_of(asked["teacher"])
        if loss == "matching":
            found = losses.embedding_matching_gradient(batch, teacher, asked["mapping"]).mapping
            assert close(found, theirs["mapping"])

    agree()


@LAW
@given(questions("total"))
def test_autograd_agrees_on_the_mapping_of_the_total(asked: dict[str, Any]) -> None:
    """If this failed, the total's gradient would reach the mapping with another weight."""
    mask = losses.false_negative_mask(asked["query_texts"], asked["positive_texts"])
    rest = batch_of(asked["teacher"]), asked["mapping"], asked["lengths"], asked["temperature"], asked["alpha"]
    found = losses.total_gradient(batch_of(asked), mask, *rest, Weights(**asked["weights"])).mapping
    assert close(found, torch_answer(asked, torch.float64)["mapping"])


@pytest.mark.parametrize("loss", ALL)
def test_finite_differences_agree(loss: str) -> None:
    """If this failed, a gradient would not be the slope of its loss, the hardness weight held still."""
    constants: list[Array] = []

    @FEW
    @given(questions(loss, temperatures=(-1, 2)), seeds)
    def agree(asked: dict[str, Any], seed: int) -> None:
        value, gradient = functions(asked)
        batch, rng = batch_of(asked), np.random.default_rng(seed)
        way = Batch(*(np.linalg.norm(side, axis=-1, keepdims=True) * rng.standard_normal(side.shape) for side in batch))
        slope = sum(float(np.sum(a * b)) for a, b in zip(way, gradient(batch), strict=True))
        with pytest.MonkeyPatch.context() as patch:
            constants.clear()
            patch.setattr(losses, "stop_gradient", lambda x: constants.append(x) or x)
            value(batch)
            step, ends = 1e-5, []
            for sign in (1, -1):
                held = iter([*constants])
                patch.setattr(losses, "stop_gradient", lambda x, held=held: next(held))
                ends.append(value(Batch(*(a + sign * step * b for a, b in zip(batch, way, strict=True)))))
        assert close((ends[0] - ends[1]) / (2 * step), slope, 1e-5)

    agree()


def test_the_weight_is_not_differentiated() -> None:
    """If this failed, the gradient would flow through the hardness weight, as plain differences would have it."""
    batch, mask = random_batch(), distinct(4)
    moved = batch._replace(negatives=batch.negatives + 1e-6)
    plain = (losses.contrastive(moved, mask, 0.5) - losses.contrastive(batch, mask, 0.5)) / 1e-6
    stopped = np.sum(losses.contrastive_gradient(batch, mask, 0.5).negatives)
    assert abs(plain - stopped) > 0.1 * abs(stopped)


# worked by hand

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def test_contrastive_by_hand() -> None:
    """If this failed, equation and code would differ on numbers that fit on a napkin."""
    queries, positives = np.array([EAST, NORTH]), np.array([EAST, NORTH])
    pairs = Batch(queries, positives, np.empty((2, 0, 2)))
    assert losses.contrastive(pairs, distinct(2), 1.0) == pytest.approx(math.log(1 + math.exp(-1)))
    assert losses.contrastive(pairs, distinct(2), 0.5) == pytest.approx(math.log(1 + math.exp(-2)))
    masked = losses.false_negative_mask(["same", "same"], ["this", "that"])
    assert losses.contrastive(pairs, masked, 1.0) == 0  # each positive alone
    hard = pairs._replace(negatives=np.array([[EAST], [WEST]]))
    first = math.exp(3) * math.e  # alpha 3, sim 1: w = e^3
    expected = (math.log((math.e + 1 + first) / math.e) + math.log((math.e + 1 + 1) / math.e)) / 2
    assert losses.contrastive(hard, distinct(2), 1.0, 3.0) == pytest.approx(expected)  # NORTH x WEST: sim 0, w = 1


def test_contrastive_gradient_by_hand() -> None:
    """If this failed, a query would be pulled elsewhere than to its positive and away from the other."""
    pairs = Batch(np.array([EAST, NORTH]), np.array([EAST, NORTH]), np.empty((2, 0, 2)))
    share = 1 / (1 + math.e)  # of the other's term, at temperature 1
    found = losses.contrastive_gradient(pairs, distinct(2), 1.0)
    # Query 1 lies on its positive: only the part towards NORTH is at right angles to it, share / B of it.
    np.testing.assert_allclose(found.queries, [[0, share / 2], [share / 2, 0]], atol=1e-15)
    np.testing.assert_allclose(found.positives, [[0, share / 2], [share / 2, 0]], atol=1e-15)


def test_spread_out_by_hand() -> None:
    """If this failed, the second moment would count pairs otherwise, or the diagonal."""
    angle = math.pi / 3  # cosine 1/2
    sixty = [math.cos(angle), math.sin(angle)]
    assert losses.second_moment(np.array([EAST, NORTH])) == 0
    assert losses.second_moment(np.array([EAST, WEST])) == 1
    assert losses.second_moment(np.array([EAST, sixty])) == pytest.approx(1 / 4)
    assert losses.second_moment(np.array([EAST, NORTH, WEST])) == pytest.approx(1 / 3)  # one pair of three
    slope = losses.second_moment_gradient(np.array([EAST, sixty]))[0]
    np.testing.assert_allclose(slope, [0, 2 * math.cos(angle) * math.sin(angle)], atol=1e-15)
    batch = Batch(np.array([EAST, WEST]), np.array([EAST, sixty]), np.empty((2, 0, 2)))
    assert losses.spread_out(batch) == pytest.approx(1 + 1 / 4)


def test_matching_by_hand() -> None:
    """If this failed, the distance would not be squared, of unit vectors, summed over numbers and averaged over B."""
    student = Batch(np.array([EAST, [5.0, 0]]), np.array([EAST, EAST]), np.array([[NORTH], [NORTH]]))
    teacher = Batch(np.array([NORTH, NORTH]), np.array([WEST, EAST]), np.array([[NORTH], [NORTH]]))
    assert losses.embedding_matching(student, teacher, np.eye(2)) == pytest.approx(2 + (4 + 0) / 2 + 0)
    turn = np.array([[0.0, -7], [7, 0]])  # a quarter, and seven times as long
    assert losses.distance(student.queries, teacher.queries, turn) == pytest.approx(0)


def test_total_by_hand() -> None:
    """If this failed, lengths would be averaged, the teacher cut, or a weight lost."""
    turned = np.array([[1.0, 0, 1], [0, 1.0, 0]]), np.array([[0.6, 0.8, 0], [0.8, 0.6, 1]])
    batch = Batch(*turned, np.empty((2, 0, 3)))
    teacher = Batch(turned[1], turned[0], np.empty((2, 0, 3)))
    mask, weights = distinct(2), Weights(2, 3, 5)
    expected = 5 * losses.embedding_matching(batch, teacher, np.eye(3))
    for length in (3, 2):
        short = Batch(*(side[..., :length] for side in batch))
        expected += 2 * losses.contrastive(short, mask, 0.1) + 3 * losses.spread_out(short)
    assert losses.total(batch, mask, teacher, np.eye(3), (3, 2), 0.1, weights=weights) == pytest.approx(expected)


def test_mask_by_hand() -> None:
    """If this failed, other pairs would be masked than those with an equal query or an equal positive."""
    mask = losses.false_negative_mask([[2, 7, 1], [2, 8, 1], [2, 7, 1]], [[2, 1], [2, 9, 1], [2, 9, 1]])
    np.testing.assert_array_equal(mask, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    crossed = losses.false_negative_mask(["a", "b"], ["b", "a"])  # a query that is the other's positive
    assert crossed.all()


# laws


@LAW
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_masks_are_symmetric_and_keep_the_positive(queries: list[int], data: st.DataObject) -> None:
    """If this failed, i could be a false negative of j and j none of i, or the positive its own negative."""
    positives = data.draw(st.lists(st.integers(0, 3), min_size=len(queries), max_size=len(queries)))
    mask = losses.false_negative_mask(queries, positives)
    assert (mask == mask.T).all()
    assert mask.diagonal().all()
    pairs = np.array([[q != r and p != s for r, s in zip(queries, positives, strict=True)]
                      for q, p in zip(queries, positives, strict=True)])  # fmt: skip
    np.testing.assert_array_equal(mask, pairs | np.eye(len(queries), dtype=bool))


@pytest.mark.parametrize("loss", ALL)
def test_batches_have_no_order(loss: str) -> None:
    """If this failed, an example's place in its batch would matter."""

    @FEW
    @given(questions(loss), st.randoms(use_true_random=False))
    def agree(asked: dict[str, Any], random: Any) -> None:
        order = random.sample(range(len(asked["queries"])), len(asked["queries"]))
        turned = asked | {key: [asked[key][k] for k in order] for key in ("query_texts", "positive_texts")}
        turned |= {side: asked[side][order] for side in SIDES if asked[side] is not None}
        turned["teacher"] = {k: one if one is None else one[order] for k, one in asked["teacher"].items()}
        (value, gradient), (value_turned, gradient_turned) = functions(asked), functions(turned)
        assert close(value_turned(batch_of(turned)), value(batch_of(asked)))
        for ours, theirs in zip(gradient(batch_of(asked)), gradient_turned(batch_of(turned)), strict=True):
            assert close(theirs, ours[order])

    agree()


@pytest.mark.parametrize("loss", ALL)
def test_lengths_of_raw_vectors_do_not_matter(loss: str) -> None:
    """If this failed, a loss would not normalise; a longer vector must have a gradient as many times smaller."""

    @FEW
    @given(questions(loss), st.floats(-3, 3))
    def agree(asked: dict[str, Any], power: float) -> None:
        factor, batch = 10**power, batch_of(asked)
        value, gradient = functions(asked)
        longer = Batch(*(factor * side for side in batch))
        assert close(value(longer), value(batch))
        for ours, theirs in zip(gradient(batch), gradient(longer), strict=True):
            assert close(factor * theirs, ours)

    agree()


@FEW
@given(questions("contrastive"))
def test_gradients_are_at_right_angles(asked: dict[str, Any]) -> None:
    """If this failed, a step would make vectors longer or shorter, which no loss sees."""
    asked["lengths"] = [asked["queries"].shape[1]]
    batch = batch_of(asked)
    for side, slope in zip(batch, functions(asked)[1](batch), strict=True):
        size = np.linalg.norm(side, axis=-1) * np.linalg.norm(slope, axis=-1)
        along = np.sum(side * slope, axis=-1)
        assert np.all(np.abs(along) <= 1e-9 * (size + np.linalg.norm(side, axis=-1)) + 1e-9)


def test_one_example_has_nothing_to_tell_apart() -> None:
    """If this failed, a batch of one pair would divide by zero, or teach something."""
    batch = random_batch(examples=1, hard=0)
    assert losses.contrastive(batch, distinct(1)) == 0
    assert losses.spread_out(batch) == 0
    slopes = *losses.contrastive_gradient(batch, distinct(1)), *losses.spread_out_gradient(batch)
    assert all(not slope.any() for slope in slopes)


def test_identical_vectors() -> None:
    """If this failed, texts that are embedded alike would break a loss, or count other than once each."""
    batch = Batch(*(np.ones(shape) for shape in ((3, 4), (3, 4), (3, 0, 4))))
    assert losses.contrastive(batch, distinct(3)) == pytest.approx(math.log(3))
    assert losses.spread_out(batch) == pytest.approx(2)
    assert losses.embedding_matching(batch, batch, np.eye(4)) == 0
    for slope in losses.total_gradient(batch, distinct(3), batch, np.eye(4), (4, 2)).student:
        assert np.max(np.abs(slope), initial=0) < 1e-12


@pytest.mark.parametrize("temperature", [1e-4, 1e4])
@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_no_temperature_overflows(temperature: float, number: type) -> None:
    """If this failed, exp() would leave its range, and a loss or gradient be infinite or no number."""
    rows = np.array([EAST, WEST], number)
    worst = Batch(rows, rows[::-1], rows[:, None])  # the farthest positive, the nearest negative
    value = losses.contrastive(worst, distinct(2), temperature)
    assert value == pytest.approx(2 / temperature + 5 if temperature < 1 else math.log(2 + math.exp(5)), rel=1e-3)
    assert all(np.isfinite(slope).all() for slope in losses.contrastive_gradient(worst, distinct(2), temperature))


def test_independent_directions() -> None:
    """If this failed, vectors spread evenly would not have the second moment of 1/d."""
    rows = np.random.default_rng(0).standard_normal((600, 8))
    assert losses.second_moment(rows) == pytest.approx(1 / 8, rel=0.03)


@FEW
@given(seeds, st.integers(1, 6))
def test_what_is_cut_has_no_gradient(seed: int, length: int) -> None:
    """If this failed, numbers beyond every length would be moved, or those within more than one counted once."""
    batch = random_batch(seed)
    slope = partial(losses.contrastive_gradient, mask=distinct(4), temperature=0.5)
    once = losses.matryoshka_gradient(slope, batch, [length])
    for short, whole in zip(slope(Batch(*(side[..., :length] for side in batch))), once, strict=True):
        assert not whole[..., length:].any()
        assert close(whole[..., :length], short)
    for one, two in zip(once, losses.matryoshka_gradient(slope, batch, [length, length]), strict=True):
        assert close(two, 2 * one)


@FEW
@given(questions("total"))
def test_without_a_teacher_the_batch_is_its_own(asked: dict[str, Any]) -> None:
    """If this failed, a batch that is its own teacher would be moved by matching."""
    batch = batch_of(asked)
    mapping = np.eye(batch.queries.shape[1])
    assert losses.embedding_matching(batch, batch, mapping) == 0
    assert not any(slope.any() for slope in losses.embedding_matching_gradient(batch, batch, mapping).student)


@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_float_types_are_kept(number: type) -> None:
    """If this failed, float32 in would be float64 out: twice the memory, and no longer the port's arithmetic."""
    batch, teacher = (Batch(*(side.astype(number) for side in random_batch(seed))) for seed in (0, 1))
    mask, mapping = distinct(4), np.eye(6, dtype=number)
    found = [
        losses.contrastive(batch, mask),
        losses.spread_out(batch),
        losses.embedding_matching(batch, teacher, mapping),
        losses.total(batch, mask, teacher, mapping, (6, 3)),
        *losses.contrastive_gradient(batch, mask),
        *losses.spread_out_gradient(batch),
        *losses.embedding_matching_gradient(batch, teacher, mapping).student,
        losses.embedding_matching_gradient(batch, teacher, mapping).mapping,
        *losses.total_gradient(batch, mask, teacher, mapping, (6, 3)).student,
        losses.total_gradient(batch, mask, teacher, mapping, (6, 3)).mapping,
    ]
    assert {one.dtype for one in found} == {np.dtype(number)}


def test_several_hard_negatives_have_a_term_each() -> None:
    """If this failed, a second hard negative of an example would change what the first one does."""
    batch = random_batch(hard=2)
    ratios = losses.log_ratios(batch, distinct(4), 0.5, 5.0)
    for column in (0, 1):
        alone = batch._replace(negatives=batch.negatives[:, [column]])
        np.testing.assert_allclose(ratios[:, 4 + column], losses.log_ratios(alone, distinct(4), 0.5, 5.0)[:, 4])
