"""The whole recipe from one command: shortened, and as it stands; both with pytest -m long."""

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import tomllib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from refembed_torch.train import loop
from refembed_torch.train.recipe import run_recipe
from refembed_torch.train.state import digest

import refembed

RECIPE = Path(__file__).parents[2] / "spec" / "recipes" / "small.toml"
LINES = 800  # of each file


def first_lines(file: Path, copy: Path) -> None:
    with gzip.open(file) as whole, gzip.open(copy, "wb") as part:
        part.writelines(islice(whole, LINES))


def shortened(data: Path, folder: Path) -> dict:
    """The recipe with few steps, on the first lines of the files it names."""
    text = RECIPE.read_text()
    for name in set(re.findall(r"\$REFEMBED_DATA/([^\"]+)", text)):
        first_lines(data / name, folder / Path(name).name)
        text = text.replace(f"$REFEMBED_DATA/{name}", str(folder / Path(name).name))
    recipe = tomllib.loads(text) | {"out": str(folder / "out")}
    for stage in recipe["stage"]:
        if "run" in stage:
            stage["run"]["steps"] = {"mixtures": 1, "finetune": 3, "prefinetune": 40}.get(stage["stage"], 15)
        if "set" in stage.get("data", {}):
            stage["data"] |= {"held_out": 50, "batch": 16}
        if "text" in stage:
            stage["text"]["batch"] = 12
    recipe["stage"][0]["fresh"] |= {"vocabulary": 1536, "sample": 500}
    mixtures = next(stage for stage in recipe["stage"] if stage["stage"] == "mixtures")
    mixtures["search"] |= {"trials": 1, "dirichlet": 1, "grid": 0}
    return recipe


def outcome(out: Path, name: str) -> dict:
    return json.loads((out / name / "done.json").read_text())["held_out"]


def check(out: Path) -> None:
    """What the stages are for, as far as a few steps can show it."""
    for name in ("decoder", "encoder", "pairs"):
        assert outcome(out, name)["after"]["loss"] < outcome(out, name)["before"]["loss"], name
    assert outcome(out, "pairs")["after"]["ndcg@10"] > outcome(out, "pairs")["before"]["ndcg@10"]
    assert len(json.loads((out / "mixtures" / "mixtures.json").read_text())) == 2
    vectors = refembed.load(out / "aware" / "model", backend="numpy").encode(["a text", "another"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.long
def test_the_chain(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, the recipe that the specification shows would not run from its first stage to its last."""
    monkeypatch.setattr(loop.plot, "curves", lambda *_: None)  # take longer than the training
    recipe = shortened(data, tmp_path)
    results = run_recipe(recipe, tmp_path / "recipe.toml")
    assert [result["stage"] for result in results] == [stage["stage"] for stage in recipe["stage"]]
    check(tmp_path / "out")
    made = {file: digest(file) for file in (tmp_path / "out").rglob("model.safetensors")}
    run_recipe(recipe, tmp_path / "recipe.toml")
    assert {file: digest(file) for file in made} == made  # nothing was trained again


@pytest.mark.long
def test_the_chain_as_it_stands(data: Path, tmp_path: Path) -> None:
    """Wrong if, on real data, a stage did not do what it is for; under 20 minutes on two cores."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.read_text().replace("../../runs/small", "out"))
    started = time.monotonic()
    environment = {**os.environ, "REFEMBED_DATA": str(data)}
    subprocess.run([sys.executable, "-m", "refembed", "train", "--all", str(recipe)], check=True, env=environment)
    assert time.monotonic() - started < 20 * 60
    out = tmp_path / "out"
    check(out)
    soup = outcome(out, "soup")
    assert soup["soup"]["ndcg@10"] >= np.mean([part["ndcg@10"] for part in soup["parts"]])
    for name in ("expert-0", "expert-1"):
        assert outcome(out, name)["after"]["ndcg@10"] > outcome(out, name)["before"]["ndcg@10"], name
    aware, unaware = (outcome(out, name)["after"] for name in ("aware", "unaware"))
    assert aware["loss int4-block"] < unaware["loss int4-block"]


FINETUNE = """
stage = "finetune"
run = {{ out = "{out}", steps = 40, seed = 3, save_every = 3 }}
model = {{ folder = "{model}" }}
optimizer = {{ learning_rate = 1e-3 }}
loss = {{ lengths = [64, 32] }}
chunk = 512
[data]
batch = 16
context = 48
hard = 1
[[data.set]]
file = "sets/tldr_command_en.jsonl.gz"
[[data.set]]
file = "sets/wordnet_sense.jsonl.gz"
"""


@pytest.mark.long
def test_killed_at_ten_random_moments(data: Path, tmp_path: Path) -> None:
    """If this failed, a run that was killed would end in other weights than one that was not, by a bit at least."""
    (tmp_path / "sets").mkdir()
    for name in ("tldr_command_en", "wordnet_sense"):
        first_lines(data / "train" / f"{name}.jsonl.gz", tmp_path / "sets" / f"{name}.jsonl.gz")
    model = Path(refembed.__file__).parent / "default_model"
    for name in ("unbroken", "killed"):
        (tmp_path / f"{name}.toml").write_text(FINETUNE.format(out=name, model=model))
    command = [sys.executable, "-m", "refembed", "train"]
    subprocess.run([*command, str(tmp_path / "unbroken.toml")], check=True, capture_output=True)
    log, chance = tmp_path / "killed" / "log.jsonl", random.Random(1)
    for lines in sorted(chance.sample(range(40), 10)):
        process = subprocess.Popen([*command, str(tmp_path / "killed.toml")], stderr=subprocess.DEVNULL)
        while not log.exists() or log.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))  # anywhere in a step, or in writing a state
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "killed.toml")], check=True, capture_output=True)
    files = [
        file.relative_to(tmp_path / "unbroken") for file in (tmp_path / "unbroken" / "model").rglob("*.safetensors")
    ]
    assert len(files) == 3
    for file in files:
        assert digest(tmp_path / "killed" / file) == digest(tmp_path / "unbroken" / file), file
