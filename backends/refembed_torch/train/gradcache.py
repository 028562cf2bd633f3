"""A batch of any size in the memory of a chunk, its vectors compared across all processes.

The loss needs all vectors at once, the model only some texts: vectors are computed chunk by chunk without keeping
anything, the loss gives its gradient with respect to each, and the chunks are computed again to carry it on to the
parameters. Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..packing import passes
from ..precision import exact_products
from .distributed import gather_rows, syncing, world

Texts = Sequence[NDArray[Any]]  # token ids (tokens_i,)


def add_gradients(module: nn.Module, texts: Texts, loss: Callable[[Tensor], Tensor], tokens: int = 0) -> Tensor:
    """Add the gradient of the loss of all texts' vectors to the parameters' .grad.

    module   from texts to raw vectors (texts, n), as distributed.parallel made it
    texts    all of the batch, the same ones in every process, which computes its share of them
    loss     of the raw vectors (texts, n), computed in every process alike
    tokens   through the model at once, or one text; 0: a process's whole share, which is then computed only once
    returns  the loss, a number that stays on the device
    """
    here = world()
    shares = shares_of([len(text) for text in texts], tokens, here.size)
    mine = shares[here.rank]
    at_once = len(mine) == 1
    with exact_products():
        with torch.set_grad_enabled(at_once):
            found = [module([texts[index] for index in chunk]) for chunk in mine]
        vectors = in_order(found, shares).requires_grad_()  # (texts, n)
        value = loss(vectors)
        value.backward()
        assert vectors.grad is not None
        order = torch.tensor(order_of(shares), device=vectors.device)
        times = torch.bincount(order)[:, None]  # a text computed in two processes counts once
        upstream = vectors.grad * here.size / times  # the exchange of gradients takes their mean over processes
        for number, chunk in enumerate(mine, 1):
            with syncing(module, number == len(mine)):
                of_chunk = found[0] if at_once else module([texts[index] for index in chunk])
                of_chunk.backward(upstream[chunk])
    return value.detach()


@torch.no_grad()
def vectors_of(module: nn.Module, texts: Texts, tokens: int = 0) -> Tensor:
    """Raw vectors (texts, n) of all texts in every process, which computes its share of them; without a gradient."""
    here = world()
    shares = shares_of([len(text) for text in texts], tokens, here.size)
    with exact_products():
        found = [module([texts[index] for index in chunk]) for chunk in shares[here.rank]]
    return in_order(found, shares)


def shares_of(lengths: Sequence[int], tokens: int, processes: int) -> list[list[list[int]]]:
    """For each process its chunks of the texts, by their places.

    All processes have as many: each pass through a model that is held in parts needs all of them. Texts are dealt by
    length, so that all have about the same work too.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    order += (order[::-1] * processes)[: -len(order) % processes]  # as many texts for each, so some stand there twice
    shares = []
    for rank in range(processes):
        own = order[rank::processes]
        chunks = passes([lengths[index] for index in own], tokens or sum(lengths))
        shares.append([[own[place] for place in chunk] for chunk in chunks])
    most = max(map(len, shares))
    for share in shares:
        while len(share) < most:
            largest = share.pop(max(range(len(share)), key=lambda chunk: len(share[chunk])))
            share += [largest[::2], largest[1::2]]
    return shares


def order_of(shares: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    """The texts' places in the order in which all processes compute them, by rank."""
    return [index for share in shares for chunk in share for index in chunk]


def in_order(found: Sequence[Tensor], shares: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """The vectors of all processes' chunks, each where its text is: (texts, n)."""
    rows = gather_rows(torch.cat(list(found)).detach())  # (texts, n), and those computed twice
    where = {index: row for row, index in enumerate(order_of(shares))}
    return rows[[where[index] for index in range(len(where))]]
