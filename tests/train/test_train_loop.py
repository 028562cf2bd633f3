"""The loop of every stage: a killed run ends where an unbroken one does; states and folders keep to their run."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refembed_torch.train import loop, state
from refembed_torch.train.chance import generator
from refembed_torch.train.config import Optimizer, Run
from torch import nn

from refembed.errors import RefembedError


@dataclass(frozen=True)
class Settings:
    run: Run
    optimizer: Optimizer


class Killed(BaseException):
    """What no handler catches, as a kill."""


class Line:
    """A stage that fits a line; `kill` is asked before everything it does."""

    def __init__(self, kill=lambda: None):
        generator_of_weights = torch.Generator().manual_seed(3)
        self.module = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3))
        for parameter in self.module.parameters():
            nn.init.normal_(parameter, generator=generator_of_weights)
        self.kill, self.read = kill, 0

    def step(self, index):
        self.kill()
        x = torch.from_numpy(generator(7, index).normal(size=(8, 5)).astype("f4"))
        loss = (self.module(x) - x[:, :3]).square().mean()
        loss.backward()
        self.read += 8
        return {"loss": float(loss.detach()), "set": "x"}

    def measure(self):
        self.kill()
        return {"loss": float(self.module(torch.ones(1, 5)).square().mean().detach())}

    def positions(self):
        self.kill()
        return {"x": self.read}

    def seek(self, positions):
        self.read = positions["x"]

    def finish(self, folder):
        self.kill()
        folder.mkdir()
        torch.save(self.module.state_dict(), folder / "weights")
        self.kill()


def settings_of(out: Path, **changed) -> Settings:
    optimizer = Optimizer(**{"learning_rate": 0.1, "weight_decay": 0.1, **changed.pop("optimizer", {})})
    return Settings(Run(**{"out": out, "steps": 12, "save_every": 3, "measure_every": 4, **changed}), optimizer)


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    stage = Line()
    return loop.train(stage, settings_of(out)), stage.module.state_dict(), log_of(out), out


@pytest.fixture(autouse=True)
def quickly(unbroken, monkeypatch):
    """Curves are drawn once, for the unbroken run: they take longer than the training."""
    monkeypatch.setattr(loop.plot, "curves", lambda lines, file: file.write_text("<svg"))


def test_what_a_run_leaves(unbroken):
    """Wrong if a step or figure were not logged, the product were missing, or more states stayed than asked for."""
    result, _, log, out = unbroken
    assert [line["step"] for line in log if "held_out" not in line] == list(range(1, 13))
    assert [line["step"] for line in log if "held_out" in line] == [0, 4, 8, 12]
    assert result == json.loads((out / "result.json").read_text())
    assert result["held_out"]["after"]["loss"] == log[-1]["held_out"]["loss"] != result["held_out"]["before"]["loss"]
    assert sorted(place.name for place in (out / "state").iterdir()) == ["00000009", "00000012"]
    assert (out / "model" / "weights").exists()
    assert b"<svg" in (out / "curves.svg").read_bytes()
    rates = [line["learning_rate"] for line in log if "held_out" not in line]
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[-1] > 0


@settings(max_examples=40)
@given(st.lists(st.integers(0, 24), min_size=1, max_size=4), st.booleans())
def test_killed_anywhere_it_ends_in_the_same_weights(tmp_path_factory, unbroken, moments, in_writing):
    """If this failed, a run that was killed would end in other weights, or its log would have gaps or doubles."""
    out = tmp_path_factory.mktemp("killed")
    _, weights, log, _ = unbroken
    for moment in moments:
        left = [moment]

        def kill(left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            if in_writing:  # a state half written
                write = state.save_file

                def half(tensors, file, kill=kill, write=write):
                    kill()
                    write(tensors, file)
                    kill()

                patch.setattr(state, "save_file", half)
            try:
                loop.train(Line((lambda: None) if in_writing else kill), settings_of(out))
            except Killed:
                continue
    stage = Line()
    loop.train(stage, settings_of(out))
    if stage.read:  # else it had ended already
        assert all(torch.equal(stage.module.state_dict()[name], weights[name]) for name in weights)
    product = torch.load(out / "model" / "weights", weights_only=True)
    assert all(torch.equal(product[name], weights[name]) for name in weights)
    assert log_of(out) == log
    assert not list(out.rglob(".refembed-*"))
    shutil.rmtree(out)


def test_a_finished_run_is_not_run_again(unbroken):
    """If this failed, a recipe that goes on would train finished stages anew."""
    result, _, _, out = unbroken

    class Never(Line):
        def step(self, index):
            raise AssertionError

    assert loop.train(Never(), settings_of(out)) == result


@pytest.mark.parametrize("changed", [{"seed": 1}, {"steps": 13}, {"optimizer": {"clip": 0.5}}])
def test_a_folder_belongs_to_its_settings(tmp_path, unbroken, changed):
    """If this failed, half of one run and half of another would pass for one."""
    shutil.copytree(unbroken[3], tmp_path / "copy")
    for _ in range(2):  # finished, and then not
        with pytest.raises(RefembedError) as caught:
            loop.train(Line(), settings_of(tmp_path / "copy", **changed))
        assert caught.value.id == "train-state"
        (tmp_path / "copy" / "result.json").unlink(missing_ok=True)


def test_what_may_change_before_a_run_goes_on(tmp_path, unbroken):
    """If this failed, a user could not save more often, or move the folder."""
    shutil.copytree(unbroken[3], tmp_path / "copy")
    (tmp_path / "copy" / "result.json").unlink()
    loop.train(Line(), settings_of(tmp_path / "copy", save_every=5, keep=1, measure_every=0))


def test_a_damaged_state_is_passed_over(tmp_path, unbroken):
    """If this failed, one bad block on a disk would cost the run, or worse, go into it."""
    out = tmp_path / "copy"
    shutil.copytree(unbroken[3], out)
    (out / "result.json").unlink()
    tensors = out / "state" / "00000012" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x55")
    stage = Line()
    with pytest.warns(UserWarning, match="00000012 is damaged"):
        loop.train(stage, settings_of(out))
    assert all(torch.equal(stage.module.state_dict()[name], unbroken[1][name]) for name in unbroken[1])


def test_a_state_of_another_model(tmp_path, unbroken):
    """If this failed, a checkpoint that was replaced while its training was stopped would end in a traceback."""
    shutil.copytree(unbroken[3], tmp_path / "copy")
    (tmp_path / "copy" / "result.json").unlink()
    for module in (nn.Sequential(nn.Linear(5, 4)), nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3))):
        stage = Line()
        stage.module = module
        with pytest.raises(RefembedError, match=r"the state of another model, without .*weight of shape"):
            loop.train(stage, settings_of(tmp_path / "copy"))


def test_two_runs_do_not_share_a_folder(tmp_path, monkeypatch):
    """If this failed, two processes would write one another's states, or a search shut itself out of its trials."""
    with loop.alone(tmp_path):
        with loop.alone(tmp_path):
            pass
        monkeypatch.setattr(loop, "HELD", set())  # as another process sees it
        with pytest.raises(RefembedError, match="another process"), loop.alone(tmp_path):
            pass
    with loop.alone(tmp_path):
        pass


@pytest.mark.parametrize("name", ["model", "log.jsonl"])
def test_what_no_run_made_stays(tmp_path, name):
    """If this failed, a run in the folder of the checkpoint it starts from would remove that at its end."""
    (tmp_path / name).mkdir()
    for _ in range(2):
        with pytest.raises(RefembedError, match=f"holds {name}, which no run made") as caught:
            loop.train(Line(), settings_of(tmp_path))
        assert caught.value.id == "train-state"
    assert [place.name for place in tmp_path.iterdir()] == [name]


def test_a_log_that_is_damaged_or_gone(tmp_path, unbroken):
    """If this failed, a line that a full disk cut short, or a log that somebody removed, would end the run for good."""
    for change in (lambda file: file.write_text(file.read_text() + '{"step": 12, "a": {}'), Path.unlink):
        out = tmp_path / change.__name__
        shutil.copytree(unbroken[3], out)
        (out / "result.json").unlink()
        change(out / "log.jsonl")
        assert loop.train(Line(), settings_of(out))["held_out"]["after"] == unbroken[0]["held_out"]["after"]


@pytest.mark.parametrize("size", [0, 30, 1000])
def test_a_full_disk(tmp_path, size):
    """If this failed, a run for which there is no more room would end without saying so, or leave half a state."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(RefembedError) as caught:
            loop.train(Line(), settings_of(tmp_path, measure_every=0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.id == "output-unwritable"
    assert str(tmp_path) in caught.value.reason
    stage = Line()
    loop.train(stage, settings_of(tmp_path))
    assert stage.read == 12 * 8


def test_a_folder_that_cannot_be_made(tmp_path):
    """If this failed, it would be said without the folder."""
    (tmp_path / "file").touch()
    with pytest.raises(RefembedError, match="file/run") as caught:
        loop.train(Line(), settings_of(tmp_path / "file" / "run"))
    assert caught.value.id == "output-unwritable"


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    """If this failed, a diverged run would write NaN over its last good state."""

    class Diverging(Line):
        def step(self, index):
            return super().step(index) | ({"loss": float("nan")} if index == 5 else {})

    with pytest.raises(RefembedError) as caught:
        loop.train(Diverging(), settings_of(tmp_path))
    assert caught.value.id == "train-diverged"
    assert "step 6" in caught.value.reason
    assert [place.name for place in (tmp_path / "state").iterdir()] == ["00000003"]


def test_the_optimizer_is_pytorchs_own(tmp_path):
    """Wrong if states, groups or the schedule changed what AdamW does: PyTorch's loop by hand is the truth."""
    made = Line()
    loop.train(made, settings_of(tmp_path, optimizer={"warm_up": 0.25, "clip": 0.0, "decay": "cosine"}))
    truth = Line()
    norm = [*list(truth.module[1].parameters()), truth.module[0].bias]
    groups = [{"params": [truth.module[0].weight], "weight_decay": 0.1}, {"params": norm, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=0.1, foreach=False)
    # by hand: warm-up over 3 of 12 steps, then half a cosine over 9
    rates = [0.025, 0.05, 0.075] + [0.1 * (1 + torch.cos(torch.tensor(k / 9 * torch.pi)).item()) / 2 for k in range(9)]
    for index, rate in enumerate(rates):
        truth.step(index)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        adam.zero_grad()
    for own, other in zip(made.module.parameters(), truth.module.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
