"""The losses in PyTorch: the reference's values and gradients, and the golden ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from refembed_torch import losses

from refembed.conformance.losses import ALONE, verify_losses
from refembed.conformance.suite import golden_folder
from refembed.errors import RefembedError
from refembed.reference import losses as reference

SIDES = ("queries", "positives", "negatives")


def tensors(batch: reference.Batch) -> losses.Batch:
    return losses.Batch(*(torch.tensor(side, requires_grad=True) for side in batch))


def gradients(value: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    return [one.numpy() for one in torch.autograd.grad(value, inputs, materialize_grads=True)]


def agree(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-9 * max(1, np.abs(expected).max(initial=0)), rtol=1e-9)


@settings(max_examples=80)
@given(
    examples=some.integers(1, 6),
    hard=some.integers(0, 2),
    width=some.integers(4, 24),
    teacher_width=some.integers(3, 20),
    data=some.data(),
    temperature=some.sampled_from([1e-3, 0.02, 1.0]),
    alpha=some.sampled_from([0.0, 5.0]),
    seed=some.integers(0, 999),
)
def test_values_and_gradients_are_the_references(
    examples: int,
    hard: int,
    width: int,
    teacher_width: int,
    data: some.DataObject,
    temperature: float,
    alpha: float,
    seed: int,
) -> None:
    """Wrong if any loss, its gradient, the mask, the stop-gradient, a length or a weight is not the reference's."""
    rng = np.random.default_rng(seed)

    def draw(columns: int) -> reference.Batch:
        sides = [rng.standard_normal((examples, columns)) for _ in range(2)]
        return reference.Batch(*sides, rng.standard_normal((examples, hard, columns)))

    batch, teacher = draw(width), draw(teacher_width)
    texts = [data.draw(some.lists(some.integers(0, 3), min_size=examples, max_size=examples)) for _ in range(2)]
    lengths = data.draw(some.lists(some.integers(1, width), min_size=1, max_size=3))
    weights = reference.Weights(*rng.uniform(0, 2, 3))
    mapping = rng.standard_normal((teacher_width, width))
    mask = reference.false_negative_mask(*texts)
    own, goal, learned = tensors(batch), tensors(teacher), torch.tensor(mapping, requires_grad=True)
    np.testing.assert_array_equal(losses.mask_of(*texts).numpy(), mask)
    masked = torch.from_numpy(mask)

    value = losses.contrastive(own, masked, temperature, alpha)
    agree(value.item(), reference.contrastive(batch, mask, temperature, alpha))
    for found, expected in zip(
        gradients(value, own), reference.contrastive_gradient(batch, mask, temperature, alpha), strict=True
    ):
        agree(found, expected)
    value = losses.spread_out(own)
    agree(value.item(), reference.spread_out(batch))
    for found, expected in zip(gradients(value, own), reference.spread_out_gradient(batch), strict=True):
        agree(found, expected)
    value = losses.embedding_matching(own, goal, learned)
    agree(value.item(), reference.embedding_matching(batch, teacher, mapping))
    value = losses.total(own, masked, goal, learned, lengths, temperature, alpha, weights)
    agree(value.item(), reference.total(batch, mask, teacher, mapping, lengths, temperature, alpha, weights))
    of_batch, of_mapping = reference.total_gradient(batch, mask, teacher, mapping, lengths, temperature, alpha, weights)
    for found, expected in zip(gradients(value, (*own, learned)), (*of_batch, of_mapping), strict=True):
        agree(found, expected)


def test_without_a_teacher_or_a_map() -> None:
    """Wrong if the total cannot do without distillation, or widths that agree need a map."""
    rng = np.random.default_rng(0)
    batch, teacher = (
        reference.Batch(*(rng.standard_normal(shape) for shape in ((3, 8), (3, 8), (3, 1, 8)))) for _ in range(2)
    )
    mask = losses.mask_of(range(3), range(3))
    expected = reference.matryoshka(
        lambda cut: reference.contrastive(cut, mask.numpy()) + reference.spread_out(cut), batch, [8, 4]
    )
    agree(losses.total(tensors(batch), mask, lengths=[8, 4]).item(), expected)
    found = losses.embedding_matching(tensors(batch), tensors(teacher))
    agree(found.item(), reference.embedding_matching(batch, teacher, np.eye(8)))


def test_the_teacher_is_a_constant() -> None:
    """Wrong if distillation trains the teacher too."""
    own, goal = (losses.Batch(*torch.randn(3, 2, 8).unbind()[:2], torch.randn(2, 0, 8)) for _ in range(2))
    for side in (*own, *goal):
        side.requires_grad_()
    losses.embedding_matching(own, goal).backward()
    assert own.queries.grad is not None
    assert all(side.grad is None for side in goal)


@pytest.mark.parametrize("hard", [0, 1, 3])
def test_split_keeps_examples_together(hard: int) -> None:
    """Wrong if a packed batch's vectors go to other examples than their texts came from."""
    queries, positives, negatives = torch.arange(4.0), 10 + torch.arange(4.0), 100 + torch.arange(4.0 * hard)
    found = losses.split(torch.cat([queries, positives, negatives])[:, None], 4)
    assert torch.equal(found.queries[:, 0], queries)
    assert torch.equal(found.positives[:, 0], positives)
    assert found.negatives.shape == (4, hard, 1)
    assert torch.equal(found.negatives[..., 0], negatives.view(4, hard))


SHAPES = {"queries": (3, 4), "positives": (3, 4), "negatives": (3, 2, 4)}


def of_shapes(**other: tuple[int, ...]) -> losses.Batch:
    return losses.Batch(*(torch.ones(shape) for shape in (SHAPES | other).values()))


@pytest.mark.parametrize(
    "other",
    [
        {"queries": (3,)},
        {"queries": (0, 4), "positives": (0, 4), "negatives": (0, 2, 4)},
        {"positives": (1, 4)},
        {"positives": (3, 1)},
        {"negatives": (3, 4)},
        {"negatives": (1, 2, 4)},
        {"negatives": (3, 2, 1)},
    ],
)
def test_sides_that_do_not_fit_are_refused(other: dict[str, tuple[int, ...]]) -> None:
    """Wrong if one side is repeated in silence to fit another, and something else is trained than was meant."""
    batch, mask = of_shapes(**other), torch.ones(3, 3, dtype=torch.bool)
    for loss in (
        lambda: losses.contrastive(batch, mask),
        lambda: losses.spread_out(batch),
        lambda: losses.embedding_matching(batch, batch),
        lambda: losses.total(batch, mask, lengths=[2]),
    ):
        with pytest.raises(RefembedError, match=next(iter(other))) as caught:
            loss()
        assert caught.value.id == "loss-shape"


@pytest.mark.parametrize(
    ("other", "mapping", "named"),
    [
        ({"negatives": (3, 1, 4)}, None, "negatives"),
        ({"negatives": (3, 0, 4)}, None, "negatives"),
        ({"queries": (1, 4)}, None, "queries"),
        ({"positives": (3, 1)}, None, "positives"),
        ({"queries": (3, 1), "positives": (3, 1), "negatives": (3, 2, 1)}, None, "give a mapping"),
        ({}, (4, 1), "mapping"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    other: dict[str, tuple[int, ...]], mapping: tuple[int, ...] | None, named: str
) -> None:
    """Wrong if a teacher without hard negatives, or of another width, is made to fit and distils something else."""
    with pytest.raises(RefembedError, match=named):
        losses.embedding_matching(of_shapes(), of_shapes(**other), None if mapping is None else torch.ones(mapping))


def test_what_is_no_batch_is_refused() -> None:
    """Wrong if a length counts the whole vector again, or vectors, masks or texts of another batch are taken."""
    batch = of_shapes()
    for call in (
        lambda: losses.matryoshka(losses.spread_out, batch, [4, 5]),
        lambda: losses.matryoshka(losses.spread_out, batch, [0]),
        lambda: losses.total(batch, torch.ones(3, 3, dtype=torch.bool)),
        lambda: losses.contrastive(batch, torch.ones(1, 1, dtype=torch.bool)),
        lambda: losses.split(torch.ones(7, 4), 3),
        lambda: losses.split(torch.ones(3, 4), 3),
        lambda: losses.split(torch.ones(3, 4), 0),
        lambda: losses.mask_of(["a", "b"], ["c"]),
    ):
        with pytest.raises(RefembedError) as caught:
            call()
        assert caught.value.id == "loss-shape"


def test_mask_of_token_ids() -> None:
    """Wrong if token ids in arrays, of any whole type, are compared number by number or by where they are kept."""
    texts = [[2, 5, 1], [2, 5, 1], [2, 5], [1, 2, 5]]
    expected = losses.mask_of([tuple(text) for text in texts], range(4))
    arrays = [np.array(text, dtype) for text, dtype in zip(texts, (np.int64, np.int32) * 2, strict=True)]
    for sides in (arrays, [torch.tensor(text) for text in texts]):
        assert torch.equal(losses.mask_of(sides, range(4)), expected)
    assert not expected[0, 1]
    assert expected[0, 2]
    assert expected[0, 3]


class Port:
    """These losses, asked as a port is."""

    name = "refembed_torch"

    def loss(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        x = {name: torch.tensor(asked[name]).requires_grad_() for name in (*SIDES, "mapping") if asked[name]}
        batch = self.batch(x)
        teacher = asked["teacher"] and self.batch({k: torch.tensor(v) for k, v in asked["teacher"].items() if v})
        mask = losses.mask_of(asked["query_texts"], asked["positive_texts"])
        weights = ALONE.get(asked["loss"]) or reference.Weights(**asked["weights"])
        value = losses.total(
            batch,
            mask,
            teacher or None,
            x.get("mapping"),
            asked["lengths"],
            asked["temperature"],
            asked["alpha"],
            weights,
        )
        slopes = torch.autograd.grad(value, list(x.values()), materialize_grads=True)
        return {"value": value.item(), "gradients": dict(zip(x, (slope.tolist() for slope in slopes), strict=True))}

    def batch(self, x: Mapping[str, torch.Tensor]) -> losses.Batch:
        queries, positives = x["queries"], x["positives"]
        negatives = x["negatives"][:, None] if "negatives" in x else queries[:, None][:, :0]
        return losses.Batch(queries, positives, negatives)


def test_golden_losses() -> None:
    """Wrong if these losses do not pass what every port of the losses is judged by."""
    report = verify_losses(golden_folder("losses"), Port())
    assert report.conforms, [(one.case, one.said) for one in report.outcomes if one.verdict != "right"]
