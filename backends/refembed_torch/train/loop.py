"""What all stages share: steps of the optimizer, a log, states to go on from, held-out figures, and the product.

A run can be killed at any moment. Everything a step does is a function of the weights, the optimizer's state, the seed
and the step's number; so a run that goes on from its last state ends in the same weights, on a CPU bit for bit where
threads and processes are as many as before (RCP-8).
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from refembed.errors import RefembedError
from refembed.output import lock_file, whole_file
from refembed.progress import Progress

from . import plot
from . import state as states
from .config import Optimizer, Run, plain
from .distributed import drop_whole, put, wait_for_all, whole, world

FREE = ("out", "save_every", "keep", "measure_every")  # of [run]: what may change before a run goes on
LOG, CURVES, RESULT, PRODUCT = "log.jsonl", "curves.svg", "result.json", "model"
HELD: set[Path] = set()  # folders of runs of this process


class Stage(Protocol):
    """What is trained, and on what.

    module   whose parameters are trained and kept
    """

    module: nn.Module

    def step(self, index: int) -> dict[str, Any]:
        """Add step `index`'s gradients to .grad, None before; what to log, a number "loss" in it."""

    def measure(self) -> dict[str, float]:
        """Held-out figures."""

    def positions(self) -> dict[str, int]:
        """How many examples of each set were read."""

    def seek(self, positions: Mapping[str, int]) -> None:
        """Go on reading from there."""

    def finish(self, folder: Path) -> None:
        """Write the product, a new folder."""


class Settings(Protocol):
    """What the dataclass of every stage has, beside its own."""

    @property
    def run(self) -> Run: ...
    @property
    def optimizer(self) -> Optimizer: ...


def train(stage: Stage, settings: Settings) -> dict[str, Any]:
    """Run a stage to its end, from its last state where it has one.

    returns   result.json's object: steps, seconds, held-out figures before and after

    Raises RefembedError where the folder belongs to a run of other settings or cannot be written, or a loss or gradient
    is not finite; the last good state then stays.
    """
    run, mark = settings.run, fingerprint(settings)
    with alone(run.out):
        if done := finished(run.out, mark):
            return done
        optimizer = adamw(stage.module, settings.optimizer)
        start = restore(stage, optimizer, run.out / "state", mark)
        log = Log(run.out / LOG, start)
        if not log.held_out():  # at the start, or where somebody has removed the log
            log.add({"step": start, "held_out": stage.measure()})
        started = time.perf_counter()
        with Progress(run.steps - start, world().rank == 0, "steps") as progress:
            for index in range(start, run.steps):
                log.add(one_step(stage, optimizer, settings, index))
                last = index + 1 == run.steps
                if last or (run.measure_every and (index + 1) % run.measure_every == 0):
                    log.add({"step": index + 1, "held_out": stage.measure()})
                if last or (index + 1) % run.save_every == 0:
                    log.keep()  # first, so that no state is without its lines
                    keep_state(stage, optimizer, run, index + 1, mark)
                progress.add(1)
        held_out = log.held_out()
        return conclude(
            stage,
            settings,
            {
                "steps": run.steps,
                "seconds": round(time.perf_counter() - started, 3),  # since the start, or since it went on
                "held_out": {"before": held_out[0], "after": held_out[-1]},
                "fingerprint": mark,
                "settings": plain(settings),
            },
        )


def fingerprint(settings: Settings) -> str:
    """What tells one run from another: every setting that can change its weights."""
    table = plain(settings)
    table["run"] = {key: value for key, value in table["run"].items() if key not in FREE}
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


@contextmanager
def alone(out: Path, products: Sequence[str] = (PRODUCT,)) -> Iterator[None]:
    """Keep other runs out of the folder, and clear away what a killed one left half written.

    products   what the run will write there, beside its log

    Within, the same process may ask again. Raises RefembedError where another is there, the folder cannot be written,
    or holds what no run has made: it would be overwritten.
    """
    if out.absolute() in HELD:
        yield
        return
    with ExitStack() as until:
        if world().rank == 0:
            until.enter_context(locked(out, products))
        wait_for_all()  # before others read what is there
        HELD.add(out.absolute())
        until.callback(HELD.discard, out.absolute())
        yield


@contextmanager
def locked(out: Path, products: Sequence[str]) -> Iterator[None]:
    file = out / ".lock"
    with to_write(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in (*products, LOG):
            if (out / name).exists() and not file.exists():
                raise RefembedError("train-state", f"{out} holds {name}, which no run made; give another out")
        handle = file.open("w")
    with handle:
        lock(handle.fileno(), out)
        for place in (out, out / "state"):
            for half in place.glob(".refembed-*"):
                shutil.rmtree(half) if half.is_dir() else half.unlink()
        yield


@contextmanager
def to_write(place: Path) -> Iterator[None]:
    """Raise RefembedError where this cannot be written."""
    try:
        yield
    except OSError as error:
        raise RefembedError("output-unwritable", f"{place}: {error.strerror or error}") from error


def lock(handle: int, out: Path) -> None:
    lock_file(handle, RefembedError("train-state", f"another process is training in {out}"))


def finished(out: Path, mark: str) -> dict[str, Any] | None:
    """The result of a run that has ended, where it was this one."""
    if not (out / RESULT).exists():
        return None
    found: dict[str, Any] = json.loads((out / RESULT).read_bytes())
    if found.get("fingerprint") != mark:
        raise RefembedError(
            "train-state", f"{out} holds a finished run with other settings; give another out, or remove it"
        )
    return found


def adamw(module: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    in_parts = any(isinstance(parameter, DTensor) for parameter in parameters)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=not in_parts,  # no temporary copy of all parameters
    )


def rate_at(index: int, steps: int, settings: Optimizer) -> float:
    """The learning rate of step `index`: up from nearly nothing, then down to nearly nothing, never quite there."""
    rising = math.ceil(settings.warm_up * steps)
    if index < rising:
        return settings.learning_rate * (index + 1) / (rising + 1)
    done = (index - rising) / max(steps - rising, 1)  # in [0, 1)
    share = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[settings.decay]
    return settings.learning_rate * share


def one_step(stage: Stage, optimizer: torch.optim.AdamW, settings: Settings, index: int) -> dict[str, Any]:
    """A step of the optimizer, and its line of the log."""
    numbers = stage.step(index)
    length = clip(stage.module, settings.optimizer.clip)
    line = {"step": index + 1, **numbers, "gradient_length": length}
    wrong = [name for name, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
    if wrong:
        raise RefembedError(
            "train-diverged",
            f"step {index + 1}: {wrong[0]} is {line[wrong[0]]}; nothing of this step was kept. The same settings would "
            "come here again: lower learning_rate, or raise warm_up, and give another out",
        )
    rate = rate_at(index, settings.run.steps, settings.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return line | {"learning_rate": rate}


def clip(module: nn.Module, most: float) -> float:
    """Scale all gradients together so that their length is at most `most`, unless that is 0; their length before."""
    length = nn.utils.clip_grad_norm_(module.parameters(), most or math.inf)
    return float(whole(length))


def named(module: nn.Module, optimizer: torch.optim.AdamW) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a state: the parameters, and what the optimizer keeps of each."""
    for name, parameter in module.named_parameters():
        yield f"parameter {name}", parameter
        for key, tensor in sorted(optimizer.state.get(parameter, {}).items()):
            yield f"{key} {name}", tensor


def keep_state(stage: Stage, optimizer: torch.optim.AdamW, run: Run, step: int, mark: str) -> None:
    drop_whole(stage.module)
    tensors = {name: whole(tensor) for name, tensor in named(stage.module, optimizer)}  # all processes take part
    if world().rank == 0:
        states.save(run.out / "state", states.State(step, stage.positions(), mark, tensors), run.keep)
    wait_for_all()


def restore(stage: Stage, optimizer: torch.optim.AdamW, folder: Path, mark: str) -> int:
    """Put the last state back, where there is one, and say how many steps it had made."""
    found = states.latest(folder, mark)
    if found is None:
        return 0
    tensors = found.tensors
    for name, parameter in stage.module.named_parameters():
        value = tensors.get(f"parameter {name}")
        if value is None or value.shape != parameter.shape:
            raise RefembedError(
                "train-state",
                f"{folder} holds the state of another model, without {name} of shape {tuple(parameter.shape)}; give "
                "another out, or remove it",
            )
        put(parameter, value)
        if f"exp_avg {name}" not in tensors:  # no gradient has reached it yet
            continue
        kept = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        for key, place in kept.items():
            put(place, tensors[f"{key} {name}"])
        step = tensors[f"step {name}"].to(parameter.device if parameter.device.type == "cuda" else "cpu")
        optimizer.state[parameter] = {"step": step, **kept}
    stage.seek(found.positions)
    return found.step


class Log:
    """log.jsonl, a line a step. Of a run that goes on, lines after its state are dropped: they are written again."""

    def __init__(self, file: Path, start: int) -> None:
        self.file, self.writing = file, world().rank == 0
        self.lines: list[dict[str, Any]] = []
        if start and file.exists():
            *ended, _ = file.read_text("utf-8").split("\n")  # the last is empty, or was cut short
            found = [json.loads(line) for line in ended]
            self.lines = [line for line in found if line["step"] <= start]
        if self.writing:
            with whole_file(file) as handle:
                handle.write("".join(map(as_line, self.lines)).encode())

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.writing:
            with to_write(self.file), self.file.open("a", encoding="utf-8") as handle:
                handle.write(as_line(line))

    def held_out(self) -> list[dict[str, float]]:
        return [line["held_out"] for line in self.lines if "held_out" in line]

    def keep(self) -> None:
        """Make sure of the lines so far, and draw them."""
        if self.writing:
            with to_write(self.file), self.file.open("a") as handle:
                os.fsync(handle.fileno())
            plot.curves(self.lines, self.file.with_name(CURVES))


def as_line(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def conclude(stage: Stage, settings: Settings, result: dict[str, Any]) -> dict[str, Any]:
    """The product first, then the result, whose being there says that the run has ended."""
    out = settings.run.out
    if world().rank == 0:
        shutil.rmtree(out / PRODUCT, ignore_errors=True)  # of a run killed between the two
    wait_for_all()
    stage.finish(out / PRODUCT)
    if world().rank == 0:
        write_json(out / RESULT, result)
    wait_for_all()
    return result


def write_json(file: Path, content: object) -> None:
    with whole_file(file) as handle:
        handle.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
