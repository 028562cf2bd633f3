"""One process of several: a step's gradients and loss, held-out loss and product of pretraining or adaptation."""

import json
import sys
from pathlib import Path

from refembed_torch.train.adapt import Adapt, AdaptSettings, Pretrain, PretrainSettings
from refembed_torch.train.config import read
from refembed_torch.train.distributed import wait_for_all, whole, world
from safetensors.torch import save_file

KINDS = {"pretrain": (PretrainSettings, Pretrain), "adapt": (AdaptSettings, Adapt)}


def work(file: Path) -> None:
    """file: JSON of the stage and its tables."""
    tables = json.loads(file.read_text())
    kind, stage_of = KINDS[tables.pop("stage")]
    settings = read(kind, tables, file)
    stage = stage_of(settings)
    numbers = stage.step(0)
    gradients = {name: whole(parameter.grad).contiguous() for name, parameter in stage.module.named_parameters()}
    numbers["held_out"] = stage.measure()["loss"]
    stage.finish(settings.run.out / "model")
    if world().rank == 0:
        save_file(gradients, settings.run.out / "gradients.safetensors")
        (settings.run.out / "numbers.json").write_text(json.dumps(numbers))
    wait_for_all()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        work(Path(argument))
