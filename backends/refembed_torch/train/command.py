"""the paper's recipe: adapt, prefinetune, finetune, mixtures, soup, quantisation

One TOML file is one stage: `stage = "finetune"`, and a table for each of its settings. A recipe names several, which
run one after the other; "@NAME" in it is what the stage of that name made. Killed at any moment, the same command goes
on from the last state. spec/14-recipe.md of the source distribution explains each stage and setting.

  refembed train finetune.toml
  refembed train --all recipe.toml
  torchrun --nproc-per-node 2 --no-python refembed train finetune.toml

Exit status: 0 done, 2 wrong use, unreadable input, or a run that cannot go on.
"""

import argparse
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refembed.errors import RefembedError

# stage -> the module that has it and the function, of the file's tables and the file, that runs it
STAGES = {
    "pretrain": ("adapt", "run_pretrain"),
    "adapt": ("adapt", "run_adapt"),
    "mine": ("mining", "run_mine"),
    "prefinetune": ("contrastive", "run_prefinetune"),
    "finetune": ("contrastive", "run_finetune"),
    "mixtures": ("mixtures", "run_mixtures"),
    "soup": ("soup", "run_soup"),
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "config", metavar="CONFIG.toml", type=Path, help="a stage's settings, or with --all a recipe's"
    )
    command.add_argument("--all", action="store_true", help="the file is a recipe: run every stage of it, in order")


def run(given: argparse.Namespace) -> int:
    check_libraries()
    from .config import load

    table = load(given.config)
    if given.all:
        from .recipe import run_recipe

        run_recipe(table, given.config)
    else:
        print(json.dumps(summary(run_stage(table, given.config)), ensure_ascii=False))
    return 0


def check_libraries() -> None:
    for name in ("torch", "matplotlib"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RefembedError(
                "train-missing", f'training needs {name}, which is not installed; pip install "refembed[train]"'
            ) from error


def run_stage(table: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Run the stage that a table names; what it has to say at its end.

    file     the TOML file, from whose folder paths are taken
    """
    kind = table.get("stage")
    if kind not in STAGES:
        raise RefembedError("train-config", f"{file}: stage is {kind!r}, one of {', '.join(STAGES)} needed")
    module, function = STAGES[str(kind)]
    run = getattr(importlib.import_module(f".{module}", __package__), function)
    result: dict[str, Any] = run({key: value for key, value in table.items() if key != "stage"}, file)
    return result


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without what its run's folder tells anyway."""
    return {key: value for key, value in result.items() if key not in ("settings", "fingerprint")}
