"""Stages one after the other: each a table of one TOML file, each building on what earlier ones made."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refembed.errors import RefembedError
from refembed.output import whole_file

from .command import run_stage, summary
from .distributed import wait_for_all, world
from .loop import PRODUCT

DONE = "done.json"
PRODUCTS = {"mixtures": "mixtures.json"}  # of stages whose product is no model folder
NAME = re.compile(r"@([\w-]+)(/.*)?")


def run_recipe(recipe: Mapping[str, Any], file: Path) -> list[dict[str, Any]]:
    """Run all stages of a recipe, in order, leaving out those that have ended.

    recipe   out: a folder; common: tables by kind of stage, which its stages' own tables are laid over; stage: an array
             of tables, each a stage's file with a `name`. "@NAME" is what the stage of that name made, "@NAME/PATH"
             a file of its folder. Every stage runs in out/NAME.

    Raises RefembedError where stages do not fit together, or one that has ended would now be another.
    """
    unknown = sorted(set(recipe) - {"out", "common", "stage"})
    stages = recipe.get("stage")
    if unknown or not isinstance(recipe.get("out"), str) or not isinstance(stages, list) or not stages:
        what = f"{unknown[0]} is not a key of a recipe" if unknown else "a recipe has out and at least one [[stage]]"
        raise RefembedError("train-recipe", f"{file}: {what}")
    out = (file.parent / Path(recipe["out"]).expanduser()).absolute()
    made: dict[str, Path] = {}
    results = []
    for stage in stages:
        name = stage.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name) or name in made:
            raise RefembedError("train-recipe", f"{file}: each stage has a name of its own; {name!r} is none")
        kind = str(stage.get("stage"))
        own = {key: value for key, value in stage.items() if key != "name"}
        table = resolve(laid_over(recipe.get("common", {}).get(kind, {}), own), made, file, name)
        results.append(run_named(table, file, out / name, name))
        made[name] = out / name / PRODUCTS.get(kind, PRODUCT)
    return results


def run_named(table: dict[str, Any], file: Path, folder: Path, name: str) -> dict[str, Any]:
    """One stage in its folder, unless it has ended there."""
    if "run" in table or table.get("stage") not in WITHOUT_RUN:
        table["run"] = {**table.get("run", {}), "out": str(folder)}
    else:
        table["out"] = str(folder)
    mark = fingerprint(table)
    found = json.loads((folder / DONE).read_text()) if (folder / DONE).exists() else None
    if found and found["fingerprint"] != mark:
        raise RefembedError(
            "train-recipe",
            f"{file}: stage {name} has ended in {folder} with other settings; remove that, or change out",
        )
    if found is None:
        tell(f"{name}: {table['stage']}")
        found = {"fingerprint": mark, "stage": table["stage"], **summary(run_stage(table, file))}
        if world().rank == 0:
            with whole_file(folder / DONE) as handle:
                handle.write((json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
        wait_for_all()
    tell(f"{name}: {json.dumps(summary(found), ensure_ascii=False)}")
    return found


WITHOUT_RUN = ("soup", "mine")  # stages that take `out` itself


def laid_over(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's table over what all of its kind have in common, table by table."""
    merged = dict(common)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = laid_over(merged[key], value) if both else value
    return merged


def resolve(value: Any, made: Mapping[str, Path], file: Path, name: str) -> Any:
    """A table with every "@NAME" replaced by the path of what that stage made."""
    if isinstance(value, Mapping):
        return {key: resolve(item, made, file, name) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, made, file, name) for item in value]
    found = NAME.fullmatch(value) if isinstance(value, str) else None
    if not found:
        return value
    if found[1] not in made:
        raise RefembedError("train-recipe", f"{file}: stage {name} names {value}, and no stage before it has that name")
    return str(made[found[1]].parent / found[2][1:] if found[2] else made[found[1]])


def fingerprint(table: Mapping[str, Any]) -> str:
    """What tells a stage from another: its settings, and through the marks beside them the stages it builds on."""
    text = json.dumps(table, sort_keys=True)
    marks = [
        json.loads(done.read_text())["fingerprint"]
        for path in sorted(set(re.findall(r'"(/[^"]*)"', text)))
        for done in (Path(path).parent / DONE,)
        if done.exists()
    ]
    return hashlib.sha256(json.dumps([text, marks]).encode()).hexdigest()


def tell(line: str) -> None:
    if world().rank == 0:
        print(f"refembed train: {line}", file=sys.stderr, flush=True)
