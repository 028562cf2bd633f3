"""Searching for rates: a known best is found, a killed search goes on as it would have, experts are kept apart."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from refembed_torch.train import mixtures
from refembed_torch.train.config import read
from refembed_torch.train.contrastive import FinetuneSettings
from refembed_torch.train.contrastive import run as run_contrastive
from refembed_torch.train.data import mixed
from refembed_torch.train.mixtures import (
    MixturesSettings,
    SearchSettings,
    Trial,
    distance,
    experts,
    from_cube,
    rates_of,
    run,
    run_mixtures,
    search,
    to_cube,
)
from train_support import write_rows

from refembed.errors import RefembedError

GOAL = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}
START = dict.fromkeys(GOAL, 0.25)


def concave(shares: dict[str, float], folder: Path) -> float:
    """Best at GOAL, where it is 0."""
    return -sum((shares[name] - best) ** 2 for name, best in GOAL.items())


def settings_of(tmp_path: Path, sets: int = 3, **others: Any) -> MixturesSettings:
    """A search over sets a, b, c, ... of a model that nobody loads."""
    table = {
        "run": {"out": "out", "steps": 3},
        "model": {"folder": "model"},
        "data": {"set": [{"file": f"{name}.jsonl", "group": name} for name in "abcdefgh"[:sets]]},
        "optimizer": {"learning_rate": 1e-3},
    }
    return read(MixturesSettings, table | others, tmp_path / "mixtures.toml")


# ---------------------------------------------------------------------------------------------------------- the search
def test_the_best_is_found_sooner_than_by_chance(tmp_path: Path) -> None:
    """Wrong if the optimiser does not learn from the scores: as many mixtures drawn at random come less near.

    The distances are of shares: 0.05 is one batch in twenty.
    """
    chosen, chance = [], []
    for seed in range(2):
        settings = SearchSettings(trials=8, grid=1, least=0)
        trials = search(START, concave, tmp_path / str(seed), settings, seed, "mark")
        random = replace(settings, trials=0, dirichlet=len(trials) - 5)  # beside the start and the grid's four
        draws = search(START, concave, tmp_path / f"random{seed}", random, seed, "mark")
        assert len(trials) == len(draws) == 1 + 4 + 10 + 8
        goal = Trial("", [], GOAL, 0)
        chosen.append(min(distance(trial, goal) for trial in trials))
        chance.append(min(distance(trial, goal) for trial in draws))
    assert np.mean(chosen) < 0.5 * np.mean(chance)
    assert max(chosen) < 0.1


def test_no_mixture_is_tried_twice(tmp_path: Path) -> None:
    """If this failed, where one set alone is best, all trials would go to it: many points are it."""
    settings = SearchSettings(trials=6, grid=1, dirichlet=4, least=0)
    trials = search(dict.fromkeys("abc", 1 / 3), lambda shares, _: shares["a"], tmp_path, settings, 4, "mark")
    assert trials[3].shares == {"a": 1, "b": 0, "c": 0}
    apart = [distance(one, other) for one, other in itertools.combinations(trials, 2)]
    assert min(apart) > mixtures.SAME
    assert max(trial.score for trial in trials[-6:] if trial.score) > 0.8  # and still near the best


def test_every_mixture_keeps_a_part_of_the_start(tmp_path: Path) -> None:
    """Wrong if a set may be left out, which a short run does not mind, or the start itself is changed."""
    start = {"a": 0.5, "b": 0.25, "c": 0.25}
    settings = SearchSettings(trials=2, grid=1, dirichlet=2, least=0.4)
    trials = search(start, lambda shares, _: shares["b"], tmp_path, settings, 7, "mark")
    assert trials[0].shares == pytest.approx(start)
    assert trials[2].shares == pytest.approx({"a": 0.2, "b": 0.7, "c": 0.1})  # 0.4 of the start, the rest b's
    for trial in trials:
        assert sum(trial.shares.values()) == pytest.approx(1)
        assert all(trial.shares[name] >= 0.4 * share - 1e-12 for name, share in start.items())


def test_where_it_starts(tmp_path: Path) -> None:
    """Wrong if the file's own mixture, a point of the grid or a random one is not tried, or one is no mixture."""
    start = {"a": 0.5, "b": 0.5, "c": 0.0}
    trials = search(
        start, lambda shares, _: shares["a"], tmp_path, SearchSettings(trials=0, grid=2, least=0), 7, "mark"
    )
    assert trials[0].shares == start
    grid = {tuple(trial.shares.values()) for trial in trials if trial.kind == "grid"}
    assert grid == {(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0, 0.5), (0, 0.5, 0.5)}  # and the start, which was tried
    drawn = [trial.shares for trial in trials if trial.kind == "dirichlet"]
    assert len({tuple(shares.values()) for shares in drawn}) == 10
    for trial in trials:
        assert sum(trial.shares.values()) == pytest.approx(1)
        assert min(trial.shares.values()) >= 0
        assert trial.score == trial.shares["a"]


def test_random_mixtures_fill_the_simplex(tmp_path: Path) -> None:
    """Wrong if the draws are not Dirichlet's: shares of three then have mean 1/3 and variance 1/18 each."""
    settings = SearchSettings(trials=0, grid=0, dirichlet=400)
    found = list(mixtures.known(dict.fromkeys("abc", 1 / 3), settings, 0))[1:]
    shares = np.array([values for _, values in found])
    np.testing.assert_allclose(shares.mean(0), 1 / 3, atol=4 * (1 / 18 / 400) ** 0.5)
    np.testing.assert_allclose(shares.var(0), 1 / 18, rtol=0.3)


class Killed(BaseException):
    """What no handler catches, as a kill."""


@pytest.mark.parametrize("when", ["before", "scored", "written"])
def test_a_killed_search_goes_on_as_if_it_were_not(tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, a search that was killed would try other mixtures, or some twice, or lose a score."""
    settings = SearchSettings(trials=2, grid=1, dirichlet=2)
    whole = search(START, concave, tmp_path / "whole", settings, 3, "mark")
    asked: list[int] = []
    fresh: list[int] = []  # scored, and not killed after it yet

    def objective(shares: dict[str, float], folder: Path) -> float:
        asked.append(int(folder.name))
        fresh.append(asked[-1])
        if when == "before" and asked.count(asked[-1]) == 1:
            raise Killed
        return concave(shares, folder)

    if when != "before":
        keep, kept = mixtures.whole_file, []

        def writing(file: Path) -> Any:
            kept.append(file)
            if when == "scored" and len(kept) % 2:
                raise Killed
            return keep(file)

        def cleared(folders: object) -> None:
            if when == "written" and fresh:
                fresh.clear()
                raise Killed

        monkeypatch.setattr(mixtures, "whole_file", writing)
        monkeypatch.setattr(mixtures, "clear", cleared)
    for _ in range(len(whole) + 1):
        try:
            found = search(START, objective, tmp_path / "killed", settings, 3, "mark")
        except Killed:
            continue
    assert found == whole
    assert asked == [number for number in range(len(whole)) for _ in range(1 if when == "written" else 2)]
    assert (tmp_path / "killed/trials.jsonl").read_bytes() == (tmp_path / "whole/trials.jsonl").read_bytes()


def test_more_trials_go_on(tmp_path: Path) -> None:
    """If this failed, asking for more trials, or for other experts, would begin again; or another search's be taken."""
    asked: list[str] = []

    def objective(rates: dict[str, float], folder: Path) -> float:
        asked.append(folder.name)
        return rates["a"]

    wanted = {"trials": 1, "grid": 0, "dirichlet": 3, "experts": 1}
    run(settings_of(tmp_path, search=wanted), objective)
    (tmp_path / "out/result.json").unlink()
    result = run(settings_of(tmp_path, search=wanted | {"trials": 2, "experts": 2, "apart": 0.1}), objective)
    assert asked == [f"{number:04d}" for number in range(6)]
    assert result["trials"] == 6
    assert len(json.loads((tmp_path / "out/mixtures.json").read_text())) == 2
    (tmp_path / "out/result.json").unlink()
    with pytest.raises(RefembedError, match=r"trials\.jsonl holds the trials of a search with other settings"):
        run(settings_of(tmp_path, search=wanted | {"least": 0.1}), objective)


def test_weights_of_scored_trials_go(tmp_path: Path) -> None:
    """If this failed, every trial would leave gigabytes behind, also where a kill came between score and removal; or
    the trial that is under way would lose its state.
    """
    settings = SearchSettings(trials=0, grid=0, dirichlet=2)
    states = [tmp_path / f"trials/{number:04d}/state" for number in range(3)]
    found: list[list[bool]] = []

    def objective(shares: dict[str, float], folder: Path) -> float:
        found.append([place.exists() for place in states])
        (folder / "model").mkdir(parents=True)
        (folder / "log.jsonl").touch()
        return 0.0

    search(START, objective, tmp_path, replace(settings, dirichlet=1), 3, "mark")
    for number in (0, 2):  # the first killed after its score was kept, the last before
        states[number].mkdir(parents=True)
    search(START, objective, tmp_path, settings, 3, "mark")
    assert found == [[False, False, False], [False, False, False], [False, False, True]]
    assert sorted(place.name for place in tmp_path.glob("trials/*/*")) == ["log.jsonl"] * 3


def test_a_mixture_that_diverges(tmp_path: Path) -> None:
    """If this failed, one mixture with which training breaks would end the search; other faults must."""

    def objective(shares: dict[str, float], folder: Path) -> float:
        if shares["a"] == 1:
            raise RefembedError("train-diverged", "loss is nan")
        return concave(shares, folder)

    trials = search(START, objective, tmp_path, SearchSettings(trials=2, grid=1, dirichlet=3, least=0), 3, "mark")
    assert [trial.kind for trial in trials if trial.score is None] == ["grid"]
    assert len(trials) == 1 + 4 + 3 + 2
    assert None not in [trial.score for trial in experts(trials, 20, 0.0)]

    def broken(shares: dict[str, float], folder: Path) -> float:
        raise RefembedError("train-data", "no file")

    with pytest.raises(RefembedError, match="no file"):
        search(START, broken, tmp_path / "broken", SearchSettings(), 3, "mark")


def test_the_optimiser_learns_of_divergence(tmp_path: Path) -> None:
    """If this failed, the search would go again and again where training breaks, since nothing is known of it there."""

    def objective(shares: dict[str, float], folder: Path) -> float:
        if shares["a"] > 0.5:
            raise RefembedError("train-diverged", "loss is nan")
        return shares["a"]

    settings = SearchSettings(trials=8, grid=1, dirichlet=6, least=0)
    trials = search(dict.fromkeys("abc", 1 / 3), objective, tmp_path, settings, 3, "mark")[-8:]
    assert sum(trial.score is None for trial in trials) <= 4
    assert max(trial.score for trial in trials if trial.score is not None) > 0.4


def test_when_all_diverge(tmp_path: Path) -> None:
    """If this failed, a recipe would go on with no mixture at all, or the search end in a traceback."""

    def objective(rates: dict[str, float], folder: Path) -> float:
        raise RefembedError("train-diverged", "loss is nan")

    with pytest.raises(RefembedError, match="with every mixture; lower learning_rate") as caught:
        run(settings_of(tmp_path, search={"trials": 2, "grid": 1, "dirichlet": 1}), objective)
    assert caught.value.id == "train-diverged"
    assert not (tmp_path / "out/result.json").exists()


@given(some.lists(some.floats(0, 1), min_size=2, max_size=6).filter(lambda parts: sum(parts) > 1e-3))
def test_cube_and_mixtures(parts: list[float]) -> None:
    """Wrong if the optimiser is told of another mixture than the one that was tried."""
    shares = [part / sum(parts) for part in parts]
    cube = to_cube(shares)
    assert all(0 <= number <= 1 for number in cube)
    np.testing.assert_allclose(from_cube(cube), shares, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- experts
def trial(a: float, b: float, score: float | None) -> Trial:
    return Trial("search", [], {"a": a, "b": b, "c": 1 - a - b}, score)


def test_experts_are_the_best_that_are_apart() -> None:
    """If this failed, the soup would be of one mixture several times, or of worse ones than need be."""
    trials = [
        trial(0.5, 0.5, 7), trial(0.1, 0.1, None), trial(0.6, 0.4, 9), trial(0.0, 0.0, 3), trial(0.65, 0.35, 8),
        trial(0.2, 0.2, 6), trial(0.9, 0.1, 5),
    ]  # fmt: skip
    assert [one.score for one in experts(trials, 3, 0.2)] == [9, 6, 5]
    assert [one.score for one in experts(trials, 3, 0.05)] == [9, 8, 7]
    assert [one.score for one in experts(trials, 1, 0.2)] == [9]
    assert [one.score for one in experts(trials, 4, 0.5)] == [9, 6, 5, 3]  # half of 0.5 is as far apart as four are
    assert len(experts(trials, 20, 1.0)) == 6
    assert distance(trials[0], trials[2]) == pytest.approx(0.1)


# ----------------------------------------------------------------------------------------------------------- the stage
def test_its_product(tmp_path: Path) -> None:
    """Wrong if the file of mixtures is not what recipes read: best first, a rate for every set, or is made anew."""
    settings = settings_of(tmp_path, search={"trials": 2, "grid": 1, "dirichlet": 2, "experts": 2, "least": 0.0})
    seen: list[dict[str, float]] = []

    def objective(rates: dict[str, float], folder: Path) -> float:
        seen.append(rates)
        return rates["b"] - rates["a"] ** 2

    result = run(settings, objective)
    found = json.loads((tmp_path / "out/mixtures.json").read_text())
    assert len(found) == 2
    assert found[0] == {"score": 1.0, "rates": {"a": 0.0, "b": 1.0, "c": 0.0}}
    assert found[1]["score"] <= 1
    assert result["trials"] == len(seen) == 1 + 3 + 2 + 2
    assert result["score"] == {"start": pytest.approx(1 / 3 - 1 / 9), "best": 1.0}
    assert run(settings, objective) == result
    assert len(seen) == result["trials"]
    again = mixed(replace(settings.data, mixture=tmp_path / "out/mixtures.json"))
    assert [one.rate for one in again.set] == [0, 1, 0]


def test_groups_have_rates(tmp_path: Path) -> None:
    """Wrong if a search by group changes what the sets of a group are to each other, or trains on a held-out set."""
    files = [("a", "x", 3.0), ("b", "x", 1.0), ("c", "y", 2.0), ("d", "y", 0.0)]
    data = {"set": [{"file": f"{name}.jsonl", "group": group, "rate": rate} for name, group, rate in files]}
    settings = settings_of(tmp_path, data=data, search={"by": "group"})
    assert mixtures.start_of(settings) == {"x": pytest.approx(4 / 6), "y": pytest.approx(2 / 6)}
    assert rates_of(settings, {"x": 0.8, "y": 0.2}) == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2, "d": 0})


@pytest.mark.parametrize(
    ("others", "match"),
    [
        ({"sets": 1}, "there is 1 set with a rate above 0, at least 2"),
        ({"sets": 8, "search": {"grid": 3}}, r"search\.grid is 3: more than 64 runs for 8 rates"),
        ({"search": {"experts": 0}}, "experts is 0, at least 1"),
        ({"search": {"least": 1.0}}, r"search least is 1\.0, below 1"),
        ({"search": {"by": "language"}}, r"search\.by is 'language', one of set, group"),
        ({"data": {"set": [{"file": "a.jsonl"}, {"file": "b.jsonl"}], "even": True}}, r"data\.even"),
        ({"data": {"set": [{"file": "a.jsonl"}, {"file": "b.jsonl"}]}, "search": {"by": "group"}}, "has no group"),
        ({"data": {"set": [{"file": "a.jsonl"}, {"file": "b.jsonl"}], "mixture": "m.json"}}, r"data\.mixture gives"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path: Path, others: dict[str, Any], match: str) -> None:
    """If this failed, hours of runs would be spent on a search that finds nothing."""
    with pytest.raises(RefembedError, match=rf"mixtures\.toml: .*{match}"):
        settings_of(tmp_path, **others)


def small_table(tmp_path: Path, folder: Path, **others: Any) -> dict[str, Any]:
    """A search that really trains: two sets, of which one teaches what is measured and the other nothing."""
    sets = [{"file": str(write_rows(tmp_path / f"{name}.jsonl", 60, seed=seed))} for seed, name in enumerate("ab")]
    return {
        "run": {"out": str(tmp_path / "out"), "steps": 2},
        "model": {"folder": str(folder)},
        "data": {"set": sets, "batch": 6, "held_out": 8, "context": 32},
        "optimizer": {"learning_rate": 1e-3},
        "loss": {"lengths": [40], "temperature": 0.2},
        "search": {"trials": 0, "grid": 1, "dirichlet": 0, "score": "loss", "least": 0.0},
    } | others


@pytest.fixture
def trained(tmp_path: Path, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    monkeypatch.setattr("refembed_torch.train.plot.curves", lambda *_: None)  # takes longer than the training

    def train(**others: Any) -> dict[str, Any]:
        return run_mixtures(small_table(tmp_path, small_folder, **others), tmp_path / "mixtures.toml")

    return train


def test_each_trial_is_a_finetuning(trained: Callable[..., dict[str, Any]], tmp_path: Path, small_folder: Path) -> None:
    """Wrong if a score is not the held-out figure of a run with these rates, less loss not better, or trials fill the
    disk with weights.
    """
    trained()
    lines = [json.loads(line) for line in (tmp_path / "out/trials.jsonl").read_text().splitlines()][1:]
    assert [line["shares"] for line in lines] == [{"a": 0.5, "b": 0.5}, {"a": 0, "b": 1}, {"a": 1, "b": 0}]
    for line in lines:
        result = json.loads((tmp_path / f"out/trials/{line['trial']:04d}/result.json").read_text())
        assert line["score"] == -result["held_out"]["after"]["loss"]
        assert [one["rate"] for one in result["settings"]["data"]["set"]] == list(line["shares"].values())
    found = json.loads((tmp_path / "out/mixtures.json").read_text())
    assert found[0]["score"] == max(line["score"] for line in lines)
    assert not [file for file in (tmp_path / "out").rglob("*.safetensors") if "teacher" not in file.parts]
    table = small_table(tmp_path, small_folder)
    own = {key: value for key, value in table.items() if key != "search"}
    own["run"] = own["run"] | {"out": str(tmp_path / "alone")}
    own["data"]["set"][1]["rate"] = 0.0
    alone = run_contrastive(read(FinetuneSettings, own, tmp_path / "finetune.toml"))
    assert -alone["held_out"]["after"]["loss"] == lines[2]["score"]


def test_trials_share_the_teachers_vectors(
    trained: Callable[..., dict[str, Any]], tmp_path: Path, small_folder: Path
) -> None:
    """If this failed, a large teacher would embed the same texts anew in every trial."""
    trained(teacher={"kind": "refembed", "folder": str(small_folder), "backend": "numpy"})
    assert list((tmp_path / "out/teacher").iterdir())
    assert not list((tmp_path / "out/trials").glob("*/teacher"))


def test_scores_of_evaluation_sets(trained: Callable[..., dict[str, Any]], tmp_path: Path, small_folder: Path) -> None:
    """Wrong if a trial's score is not what `refembed evaluate` gives its model: the start's, at a rate of 0."""
    import refembed
    from refembed.evaluation.tasks import Choice, evaluate
    from refembed.evaluation.vectors import TextEncoder

    folder = tmp_path / "sts"
    folder.mkdir()
    rows = [f"{score}\t{'ab' * score} cat\tabab dog {score}" for score in range(5)]
    for lang in ("de", "en"):
        (folder / f"{lang}-dev.tsv").write_text("\n".join(["score\tsentence1\tsentence2", *rows]))
        rows = [row.replace("cat", "the old cat") for row in reversed(rows)]
    result = trained(evaluate=[{"folder": str(folder)}], optimizer={"learning_rate": 0.0})
    model = refembed.load(small_folder, backend="numpy")
    expected = {one.language: one.scores for one in evaluate(TextEncoder(model), folder, Choice(split="dev"))}
    assert set(expected) == {"de", "en", "mean"}
    main = next(iter(expected["mean"]))
    assert result["score"] == pytest.approx({"start": expected["mean"][main], "best": expected["mean"][main]}, abs=1e-3)


def test_a_figure_that_is_not_there(trained: Callable[..., dict[str, Any]]) -> None:
    """If this failed, a misspelt score would be taken for some number."""
    with pytest.raises(RefembedError, match=r"search\.score is 'ndgc@10'; the held-out figures are loss, ndcg@10"):
        trained(search={"score": "ndgc@10", "trials": 0})
