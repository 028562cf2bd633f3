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
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from refembed.errors import RefembedError

# stage -> its module, its settings' class there, and the function, of the file's tables and the file, that runs it
STAGES = {
    "pretrain": ("adapt", "PretrainSettings", "run_pretrain"),
    "adapt": ("adapt", "AdaptSettings", "run_adapt"),
    "mine": ("mining", "MineSettings", "run_mine"),
    "prefinetune": ("contrastive", "PrefinetuneSettings", "run_prefinetune"),
    "finetune": ("contrastive", "FinetuneSettings", "run_finetune"),
    "mixtures": ("mixtures", "MixturesSettings", "run_mixtures"),
    "soup": ("soup", "SoupSettings", "run_soup"),
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "config", metavar="CONFIG.toml", type=Path, help="a stage's settings, or with --all a recipe's"
    )
    command.add_argument("--all", action="store_true", help="the file is a recipe: run every stage of it, in order")


def run(given: argparse.Namespace) -> int:
    check_libraries()
    from .config import load
    from .distributed import world

    warnings.showwarning = once(warnings.showwarning, world().rank == 0)
    table = load(given.config)
    if given.all:
        from .recipe import run_recipe

        run_recipe(table, given.config)
        return 0
    result = run_stage(table, given.config)
    if world().rank == 0:
        print(json.dumps(summary(result), ensure_ascii=False))
    return 0


def once(show: Callable[..., None], shown: bool) -> Callable[..., None]:
    """To show each warning once: all processes, and all trials of a search, would say the same of the same files."""
    said = set()

    def show_new(message: Warning | str, *others: Any) -> None:
        if shown and str(message) not in said:
            said.add(str(message))
            show(message, *others)

    return show_new


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
    module, _, function = stage_of(table, file)
    result: dict[str, Any] = getattr(module, function)(without_stage(table), file)
    return result


def check_stage(table: Mapping[str, Any], file: Path) -> None:
    """Raise what run_stage would raise for a table that cannot be read, and do nothing else."""
    from .config import read

    module, settings, _ = stage_of(table, file)
    read(getattr(module, settings), without_stage(table), file)


def stage_of(table: Mapping[str, Any], file: Path) -> tuple[ModuleType, str, str]:
    kind = table.get("stage")
    if isinstance(kind, list):
        raise RefembedError("train-config", f"{file} is a recipe of several stages; run it with --all")
    if not isinstance(kind, str) or kind not in STAGES:
        raise RefembedError("train-config", f"{file}: stage is {kind!r}, one of {', '.join(STAGES)} needed")
    module, settings, function = STAGES[kind]
    return importlib.import_module(f".{module}", __package__), settings, function


def without_stage(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != "stage"}


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without what its run's folder tells anyway."""
    return {key: value for key, value in result.items() if key not in ("settings", "fingerprint")}
