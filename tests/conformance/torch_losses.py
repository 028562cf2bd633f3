"""A port of the losses in PyTorch, written from spec/10-losses.md, and every known mistake put into it.

A mistake is another method in place of the port's own. None of it comes from the reference, whose mistakes it is to
be told from.
"""

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

Tensor = torch.Tensor
Sides = dict[str, Tensor]
SIDES = ("queries", "positives", "negatives")


def unequal(count: int) -> Tensor:
    """True where i is not j."""
    return ~torch.eye(count, dtype=torch.bool)


def same(texts: list[Any]) -> Tensor:
    return torch.tensor([[one == other for other in texts] for one in texts])


class TorchPort:
    """Answers one question of the protocol at a time; changed: methods to have in place of its own."""

    name = "torch"

    def __init__(self, dtype: torch.dtype = torch.float32, **changed: Callable[..., Any]) -> None:
        self.dtype = dtype
        for name, function in changed.items():
            assert hasattr(self, name)
            setattr(self, name, MethodType(function, self))

    def loss(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        given = [name for name in (*SIDES, "mapping") if asked[name] is not None]
        x = {name: torch.tensor(asked[name], dtype=self.dtype, requires_grad=True) for name in given}
        value = self.value(asked, x)
        slopes = torch.autograd.grad(value, list(x.values()), materialize_grads=True)
        return {"value": value.item(), "gradients": dict(zip(x, (slope.tolist() for slope in slopes), strict=True))}

    def value(self, asked: Mapping[str, Any], x: Sides) -> Tensor:
        if asked["loss"] == "matching":
            return self.matching(asked, x)
        if asked["loss"] == "total":
            contrastive, spread_out = (self.over_lengths(asked, x, one) for one in (self.contrastive, self.spread_out))
            return self.weigh(asked["weights"], contrastive, spread_out, self.matched(asked, x))
        one = self.contrastive if asked["loss"] == "contrastive" else self.spread_out
        return self.over_lengths(asked, x, one)

    def weigh(self, weights: Mapping[str, float], contrastive: Tensor, spread_out: Tensor, matching: Tensor) -> Tensor:
        return (
            weights["contrastive"] * contrastive + weights["spread_out"] * spread_out + weights["matching"] * matching
        )

    # lengths

    def over_lengths(self, asked: Mapping[str, Any], x: Sides, one: Callable[..., Tensor]) -> Tensor:
        values = [one(asked, *self.units(x, length)) for length in asked["lengths"]]
        return torch.stack(values).sum() + 0 * x["queries"].sum()

    def units(self, x: Sides, length: int) -> list[Tensor]:
        return [self.normalize(x[side][:, :length]) for side in SIDES if side in x]

    def normalize(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)

    # contrastive

    def contrastive(self, asked: Mapping[str, Any], q: Tensor, p: Tensor, n: Tensor | None = None) -> Tensor:
        logits = self.heat(q @ p.T, asked)
        positive = logits.diagonal()
        weighted = [(torch.ones_like(logits), logits.masked_fill(self.hidden(asked, q, p), -torch.inf))]
        weighted += self.harder(asked, q, p, n)
        largest = torch.cat([logit.detach() for _, logit in weighted], 1).amax(1)
        terms = torch.cat([weight * (logit - largest[:, None]).exp() for weight, logit in weighted], 1)
        return self.average(self.log(terms.sum(1)) + largest - positive, asked, q, n)

    def heat(self, cosines: Tensor, asked: Mapping[str, Any]) -> Tensor:
        return cosines / asked["temperature"]

    def hidden(self, asked: Mapping[str, Any], q: Tensor, p: Tensor) -> Tensor:
        return (same(asked["query_texts"]) | same(asked["positive_texts"])) & unequal(len(q))

    def harder(self, asked: Mapping[str, Any], q: Tensor, p: Tensor, n: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """(weight, logit) of the hard negatives, if there are any."""
        if n is None:
            return []
        cosine = (q * n).sum(1, keepdim=True)
        return [(self.weight(asked, cosine), self.heat(cosine, asked))]

    def weight(self, asked: Mapping[str, Any], cosine: Tensor) -> Tensor:
        return (asked["alpha"] * cosine.detach()).exp()

    def log(self, x: Tensor) -> Tensor:
        return x.log()

    def average(self, each: Tensor, asked: Mapping[str, Any], q: Tensor, n: Tensor | None) -> Tensor:
        return each.mean()

    # spread-out

    def spread_out(self, asked: Mapping[str, Any], q: Tensor, p: Tensor, n: Tensor | None = None) -> Tensor:
        return self.moment(q) + self.moment(p)

    def moment(self, unit: Tensor) -> Tensor:
        others = (unit @ unit.T)[unequal(len(unit))]
        return others.square().mean() if len(others) else others.sum()

    # embedding matching

    def matched(self, asked: Mapping[str, Any], x: Sides) -> Tensor:
        """As the total has it: of whole vectors."""
        return self.matching(asked, x)

    def matching(self, asked: Mapping[str, Any], x: Sides, length: int | None = None) -> Tensor:
        teacher = {side: torch.tensor(asked["teacher"][side], dtype=self.dtype) for side in SIDES if side in x}
        return self.over_sides(
            {side: self.distance(x[side][:, :length], goal[:, :length], x.get("mapping"))
             for side, goal in teacher.items()}
        )  # fmt: skip

    def over_sides(self, distances: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(distances.values())).sum()

    def distance(self, own: Tensor, goal: Tensor, mapping: Tensor | None) -> Tensor:
        own = own if mapping is None else own @ mapping.T
        return self.apart(self.normalize(own) - self.normalize(goal))

    def apart(self, difference: Tensor) -> Tensor:
        return difference.square().sum(1).mean()


# --------------------------------------------------------------------------------------------------------- its mistakes
Methods = dict[str, Callable[..., Any]]


def hidden(pairs: Callable[[Mapping[str, Any]], Tensor]) -> Methods:
    """Another mask, of the question."""
    return {"hidden": lambda self, asked, q, p: pairs(asked) & unequal(len(q))}


def more(terms: Callable[..., tuple[Tensor, Tensor]]) -> Methods:
    """More terms: (weight, logit) of (port, question, units)."""

    def harder(self: TorchPort, asked: Any, q: Tensor, p: Tensor, n: Tensor | None) -> Any:
        return TorchPort.harder(self, asked, q, p, n) + terms(self, asked, q, p, n)

    return {"harder": harder}


def others_negatives(self: TorchPort, asked: Any, q: Tensor, p: Tensor, n: Tensor | None) -> Any:
    if n is None:
        return []
    cosines = q @ n.T
    return [(self.weight(asked, cosines), self.heat(cosines, asked).masked_fill(~unequal(len(q)), -torch.inf))]


def other_queries(self: TorchPort, asked: Any, q: Tensor, p: Tensor, n: Tensor | None) -> Any:
    skipped = self.hidden(asked, q, p) | ~unequal(len(q))
    return [(torch.ones_like(q @ q.T), self.heat(q @ q.T, asked).masked_fill(skipped, -torch.inf))]


def reverse(self: TorchPort, asked: Any, q: Tensor, p: Tensor, n: Tensor | None = None) -> Tensor:
    logits = self.heat(p @ q.T, asked).masked_fill(self.hidden(asked, q, p), -torch.inf)
    hard = [weight.log() + logit for weight, logit in self.harder(asked, q, p, n)]
    return F.cross_entropy(torch.cat([logits, *hard], 1), torch.arange(len(q)))


def weight_on_positives(self: TorchPort, asked: Any, q: Tensor, p: Tensor, n: Tensor | None = None) -> Tensor:
    logits = self.heat(q @ p.T, asked)
    terms = logits.masked_fill(self.hidden(asked, q, p), -torch.inf)
    if n is not None:
        cosine = (q * n).sum(1, keepdim=True)
        terms = torch.cat([terms + asked["alpha"] * cosine.detach(), self.heat(cosine, asked)], 1)
    return (terms.logsumexp(1) - logits.diagonal()).mean()


def not_shifted(self: TorchPort, asked: Any, q: Tensor, p: Tensor, n: Tensor | None = None) -> Tensor:
    terms = self.heat(q @ p.T, asked).exp().masked_fill(self.hidden(asked, q, p), 0)
    hard = [(weight * logit.exp()).sum(1) for weight, logit in self.harder(asked, q, p, n)]
    return -(terms.diagonal() / torch.stack([terms.sum(1), *hard]).sum(0)).log().mean()


def own_hidden(self: TorchPort, asked: Any, q: Tensor, p: Tensor) -> Tensor:
    return same(asked["query_texts"]) | same(asked["positive_texts"])


def vectors_compared(self: TorchPort, asked: Any, q: Tensor, p: Tensor) -> Tensor:
    return ((torch.cdist(q, q) < 1e-6) | (torch.cdist(p, p) < 1e-6)) & unequal(len(q))


def only_cut(self: TorchPort, x: Sides, length: int) -> list[Tensor]:
    return [self.normalize(x[side])[:, :length] for side in SIDES if side in x]


def first_length(self: TorchPort, asked: Any, x: Sides, one: Any) -> Tensor:
    return one(asked, *self.units(x, asked["lengths"][0])) + 0 * x["queries"].sum()


def mean_length(self: TorchPort, asked: Any, x: Sides, one: Any) -> Tensor:
    return TorchPort.over_lengths(self, asked, x, one) / len(asked["lengths"])


def every_length(self: TorchPort, asked: Any, x: Sides) -> Tensor:
    return torch.stack([self.matching(asked, x, length) for length in asked["lengths"]]).sum()


def gram(unit: Tensor) -> Tensor:
    return (unit @ unit.T).square()


def mean_of_others(unit: Tensor) -> Tensor:
    others = (unit @ unit.T)[unequal(len(unit))]
    return others.mean() if len(others) else others.sum()


def between_sides(self: TorchPort, asked: Any, q: Tensor, p: Tensor, n: Tensor | None = None) -> Tensor:
    others = (q @ p.T)[unequal(len(q))]
    return others.square().mean() if len(others) else others.sum()


def teacher_mapped(self: TorchPort, own: Tensor, goal: Tensor, mapping: Tensor | None) -> Tensor:
    return self.apart(self.normalize(own) - self.normalize(goal if mapping is None else goal @ mapping))


def not_normalised(self: TorchPort, own: Tensor, goal: Tensor, mapping: Tensor | None) -> Tensor:
    return self.apart((own if mapping is None else own @ mapping.T) - goal)


def detached(self: TorchPort, asked: Any, q: Tensor, p: Tensor, n: Tensor | None) -> Any:
    return TorchPort.harder(self, asked, q, p, None if n is None else n.detach())


def scale(name: str, factor: Callable[..., Any]) -> Methods:
    """A method's result times a factor of its arguments."""
    return {name: lambda self, *given: getattr(TorchPort, name)(self, *given) * factor(*given)}


WRONG: dict[str, Methods] = {
    "mask-missing": hidden(lambda asked: torch.tensor(False)),
    "mask-by-queries-only": hidden(lambda asked: same(asked["query_texts"])),
    "mask-by-positives-only": hidden(lambda asked: same(asked["positive_texts"])),
    "mask-where-both": hidden(lambda asked: same(asked["query_texts"]) & same(asked["positive_texts"])),
    "mask-by-vectors": {"hidden": vectors_compared},
    "positive-not-in-denominator": {"hidden": own_hidden},
    "hard-negative-missing": {"harder": lambda self, asked, q, p, n: []},
    "negatives-of-others": more(others_negatives),
    "queries-in-denominator": more(other_queries),
    "direction-reversed": {"contrastive": reverse},
    "temperature-multiplied": {"heat": lambda self, cosines, asked: cosines * asked["temperature"]},
    "temperature-squared": {"heat": lambda self, cosines, asked: cosines / asked["temperature"] ** 2},
    "temperature-ignored": {"heat": lambda self, cosines, asked: cosines},
    "hardness-missing": {"weight": lambda self, asked, cosine: torch.ones_like(cosine)},
    "hardness-not-exponentiated": {"weight": lambda self, asked, cosine: asked["alpha"] * cosine.detach()},
    "hardness-over-temperature": {
        "weight": lambda self, asked, cosine: (asked["alpha"] * self.heat(cosine.detach(), asked)).exp()
    },
    "hardness-on-positives": {"contrastive": weight_on_positives},
    "exponentials-overflow": {"contrastive": not_shifted},
    "contrastive-log-two": {"average": lambda self, each, asked, q, n: each.mean() / torch.tensor(2.0).log()},
    "contrastive-summed": {"average": lambda self, each, asked, q, n: each.sum()},
    "hardness-differentiated": {"weight": lambda self, asked, cosine: (asked["alpha"] * cosine).exp()},
    "hard-negative-detached": {"harder": detached},
    "normalisation-not-differentiated": {"normalize": lambda self, x: x / x.detach().norm(dim=-1, keepdim=True)},
    "not-normalised": {"normalize": lambda self, x: x},
    "spread-out-mean-term": {"moment": lambda self, unit: TorchPort.moment(self, unit) + mean_of_others(unit) ** 2},
    "spread-out-diagonal-included": {"moment": lambda self, unit: gram(unit).mean()},
    "spread-out-diagonal-kept": {"moment": lambda self, unit: gram(unit).sum() / max(len(unit) * (len(unit) - 1), 1)},
    "spread-out-over-b-squared": {"moment": lambda self, unit: gram(unit)[unequal(len(unit))].sum() / len(unit) ** 2},
    "spread-out-halved": {"moment": lambda self, unit: gram(unit).triu(1).sum() / max(len(unit) * (len(unit) - 1), 1)},
    "spread-out-queries-only": {"spread_out": lambda self, asked, q, p, n=None: self.moment(q)},
    "spread-out-between-sides": {"spread_out": between_sides},
    "matryoshka-not-renormalised": {"units": only_cut},
    "matryoshka-averaged": {"over_lengths": mean_length},
    "matryoshka-whole-only": {"over_lengths": first_length},
    "matching-split": {"matched": every_length},
    "matching-mean-over-numbers": {"apart": lambda self, difference: difference.square().mean()},
    "matching-cosine": scale("apart", lambda difference: 0.5),
    "matching-not-squared": {"apart": lambda self, difference: difference.norm(dim=1).mean()},
    "matching-not-normalised": {"distance": not_normalised},
    "matching-summed": {"apart": lambda self, difference: difference.square().sum()},
    "matching-averaged": {"over_sides": lambda self, distances: torch.stack(list(distances.values())).mean()},
    "matching-negatives-missing": {"over_sides": lambda self, found: found["queries"] + found["positives"]},
    "matching-teacher-mapped": {"distance": teacher_mapped},
    "weights-ignored": {"weigh": lambda self, weights, *parts: torch.stack(parts).sum()},
}
