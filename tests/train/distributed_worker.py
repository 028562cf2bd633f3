"""One process of several: a step's gradients, held-out figures and the product of a training file, for a test."""

import json
import sys
from pathlib import Path

from refembed_torch.train import config
from refembed_torch.train.contrastive import Contrastive, FinetuneSettings
from refembed_torch.train.distributed import wait_for_all, whole, world
from refembed_torch.train.loop import clip
from safetensors.torch import save_file


def work(file: Path) -> None:
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


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        work(Path(argument))
