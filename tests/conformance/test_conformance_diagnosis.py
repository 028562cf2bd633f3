"""Which mistake it is: each defect of the catalogue by its name, any other mistake as unknown, no right port accused.

The vectors that ports are judged by are golden ones, confirmed by transformers; the ports here are the reference in
float32 with one thing changed. What other code gives with the same mistakes is tested beside its ports.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confusion import LEVELS, NAMED_FIRST, PAIRS
from mutants import MutantPort, opened, twin, twin_model
from support import sampled

from refembed.conformance.defects import CONTROLS, DEFECTS
from refembed.conformance.mutation import Mutation
from refembed.conformance.report import as_text
from refembed.conformance.suite import SEEN, golden_folder, open_suite
from refembed.conformance.verify import Report, verify
from refembed.reference.layer import layer
from refembed.reference.operations import linear, rms_norm
from refembed.reference.positions import rotate

BY_ID = {defect.id: defect for defect in DEFECTS}


def only_with_prompts(id: str) -> bool:
    """What shows only where the port puts the prompts, or knows where they end."""
    return id == "pool-without-prompt" or (BY_ID[id].family in ("E1", "E2", "E3") and id != "chat-template")


@cache
def report_of(id: str) -> Report:
    return verify(twin(), MutantPort(BY_ID[id].mutation, prompts_only=only_with_prompts(id)), levels=LEVELS)


def named(report: Report) -> list[str]:
    return [one.defect.id for one in report.explanations]


# -------------------------------------------------------------------------------------------------------- the catalogue
@pytest.mark.parametrize("id", sampled(BY_ID, 4))
def test_defect_is_among_the_first_three(id: str):
    """Wrong if a port with this known mistake conforms, or its mistake is not among the first three that are named."""
    separation = twin().separation(id, "float32")
    assert separation >= SEEN, f"the twin cannot see it: {separation} bounds"
    report = report_of(id)
    assert not report.conforms
    assert id in named(report)[:3]


@pytest.mark.long
def test_defects_are_named_first():
    """Wrong if more than one in twenty known mistakes is taken for another. Prints who was taken for whom."""
    table = [(id, named(report_of(id)), twin().separation(id, "float32")) for id in BY_ID]
    for id, names, separation in table:
        print(f"{id:<32} {separation:>9.3g} bounds  {'first' if names[:1] == [id] else names[:3]}")
    right = [names[:1] == [id] for id, names, separation in table if separation >= SEEN]
    print(f"{sum(right)} of {len(right)} named first")
    assert len(right) >= 40
    assert np.mean(right) >= NAMED_FIRST


@pytest.mark.parametrize("id", CONTROLS)
def test_control_conforms(id: str):
    """Wrong if a port is accused of a change that alters nothing, or needs more than half of what it is allowed."""
    report = verify(twin(), MutantPort(CONTROLS[id]), levels=LEVELS)
    assert report.conforms
    assert not report.explanations
    assert report.used()[0] <= 0.5


def test_evidence_is_near_the_mistake_and_far_from_the_truth():
    """Wrong if the evidence that a report prints does not support the name it gives."""
    (best, *_) = report_of("causal").explanations
    assert best.to_defect <= 1
    assert best.to_truth > 1e4
    assert best.foretold == 1
    assert set(best.cases) <= {case.id for case in twin().cases}


def test_full_vectors_are_enough_for_a_diagnosis():
    """Wrong if a port that cannot shorten vectors is told less: most servers and functions give whole ones only."""

    class Whole(MutantPort):
        def embed(self, case, prompted):
            return super().embed(replace(case, dimensions=twin_model().config.dimensions), prompted)

    report = verify(twin(), Whole(BY_ID["window-asymmetric"].mutation), levels=["vectors"])
    assert named(report)[0] == "window-asymmetric"
    assert {o.verdict for o in report.outcomes if o.case.startswith("dimensions")} == {"not asked"}


def test_mistake_is_seen_only_where_it_was_asked():
    """Wrong if a report counts mistakes as visible that no case which was asked can show."""
    empty = [case for case in twin().cases if case.id == "text-empty"]
    shown = {defect for defect in BY_ID if twin().distances(defect).get("text-empty", 0) >= 3 * bound_of(empty[0])}
    prompts = {defect for defect in shown if only_with_prompts(defect)}
    assert len(prompts) >= 5
    report = verify(twin(), MutantPort(), levels=["vectors"], cases=["text-empty"])
    assert (report.visible, report.prompted) == (len(shown - prompts), len(prompts))
    report = verify(twin(), MutantPort(), levels=["vectors", "prompts"], cases=["text-empty"])
    assert (report.visible, report.prompted) == (len(shown), 0)
    assert not {"window-ignored", "pads-make-nan"} & shown


def test_mistake_is_not_seen_where_nothing_was_answered():
    """Wrong if mistakes count as visible that only cases without an answer, or levels that were not asked, can show."""

    class Failing(MutantPort):
        def embed(self, case, prompted):
            return super().embed(case, prompted) if case.id == "text-empty" else np.zeros((1, 1))

    alone = verify(twin(), MutantPort(), levels=["vectors"], cases=["text-empty"])
    assert verify(twin(), Failing(), levels=["vectors"]).visible == alone.visible > 0
    for level in ("tokens", "stages", "laws"):
        assert verify(twin(), MutantPort(traces=True), levels=[level]).visible == 0


def bound_of(case: Any) -> float:
    return case.bounds["float32"]["embedding"]


@pytest.mark.parametrize("id", [id for id, defect in BY_ID.items() if defect.growth != 1])
def test_rounding_grows_as_the_catalogue_says(id: str, weights: Path):
    """Wrong if a mistake is forgiven more rounding than it makes, or less, on the released model."""
    suite = open_suite(golden_folder("embeddinggemma-300m"))
    cases = {case.id: case for case in suite.cases}
    model = opened(weights, "float64")
    grown = [
        np.max(np.abs(model.embed(cases[case].texts, cases[case].dimensions, BY_ID[id].mutation) - single))
        / bound_of(cases[case])
        for case, single in suite.defect_vectors(id).items()
    ]
    assert BY_ID[id].growth / 2 <= max(grown) <= BY_ID[id].growth


def test_coarse_diagnosis_says_that_relatives_look_alike():
    """Wrong if a diagnosis at a coarse precision sounds as sure as one in float32."""
    port = MutantPort(BY_ID["causal"].mutation)
    assert "near relative" in as_text(verify(twin(), port, "bfloat16", levels=LEVELS))
    assert "near relative" not in as_text(report_of("causal"))


# --------------------------------------------------------------------------------------- mistakes outside the catalogue
def changed(change: Callable[[dict[str, Any]], Any]) -> Mutation:
    """Other parameters."""

    def parameters(right: Any, config: Any) -> Any:
        copy = dict(right)
        change(copy)
        return copy

    return Mutation(parameters=parameters)


def swapped(first: str, second: str) -> Mutation:
    """Parameters whose names hold `first`, and the same with `second`, in each other's place."""

    def change(kept: dict[str, Any]) -> None:
        for name in [name for name in kept if first in name]:
            other = name.replace(first, second)
            kept[name], kept[other] = kept[other], kept[name]

    return changed(change)


def one_row_negated(kept: dict[str, Any]) -> None:
    matrix = np.array(kept["3_Dense.linear.weight"])
    matrix[7] *= -1
    kept["3_Dense.linear.weight"] = matrix


def heads_in_another_order(kept: dict[str, Any]) -> None:
    for name in [name for name in kept if "o_proj" in name]:
        kept[name] = np.roll(np.asarray(kept[name]), 16, axis=1)


def skipped(which: int) -> Mutation:
    def skip(x: Any, parameters: Any, index: int, *rest: Any) -> Any:
        return x if index == which else layer(x, parameters, index, *rest)

    return Mutation(functions={"model.layer": skip})


def grown(x: Any, parameters: Any, index: int, *rest: Any) -> Any:
    return layer(x * x.dtype.type(1.01), parameters, index, *rest)


def keys_one_ahead(x: Any, cos: Any, sin: Any) -> Any:
    return rotate(x, *(np.roll(part, -1, axis=0) for part in (cos, sin))) if len(x) == 1 else rotate(x, cos, sin)


def quick_gelu(x: Any) -> Any:
    return x / (1 + np.exp(-1.702 * x))


def noisy(vectors: Any) -> Any:
    return vectors + 1e-3 * np.random.default_rng(0).standard_normal(vectors.shape)


UNKNOWN = {
    "epsilon-a-thousand-times": MutantPort(Mutation(config=lambda config: replace(config, epsilon=1e-3)), traces=True),
    "layer-skipped": MutantPort(skipped(3), traces=True),
    "layers-swapped": MutantPort(swapped("layers.1.", "layers.3."), traces=True),
    "key-and-value-swapped": MutantPort(swapped("k_proj", "v_proj"), traces=True),
    "query-and-key-norm-swapped": MutantPort(swapped("q_norm", "k_norm"), traces=True),
    "keys-one-ahead": MutantPort(Mutation(functions={"rotate": keys_one_ahead}), traces=True),
    "residual-grows": MutantPort(Mutation(functions={"model.layer": grown}), traces=True),
    "heads-in-another-order": MutantPort(changed(heads_in_another_order), traces=True),
    "quick-gelu": MutantPort(Mutation(functions={"gelu": quick_gelu}), traces=True),
    "dense-row-negated": MutantPort(changed(one_row_negated), traces=True),
    "noise": MutantPort(after=noisy),
    "rounded-to-int8": MutantPort(after=lambda vectors: np.round(vectors * 127) / 127),
    "rounded-to-float16": MutantPort(after=lambda vectors: vectors.astype(np.float16)),
    "one-vector-for-all": MutantPort(after=lambda vectors: 0 * vectors + vectors.shape[1] ** -0.5),
    "negated": MutantPort(after=np.negative),
    "numbers-reversed": MutantPort(after=lambda vectors: vectors[:, ::-1]),
    "norms-multiply-twice": MutantPort(
        Mutation(functions={"rms_norm": lambda x, weight, epsilon: rms_norm(x, 2 * weight, epsilon)}), traces=True
    ),
    "dense-squared": MutantPort(
        Mutation(
            functions={"dense_head": lambda pooled, p, trace=None: linear(pooled**2, p["2_Dense.linear.weight"])[:48]}
        )
    ),
}
FIRST_WRONG = {
    "layer-skipped": ("layer.04.attention.norm", "layer.04.out"),
    "layers-swapped": ("layer.01.attention.norm", "layer.01.out"),
    "key-and-value-swapped": ("layer.00.attention.key",),
    "query-and-key-norm-swapped": ("layer.00.attention.query_norm",),
    "keys-one-ahead": ("layer.00.attention.key_rotated",),
    "quick-gelu": ("layer.00.mlp.gated",),
    "heads-in-another-order": ("layer.00.attention.output",),
    "dense-row-negated": ("projected",),
}


@pytest.mark.parametrize("slug", sampled(UNKNOWN))
def test_mistake_outside_the_catalogue_is_unknown(slug: str):
    """Wrong if a port is accused of a mistake it does not have, or passes with one that nobody has described yet."""
    report = verify(twin(), UNKNOWN[slug])
    assert not report.conforms
    assert named(report) == []


@pytest.mark.parametrize("slug", sampled(FIRST_WRONG))
def test_first_wrong_stage_of_an_unknown_mistake(slug: str):
    """Wrong if the stage that a report points at is not where the port first leaves the truth."""
    report = verify(twin(), UNKNOWN[slug], levels=["tokens", "stages"])
    assert report.first_wrong_stage is not None
    assert report.first_wrong_stage[0] in FIRST_WRONG[slug]


def test_first_wrong_stage_of_a_port_that_shows_none():
    """Wrong if a port that gives vectors only is not told at which case it leaves the truth."""
    report = verify(twin(), MutantPort(changed(one_row_negated)), levels=["vectors"])
    wrong = [outcome.case for outcome in report.outcomes if outcome.verdict == "wrong"]
    assert report.first_wrong_stage == ("embedding", wrong[0])


def test_wrong_tokens_come_before_wrong_stages():
    """Wrong if a port whose tokens are wrong is sent looking for its mistake in the layers."""
    report = verify(twin(), MutantPort(BY_ID["eos-missing"].mutation, traces=True))
    assert report.first_wrong_stage is not None
    assert report.first_wrong_stage[0] == "tokens"


# -------------------------------------------------------------------------------------------------------- two at a time
def both(first: Mutation, second: Mutation) -> Mutation:
    """One port with two mistakes, which sit in different places."""
    parts = {one.name: getattr(second, one.name) for one in fields(Mutation) if getattr(second, one.name)}
    clash = [name for name in parts if name != "functions" and getattr(first, name)]
    assert not clash
    return replace(first, **parts | {"functions": {**first.functions, **second.functions}})


@pytest.mark.parametrize("pair", sampled(PAIRS), ids="+".join)
def test_two_mistakes_are_unknown_or_one_of_the_two(pair: tuple[str, str]):
    """Wrong if two mistakes at once are taken for a third, which would send people the wrong way."""
    port = MutantPort(both(*(BY_ID[id].mutation for id in pair)), prompts_only="prompt-missing" in pair)
    report = verify(twin(), port, levels=LEVELS)
    assert not report.conforms
    assert set(named(report)) <= set(pair)


def test_right_model_in_float64_is_near_the_truth():
    """Wrong if the port that every other test changes is not right to begin with, or the truth is not float64's."""
    report = verify(twin(), MutantPort(dtype="float64"), levels=["vectors"])
    assert report.conforms
    assert report.used()[0] < 1e-6
