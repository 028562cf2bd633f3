"""Stage mixtures: how often batches should come from which set, found by Bayesian optimisation over short finetunings.

The paper: a grid search's rates and ten mixtures from a Dirichlet distribution are what the optimisation starts from,
and the best mixtures become experts, which are averaged. Which optimiser, what grid and how experts are kept apart it
leaves open; ours are Gaussian processes on the mixtures' simplex, all mixtures of whole steps, and a least distance.
Every mixture keeps a part of the file's own: a short run on one set alone may score best, a long one forgets the rest.
Source: RCP-5.
"""

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from refembed.errors import RefembedError
from refembed.evaluation.tasks import MEAN, Choice, evaluate
from refembed.evaluation.vectors import CONTEXT, TextEncoder
from refembed.output import whole_file

from .chance import generator
from .config import at_least, plain, read
from .contrastive import Contrastive, FinetuneSettings
from .data import DataSettings
from .distributed import gather_rows, wait_for_all, world
from .loop import FREE, PRODUCT, RESULT, alone, finished, train, write_json

MIXTURES, TRIALS, FOLDERS, STATES = "mixtures.json", "trials.jsonl", "trials", "state"
FREE_OF_TRIALS = ("trials", "experts", "apart")  # of [search]: what no trial depends on, so that more may be tried
LARGEST_GRID = 64  # runs
ASKED = 4  # times at most for a mixture that was not tried
SAME = 0.01  # of the batches: mixtures that differ in less are one
LARGER_IS_WORSE = "loss"
Objective = Callable[[dict[str, float], Path], float]  # rates by set, a new folder -> a score, larger is better


@dataclass(frozen=True)
class SearchSettings:
    """[search].

    by          what has a rate of its own: each set, or each group of sets, whose own rates then hold within it
    trials      runs that the optimiser chooses, after those below
    grid        its steps: all mixtures whose shares are whole numbers of 1/grid are tried; 0 for none
    dirichlet   mixtures drawn at random, all mixtures equally likely
    least       the part of the file's own mixture that each keeps, the rest of which is searched for: at 0.2 each of
                four even sets has at least 0.05 of the batches. 0: one set may have all
    score       of the held-out figures, where there is no [[evaluate]]; of "loss" less is better
    experts     mixtures that are kept, best first
    apart       the least distance of two of them: the share of batches in which they differ. Halved where fewer are so
    """

    by: Literal["set", "group"] = "set"
    trials: int = 20
    grid: int = 2
    dirichlet: int = 10
    least: float = 0.2
    score: str = "ndcg@10"
    experts: int = 3
    apart: float = 0.2

    def __post_init__(self) -> None:
        at_least(self, trials=0, grid=0, dirichlet=0, least=0, experts=1, apart=0)
        if self.least >= 1:
            raise ValueError(f"least is {self.least}, below 1 needed: there would be nothing to search for")


@dataclass(frozen=True)
class EvaluateSettings:
    """[[evaluate]]: a folder as `refembed evaluate` takes it, and its options. The score is each task's main one."""

    folder: Path
    split: str = "dev"
    task: str = ""
    languages: tuple[str, ...] = ()
    collection: str = ""
    documents: str = ""
    prompt: str = ""
    context: int = CONTEXT


@dataclass(frozen=True)
class MixturesSettings(FinetuneSettings):
    """A file of stage mixtures: one of stage finetune, which each trial runs with other rates, and the search's own.

    evaluate   what a trial's model is scored on, the mean over folders; its held-out examples where there is none
    """

    search: SearchSettings = field(default_factory=SearchSettings)
    evaluate: tuple[EvaluateSettings, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.even:
            raise ValueError("data.even gives every group the same share; a search for shares needs it off")
        if self.data.mixture:
            raise ValueError("data.mixture gives the rates that are searched for; leave it out")
        if self.search.by == "group" and not all(one.group for one in self.data.set):
            raise ValueError("search.by is group, and a set has no group; say it for each")
        names = list(start_of(self))
        if len(names) < 2:
            raise ValueError(f"there is {len(names)} {self.search.by} with a rate above 0, at least 2 needed to mix")
        if math.comb(len(names) + self.search.grid - 1, self.search.grid) > LARGEST_GRID:
            raise ValueError(
                f"search.grid is {self.search.grid}: more than {LARGEST_GRID} runs for {len(names)} rates; take fewer "
                'steps, or by = "group"'
            )


class Trial(NamedTuple):
    """A mixture and its score.

    kind     start, grid, dirichlet or search
    point    of the cube that the optimiser sees: to_cube of what the mixture has beside its part of the start
    shares   of each set or group, 1 in all
    score    None where training diverged
    """

    kind: str
    point: list[float]
    shares: dict[str, float]
    score: float | None


# ----------------------------------------------------------------------------------------------------------- the stage
def run_mixtures(table: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The stage: out/mixtures.json, a list of score and rates, best first, and out/trials.jsonl, all that was tried."""
    settings = read(MixturesSettings, table, file)
    return run(settings, lambda rates, folder: score_of(settings, rates, folder))


def run(settings: MixturesSettings, objective: Objective) -> dict[str, Any]:
    """The stage with any objective. Killed, it goes on after the last trial that has a score; finished, it does so with
    more trials or other experts, once its result.json is removed.
    """
    out, chosen, mark = settings.run.out, settings.search, fingerprint(settings)
    if chosen.trials:
        check_optuna()
    with alone(out):
        if done := finished(out, mark):
            return done
        start = start_of(settings)

        def of_shares(shares: dict[str, float], folder: Path) -> float:
            return objective(rates_of(settings, shares), folder)

        trials = search(start, of_shares, out, chosen, settings.run.seed, fingerprint(settings, FREE_OF_TRIALS))
        best = experts(trials, chosen.experts, chosen.apart)
        if not best:
            raise RefembedError(
                "train-diverged",
                f"{out / TRIALS}: training diverged with every mixture; lower learning_rate, and give another out",
            )
        mixtures = [{"score": trial.score, "rates": rates_of(settings, trial.shares)} for trial in best]
        result = {
            "trials": len(trials),
            "score": {"start": trials[0].score, "best": best[0].score},
            "fingerprint": mark,
            "settings": plain(settings),
        }
        if world().rank == 0:
            write_json(out / MIXTURES, mixtures)
            write_json(out / RESULT, result)
        wait_for_all()
    return result


def fingerprint(settings: MixturesSettings, free: Sequence[str] = ()) -> str:
    """What tells one search from another. free: of [search], what does not count."""
    table = plain(settings)
    table["run"] = {key: value for key, value in table["run"].items() if key not in FREE}
    table["search"] = {key: value for key, value in table["search"].items() if key not in free}
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def check_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise RefembedError(
            "train-missing", 'stage mixtures needs optuna, which is not installed; pip install "refembed[train]"'
        ) from error


def start_of(settings: MixturesSettings) -> dict[str, float]:
    """The file's own mixture: each set's or group's share. Sets of rate 0 are held out only, and stay so."""
    names = {one.name: one.name if settings.search.by == "set" else one.group for one in settings.data.set if one.rate}
    totals = dict.fromkeys(names.values(), 0.0)
    for one in settings.data.set:
        if one.rate:
            totals[names[one.name]] += one.rate
    return normal(totals)


def normal(totals: Mapping[str, float]) -> dict[str, float]:
    return {name: total / sum(totals.values()) for name, total in totals.items()}


def rates_of(settings: MixturesSettings, shares: Mapping[str, float]) -> dict[str, float]:
    """Every set's share of the batches, by name."""
    by_set, totals = settings.search.by == "set", dict.fromkeys(shares, 0.0)
    for one in settings.data.set:
        if one.rate:
            totals[one.name if by_set else one.group] += one.rate
    return {
        one.name: shares[name] * one.rate / totals[name] if one.rate else 0.0
        for one in settings.data.set
        for name in (one.name if by_set else one.group,)
    }


def with_rates(data: DataSettings, rates: Mapping[str, float]) -> DataSettings:
    """The same sets at other rates, by their names."""
    return replace(data, set=tuple(replace(one, rate=rates[one.name]) for one in data.set))


def score_of(settings: MixturesSettings, rates: dict[str, float], folder: Path) -> float:
    """Finetune with these rates in a folder, and score the model."""
    common = {one.name: getattr(settings, one.name) for one in fields(FinetuneSettings)}
    common |= {"run": replace(settings.run, out=folder, keep=1), "data": with_rates(settings.data, rates)}
    one = FinetuneSettings(**common)
    result = train(Contrastive(one, settings.run.out / "teacher"), one)  # trials share the teacher's vectors
    if settings.evaluate:
        return float(np.mean([evaluated(folder / PRODUCT, one) for one in settings.evaluate]))
    return held_out_score(result["held_out"]["after"], settings.search.score)


def held_out_score(figures: Mapping[str, float], name: str) -> float:
    if name not in figures:
        raise RefembedError(
            "train-config", f"search.score is {name!r}; the held-out figures are {', '.join(figures) or 'none'}"
        )
    return -figures[name] if name.split()[0] == LARGER_IS_WORSE else figures[name]


def evaluated(model: Path, settings: EvaluateSettings) -> float:
    """The mean over a folder's sets of the task's main score, in percent; a set's own is that over its languages."""
    import refembed

    encode = TextEncoder(refembed.load(model, backend="torch"), settings.context)
    choice = Choice(
        settings.task or None,
        settings.split,
        settings.languages,
        settings.collection or None,
        settings.documents or None,
        settings.prompt or None,
    )
    results = {(one.set, one.language == MEAN): one for one in evaluate(encode, settings.folder, choice)}
    whole = [one for (name, mean), one in results.items() if mean or (name, True) not in results]
    return float(np.mean([next(iter(one.scores.values())) for one in whole]))


# ---------------------------------------------------------------------------------------------------------- the search
def search(
    start: Mapping[str, float], objective: Objective, out: Path, settings: SearchSettings, seed: int, mark: str
) -> list[Trial]:
    """All trials, in order: those that are known beforehand, then those the optimiser chooses.

    start       shares of the mixture to begin with, all names in it
    objective   of shares; called with a folder of the trial's own
    mark        what tells this search from another in the same folder

    A trial is a function of the seed and the trials before it, so a killed search goes on as if it had not been.
    """
    fixed = list(known(start, settings, seed))
    trials = Kept(out / TRIALS, mark)
    folders = [out / FOLDERS / f"{number:04d}" for number in range(len(fixed) + settings.trials)]
    clear(folders[: len(trials.done)])
    for number in range(len(trials.done), len(folders)):
        if number < len(fixed):
            kind, values = fixed[number]
            point = to_cube(values)
        else:
            kind, point = "search", suggest(len(start) - 1, trials.done, seed, number)
            values = from_cube(point)
        shares = {
            name: settings.least * own + (1 - settings.least) * value
            for (name, own), value in zip(start.items(), values, strict=True)
        }
        try:
            score: float | None = objective(shares, folders[number])
        except RefembedError as error:
            if error.id != "train-diverged":
                raise
            score = None  # which says something of the mixture too, and the search goes on
        trials.add(Trial(kind, point, shares, score))
        clear([folders[number]])
    return trials.done


def clear(folders: Sequence[Path]) -> None:
    """Of trials whose score is kept, remove what is large: weights and the optimizer's state."""
    wait_for_all()  # a process may still read the model
    if world().rank == 0:
        for folder, name in itertools.product(folders, (STATES, PRODUCT)):
            shutil.rmtree(folder / name, ignore_errors=True)


def known(start: Mapping[str, float], settings: SearchSettings, seed: int) -> Iterator[tuple[str, list[float]]]:
    """The mixtures that need no optimiser, each once: the file's own, the grid's, those drawn at random."""
    own, count = list(start.values()), len(start)
    yield "start", own
    for steps in itertools.product(range(settings.grid + 1), repeat=count):
        shares = [step / max(settings.grid, 1) for step in steps]
        if settings.grid and sum(steps) == settings.grid and shares != own:
            yield "grid", shares
    for number in range(settings.dirichlet):
        yield "dirichlet", generator(seed, "dirichlet", number).dirichlet(np.ones(count)).tolist()


class Kept:
    """trials.jsonl: a line that names the search, then a trial a line. The file is replaced whole for each."""

    def __init__(self, file: Path, mark: str) -> None:
        self.file, head = file, {"search": mark}
        file.parent.mkdir(parents=True, exist_ok=True)
        lines: list[dict[str, Any]] = [head]
        if file.exists():
            lines = [json.loads(line) for line in file.read_bytes().splitlines()]
        if lines[0] != head:
            raise RefembedError(
                "train-state",
                f"{file} holds the trials of a search with other settings; give another out, or remove it",
            )
        self.head, self.done = head, [Trial(**{key: line[key] for key in Trial._fields}) for line in lines[1:]]
        wait_for_all()  # before the first process writes

    def add(self, trial: Trial) -> None:
        """Keep a trial with the first process's score, so that all go on alike."""
        (score,) = agreed([math.nan if trial.score is None else trial.score])
        self.done.append(trial._replace(score=None if math.isnan(score) else score))
        lines = [self.head, *({"trial": number, **one._asdict()} for number, one in enumerate(self.done))]
        if world().rank == 0:
            with whole_file(self.file) as handle:
                handle.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def agreed(values: Sequence[float]) -> list[float]:
    """The first process's."""
    found: list[float] = gather_rows(torch.tensor([values], dtype=torch.float64, device=world().device))[0].tolist()
    return found


def suggest(numbers: int, trials: Sequence[Trial], seed: int, number: int) -> list[float]:
    """The next point to try: where a Gaussian process through the scores so far expects most beyond the best.

    A mixture that was tried would score the same again. Several points of the cube are one mixture, so the optimiser
    may ask for it once more: it is told the score and asked anew, and in the end a point half-way between the best and
    one drawn at random is tried.
    """
    worst = min((trial.score for trial in trials if trial.score is not None), default=0.0)
    # of one with which training diverged, too: the optimiser would go there again
    told = [(trial.point, worst if trial.score is None else trial.score) for trial in trials]
    for again in range(ASKED):
        found = ask(numbers, told, int(generator(seed, "sampler", number, again).integers(2**31)))
        known = [score for point, score in told if difference(from_cube(point), from_cube(found)) < SAME]
        if not known:
            return found
        told.append((found, known[0]))
    best, _ = max(told, key=lambda one: one[1])
    drawn = generator(seed, "instead", number).dirichlet(np.ones(numbers + 1))
    return to_cube(((np.array(from_cube(best)) + drawn) / 2).tolist())


def ask(numbers: int, told: Sequence[tuple[list[float], float]], seed: int) -> list[float]:
    """The optimiser's next point, after these and their scores."""
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space: dict[str, Any] = {f"{index}": FloatDistribution(0.0, 1.0) for index in range(numbers)}
    sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for point, score in told:
        params = dict(zip(space, point, strict=True))
        study.add_trial(create_trial(params=params, distributions=space, value=score))
    asked = study.ask(space).params
    return agreed([asked[key] for key in space])


def to_cube(shares: Sequence[float]) -> list[float]:
    """A mixture of n as n - 1 independent numbers from 0 to 1: each share as a part of what those before it leave."""
    cube, rest = [], 1.0
    for share in shares[:-1]:
        cube.append(min(share / rest, 1.0) if rest > 0 else 0.0)
        rest = max(rest - share, 0.0)
    return cube


def from_cube(cube: Sequence[float]) -> list[float]:
    """The mixture of a point of the cube. Where nothing is left to divide, several points are the same mixture."""
    shares, rest = [], 1.0
    for part in cube:
        shares.append(rest * part)
        rest *= 1 - part
    return [*shares, rest]


def experts(trials: Sequence[Trial], count: int, apart: float) -> list[Trial]:
    """The best mixtures, best first, no two nearer than `apart`, or than a half, a quarter ... of it where that leaves
    fewer than `count`; the earlier of two equals.
    """
    scored = [trial for trial in trials if trial.score is not None]
    ranked = sorted(scored, key=lambda trial: -trial.score if trial.score is not None else math.inf)
    found: list[Trial] = []
    while len(found) < min(count, len(ranked)):
        found = []
        for trial in ranked:
            if len(found) < count and all(distance(trial, other) >= apart for other in found):
                found.append(trial)
        apart = apart / 2 if apart > 1e-6 else 0.0
    return found


def distance(one: Trial, other: Trial) -> float:
    """The share of batches in which two mixtures differ, from 0 to 1."""
    return difference(list(one.shares.values()), [other.shares[name] for name in one.shares])


def difference(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(abs(share - theirs) for share, theirs in zip(one, other, strict=True)) / 2
