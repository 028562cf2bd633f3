"""UL2's corruption: held to cases drawn by hand, to T5's rule written another way, and to the laws it promises."""

import json
from collections import Counter
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import ul2_cases
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference_strategies import FEW, LAW, seeds

from refembed.reference import Config
from refembed.reference.ul2 import (
    DENOISERS,
    MODES,
    SENTINELS,
    Corrupted,
    Cuts,
    Denoiser,
    choose,
    corrupt,
    denoise,
    draw_cuts,
    pieces,
    span_counts,
    spans,
)

CONFIG = Config()
MARKS = np.arange(1_000, 1_000 + len(SENTINELS))
MODE_IDS = {"R": 900, "S": 901, "X": 902}
GOLDEN = json.loads(ul2_cases.FILE.read_text())
# As printed in table 1 of Tay et al. 2023, the mean span L/4 of S being one span of a quarter.
PUBLISHED = {("R", 3, 15), ("R", 8, 15), ("X", 3, 50), ("X", 8, 50), ("X", 64, 15), ("X", 64, 50), ("S", np.inf, 25)}

lengths = st.one_of(st.integers(2, 60), st.integers(2, CONFIG.context - 3))
names = st.sampled_from(sorted(DENOISERS))


def text(tokens: int, seed: int = 0) -> NDArray[np.int64]:
    """Ordinary tokens, many of them twice, none of them a mark."""
    return np.random.default_rng(seed).integers(4, 800, tokens)


def corrupted(name: str, tokens: int, seed: int) -> Corrupted:
    return denoise(text(tokens, seed), name, MODE_IDS, MARKS, CONFIG, np.random.default_rng(seed))


def restored(example: Corrupted) -> list[int]:
    """What a reader makes of an example: every sentinel of the input replaced by what follows it in the target."""
    after: dict[int, list[int]] = {}
    for id in example.targets[:-1].tolist():
        if id >= MARKS[0]:
            after[id] = here = []
        else:
            here.append(id)
    return [token for id in example.inputs[2:-1].tolist() for token in after.get(id, [id])]


# Cases ----------------------------------------------------------------------------------------------------------------


def test_the_golden_file_is_the_one_drawn_by_hand() -> None:
    """Wrong if golden/ul2 was changed otherwise than by its script."""
    assert ul2_cases.FILE.read_text() == ul2_cases.content()


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["denoiser"])
def test_golden_cases(case: dict[str, Any]) -> None:
    """Wrong if the same text and the same draw give another example than the one drawn by hand."""
    denoiser, ids = DENOISERS[case["denoiser"]], np.array(case["ids"])
    cuts = Cuts(*(np.array(row, np.int64) for row in case["cuts"]))
    config = Config(bos=GOLDEN["bos"], eos=GOLDEN["eos"])
    found = spans(len(ids), denoiser, cuts)
    example = corrupt(ids, found, GOLDEN["modes"][denoiser.mode], np.array(GOLDEN["sentinels"]), config)
    assert example.inputs.tolist() == case["inputs"]
    assert example.targets.tolist() == case["targets"]
    assert len(found) == span_counts(len(ids), denoiser)[1]


def test_the_mixture_is_the_published_one() -> None:
    """Wrong if a denoiser is missing, or has another span, rate or mode than UL2's."""
    assert {(mode, span, round(100 * rate)) for mode, span, rate in DENOISERS.values()} == PUBLISHED
    assert [round(100 * one.rate) for one in DENOISERS.values()] == [100 * one.rate for one in DENOISERS.values()]


def test_every_mark_has_a_name_of_its_own() -> None:
    """Wrong if a mode and a sentinel, or two sentinels, were the same token."""
    every = [*MODES.values(), *SENTINELS]
    assert len(set(every)) == len(every) == 515
    assert set(MODES) == {one.mode for one in DENOISERS.values()}


def test_every_mark_is_a_token_of_the_released_tokenizer(weights) -> None:
    """Wrong if the released tokenizer lacked a name of the table, or cut it into pieces."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(weights / "tokenizer.json"))
    for name in (*MODES.values(), *SENTINELS):
        assert library.encode(name, add_special_tokens=False).ids == [library.token_to_id(name)]


def test_a_whole_context_has_sentinels_enough() -> None:
    """Wrong if a text that fills the context could be cut into more spans than there are sentinels."""
    most = max(span_counts(CONFIG.context - 3, one)[1] for one in DENOISERS.values())
    assert most == 341  # 1,022 of 2,045 removed, in threes
    assert most <= len(SENTINELS)


@pytest.mark.parametrize("name", DENOISERS)
def test_counts_are_those_of_exact_arithmetic(name: str) -> None:
    """Wrong if a half were rounded by an error of the float product, which another language may not make."""
    _, span, rate = DENOISERS[name]
    for tokens in range(2, 4_096):
        removed = max(round(Fraction(round(100 * rate), 100) * tokens), 1)
        count = 1 if span == np.inf else max(round(Fraction(removed, int(span))), 1)
        assert span_counts(tokens, DENOISERS[name]) == (removed, count)
        assert removed < tokens
        assert count <= min(removed, tokens - removed)


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_text_too_short_is_refused(tokens: int) -> None:
    """Wrong if an example without anything to read, or to write, were made."""
    with pytest.raises(ValueError, match=f"a text of {tokens} tokens"):
        corrupted("s-25", tokens, 0)


def test_too_few_sentinels_are_refused() -> None:
    """Wrong if a span without a sentinel silently went missing."""
    with pytest.raises(ValueError, match="zip"):
        corrupt(text(9), np.array([[1, 2], [4, 5]]), 900, MARKS[:1], CONFIG)


# Laws -----------------------------------------------------------------------------------------------------------------


@given(lengths, seeds)
@FEW
def test_removing_nothing_leaves_the_text_whole(tokens: int, seed: int) -> None:
    """Wrong if corruption changed anything beside its spans."""
    example = corrupt(text(tokens, seed), np.empty((0, 2), np.int64), 900, MARKS, CONFIG)
    assert example.inputs.tolist() == [CONFIG.bos, 900, *text(tokens, seed), CONFIG.eos]
    assert example.targets.tolist() == [CONFIG.eos]


@given(names, lengths, seeds)
@LAW
def test_input_and_target_together_are_the_text(name: str, tokens: int, seed: int) -> None:
    """Wrong if a token were lost, doubled or moved, or the decoder asked for what it cannot know the place of."""
    assert restored(corrupted(name, tokens, seed)) == text(tokens, seed).tolist()


@given(names, lengths, seeds)
@LAW
def test_lengths_are_those_of_the_table(name: str, tokens: int, seed: int) -> None:
    """Wrong if more or less is removed than the rate says, or in longer or shorter spans than the mean."""
    _, span, rate = DENOISERS[name]
    example = corrupted(name, tokens, seed)
    count = int(np.sum(example.targets >= MARKS[0]))
    removed = len(example.targets) - 1 - count
    assert abs(removed - rate * tokens) <= 0.5 or removed == 1
    assert abs(count - removed / span) <= 0.5 or count == 1
    assert len(example.inputs) == 3 + tokens - removed + count
    assert max(len(example.inputs), len(example.targets)) <= max(tokens + 3, 5)


@given(names, lengths, seeds)
@LAW
def test_sentinels_stand_in_order_and_once_on_either_side(name: str, tokens: int, seed: int) -> None:
    """Wrong if two spans had one sentinel, or the decoder met them in another order than the encoder."""
    inputs, targets = corrupted(name, tokens, seed)
    shown = inputs[inputs >= MARKS[0]]
    np.testing.assert_array_equal(shown, MARKS[: len(shown)])
    np.testing.assert_array_equal(targets[targets >= MARKS[0]], shown)
    assert inputs[:2].tolist() == [CONFIG.bos, MODE_IDS[DENOISERS[name].mode]]
    assert inputs[-1] == targets[-1] == CONFIG.eos
    assert targets[0] == MARKS[0]


@given(lengths, seeds)
@FEW
def test_the_sequential_denoiser_removes_the_end(tokens: int, seed: int) -> None:
    """Wrong if S were anything but: given the beginning, write the rest."""
    inputs, targets = corrupted("s-25", tokens, seed)
    np.testing.assert_array_equal(np.concatenate([inputs[2:-2], targets[1:-1]]), text(tokens, seed))


@given(names, lengths, seeds)
@LAW
def test_spans_alternate_from_a_kept_token_to_a_removed_one(name: str, tokens: int, seed: int) -> None:
    """Wrong if two spans touched, so that they were one, or the rule were no longer T5's."""
    cuts = draw_cuts(tokens, DENOISERS[name], np.random.default_rng(seed))
    edges = spans(tokens, DENOISERS[name], cuts).reshape(-1)
    assert np.all(np.diff(edges, prepend=0) > 0)
    assert edges[-1] == tokens


def test_every_way_to_cut_is_as_likely() -> None:
    """Wrong if some spans were drawn more often than others: chi squared far above its degrees of freedom.

    The ways are counted as T5 writes its rule: marks among the places between tokens, in any order.
    """
    denoiser, tokens, draws = Denoiser("X", 2, 0.5), 12, 20_000
    assert span_counts(tokens, denoiser) == (6, 3)
    pairs = list(combinations(range(1, 6), 2))
    ways = [(kept, removed) for kept in pairs for removed in pairs]
    generator = np.random.default_rng(0)
    drawn = Counter(tuple(tuple(row.tolist()) for row in draw_cuts(tokens, denoiser, generator)) for _ in range(draws))
    assert set(drawn) == set(ways)
    expected = draws / len(ways)
    squared = sum((drawn[way] - expected) ** 2 / expected for way in ways)
    assert squared < 99 + 4 * (2 * 99) ** 0.5


def test_a_text_that_does_not_fit_the_context_becomes_several() -> None:
    """Wrong if text beyond the context were lost, or an example longer than the context were made."""
    config = Config(context=20)
    found = pieces(np.arange(100, 153), config)
    assert [len(piece) for piece in found] == [17, 17, 17, 2]
    np.testing.assert_array_equal(np.concatenate(found), np.arange(100, 153))
    assert [len(piece) for piece in pieces(np.arange(18), config)] == [17]  # one token is no example
    assert pieces(np.arange(1), config) == []
    for name in DENOISERS:
        for piece in found:
            example = denoise(piece, name, MODE_IDS, MARKS, config, np.random.default_rng(0))
            assert max(map(len, example)) <= config.context


@given(
    st.lists(st.floats(0, 100), min_size=7, max_size=7).filter(lambda drawn: sum(drawn) > 1e-3),
    st.floats(0, 1, exclude_max=True),
)
@LAW
def test_denoisers_are_chosen_by_their_rates(rates: list[float], number: float) -> None:
    """Wrong if a denoiser's stretch of the numbers from 0 to 1 were not as long as its share of the rates."""
    chosen = choose(number, dict(zip(DENOISERS, rates, strict=True)))
    place = list(DENOISERS).index(chosen)
    at, before, slack = number * sum(rates), sum(rates[:place]), 1e-9 * sum(rates)
    assert rates[place] > 0
    assert before - slack <= at <= before + rates[place] + slack


def test_the_last_number_below_one_never_chooses_what_has_no_rate() -> None:
    """Wrong if rounding at the end of the mixture gave a denoiser of rate 0, or none."""
    for rates in ([1.0], [1.0] * 7, [0.1] * 7, [3.0, 0.0], [0.0, 0.7, 0.0]):
        named = {str(place): rate for place, rate in enumerate(rates)}
        assert named[choose(float(np.nextafter(1, 0)), named)] > 0
        assert named[choose(0.0, named)] > 0
