"""One process of several: what a training file gives, for a test. Arguments are DEED=FILE, done in this order."""

import json
import shutil
import sys
from pathlib import Path

from refembed_torch.train import command, config, loop
from refembed_torch.train.contrastive import Contrastive, FinetuneSettings
from refembed_torch.train.distributed import wait_for_all, whole, world
from refembed_torch.train.loop import clip
from safetensors.torch import save_file


def work(file: Path) -> None:
    """A step's gradients, held-out figures and the product."""
    settings = config.read(FinetuneSettings, config.load(file), file)
    stage = Contrastive(settings)
    numbers = stage.step(0)
    gradients = {name: whole(parameter.grad).contiguous() for name, parameter in stage.module.named_parameters()}
    length = clip(stage.module, 0.0)
    figures = stage.measure()
    stage.finish(settings.run.out / "model")
    results = {"step": numbers, "gradient_length": length, "held_out": figures}
    if world().rank == 0:
        save_file(gradients, settings.run.out / "gradients.safetensors")
        (settings.run.out / "numbers.json").write_text(json.dumps(results))
    wait_for_all()


def stage(file: Path) -> None:
    """The whole stage."""
    loop.plot.curves = lambda *_: None  # take longer than the training
    command.run_stage(config.load(file), file)


def undo(file: Path) -> None:
    """Take its finished run back to the last state but one; the product becomes `unbroken`."""
    out = Path(config.load(file)["run"]["out"])
    if world().rank == 0:
        (out / "model").rename(out / "unbroken")
        (out / "result.json").unlink()
        shutil.rmtree(max((out / "state").iterdir()))
    wait_for_all()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        deed, name = argument.split("=", 1)
        {"work": work, "stage": stage, "undo": undo}[deed](Path(name))
