"""Batches larger than memory: the same gradient as of all texts at once, and less kept for it."""

import gc
from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from refembed_torch import losses
from refembed_torch.model import TorchModel, random_model
from refembed_torch.train.gradcache import add_gradients, shares_of, vectors_of
from support import SMALL, random_ids
from torch import Tensor

LENGTHS = [60, 9, 33, 3, 18, 41, 27, 12, 50]  # three queries, three positives, three hard negatives
TEXTS = [random_ids(SMALL, tokens, seed) for seed, tokens in enumerate(LENGTHS)]


def total_loss(vectors: Tensor) -> Tensor:
    """All that is computed of the student's vectors, at two lengths."""
    batch = losses.split(vectors, 3)
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[0, 2] = False
    generator = torch.Generator().manual_seed(1)
    teacher = losses.Batch(*(torch.randn(side.shape, generator=generator).to(vectors) for side in batch))
    return losses.total(batch, mask, teacher, lengths=(40, 16), temperature=0.2)


@pytest.fixture
def model() -> TorchModel:
    """In float64, where a sum in another order shows in the 15th digit only."""
    model = random_model(SMALL, seed=3, device="cpu").double()
    model.dtype = torch.float64
    return model


@pytest.mark.parametrize("tokens", [0, 1, 40, 100])
def test_gradients_are_those_of_the_whole_batch(model: TorchModel, tokens: int) -> None:
    """Wrong if a chunk's vectors get another's gradients, or a chunk's are lost or counted twice."""
    expected_loss = total_loss(model(TEXTS))
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = torch.autograd.grad(expected_loss, parameters)
    found = add_gradients(model, TEXTS, total_loss, tokens)
    assert float(found) == pytest.approx(float(expected_loss.detach()), rel=1e-12)
    for name, parameter, gradient in zip(names, parameters, expected, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad - gradient).abs().max() <= 1e-9 * gradient.abs().max(), name


def test_gradients_are_added(model: TorchModel) -> None:
    """Wrong if gradients that are there already are lost: a caller may add several losses'."""
    add_gradients(model, TEXTS, total_loss, 50)
    once = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    add_gradients(model, TEXTS, total_loss, 50)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name], rtol=1e-10, atol=1e-14)


def test_vectors_come_where_their_texts_are(model: TorchModel) -> None:
    """Wrong if vectors come in the order they were computed in, or with something kept for a gradient."""
    found = vectors_of(model, TEXTS, 50)
    assert not found.requires_grad
    for ids, vector in zip(TEXTS, found, strict=True):
        torch.testing.assert_close(vector, model([ids])[0].detach(), rtol=1e-10, atol=1e-12)


def kept_at_most(work: Callable[[], object]) -> int:
    """The most bytes that graphs hold at once for backward passes."""
    now = most = 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            self.tensor = tensor
            now += tensor.nbytes
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            now -= self.tensor.nbytes

    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        work()
    return most


def test_memory_is_a_chunks() -> None:
    """Wrong if something of a chunk is kept while others are computed: batches would be bounded by memory again."""
    model = random_model(SMALL, device="cpu")
    texts = [random_ids(SMALL, 60, seed) for seed in range(48)]

    def loss(vectors: Tensor) -> Tensor:
        return losses.contrastive(losses.split(vectors, 24), torch.ones(24, 24, dtype=torch.bool))

    whole = kept_at_most(lambda: add_gradients(model, texts, loss))
    parts = kept_at_most(lambda: add_gradients(model, texts, loss, 60 * 4))
    assert whole > 4e6  # or there was nothing to save
    assert parts < whole / 6  # a twelfth of the texts; weights and the loss's own are the same


@given(
    lengths=some.lists(some.integers(2, 90), min_size=1, max_size=40),
    tokens=some.integers(0, 200),
    processes=some.integers(1, 5),
)
def test_every_process_has_as_many_chunks(lengths: list[int], tokens: int, processes: int) -> None:
    """Wrong if a text is left out, a chunk too large, or a process has fewer passes than others, who would wait for it
    for ever.
    """
    shares = shares_of(lengths, tokens, processes)
    assert len(shares) == processes
    assert len({len(share) for share in shares}) == 1
    chunks = list(chain.from_iterable(shares))
    assert all(chunks)
    places = list(chain.from_iterable(chunks))
    assert set(places) == set(range(len(lengths)))
    assert len(places) == -(-len(lengths) // processes) * processes  # none twice but to make the shares equal
    if tokens:
        assert all(len(chunk) == 1 or sum(lengths[place] for place in chunk) <= tokens for chunk in chunks)
    else:
        assert len(chunks) == processes
    work = [sum(lengths[place] for chunk in share for place in chunk) for share in shares]
    assert np.ptp(work) <= max(lengths)  # texts are dealt by length
