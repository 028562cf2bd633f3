"""Stages one after the other: each a table of one TOML file, each building on what earlier ones made."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refembed.errors import RefembedError
from refembed.reference.quantize import FORMS

from .command import STAGES, check_stage, run_stage, summary
from .config import path_of
from .distributed import wait_for_all, world
from .loop import PRODUCT, write_json

DONE = "done.json"
PRODUCTS = {"mixtures": "mixtures.json"}  # of stages whose product is no model folder
NAME = re.compile(r"@([\w-]+)(/.*)?")


def run_recipe(recipe: Mapping[str, Any], file: Path) -> list[dict[str, Any]]:
    """Run all stages of a recipe, in order, leaving out those that have ended. All are read before the first runs.

    recipe   out: a folder; common: tables by kind of stage, which its stages' own tables are laid over; stage: an array
             of tables, each a stage's file with a `name`. "@NAME" is what the stage of that name made, "@NAME/PATH"
             a file of its folder. Every stage runs in out/NAME.

    Raises RefembedError where a stage's table is wrong, stages do not fit together, or one that has ended would now be
    another.
    """
    tables = tables_of(recipe, file)
    for table in tables.values():
        check_stage(table, file)
    return [run_named(table, file, name) for name, table in tables.items()]


def tables_of(recipe: Mapping[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    """Each stage's own file, by its name."""
    if isinstance(recipe.get("stage"), str):
        raise RefembedError("train-recipe", f"{file} is one stage and no recipe; run it without --all")
    for key in recipe:
        if key not in ("out", "common", "stage"):
            raise RefembedError("train-recipe", f"{file}: {key} is not a key of a recipe")
    place, stages = recipe.get("out"), recipe.get("stage")
    tabular = isinstance(stages, list) and all(isinstance(stage, Mapping) for stage in stages)
    if not isinstance(place, str) or not tabular or not stages:
        raise RefembedError("train-recipe", f"{file}: a recipe has out and at least one [[stage]]")
    out, common = path_of(place, file, "out"), common_of(recipe, file)
    made: dict[str, Path] = {}
    tables = {}
    for stage in stages:
        name = stage.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name) or name in made:
            raise RefembedError("train-recipe", f"{file}: each stage has a name of its own; {name!r} is none")
        kind = str(stage.get("stage"))
        own = {key: value for key, value in stage.items() if key != "name"}
        table = resolve(laid_over(common.get(kind, {}), own), made, file, name)
        where = table if kind in WITHOUT_RUN and "run" not in table else table.setdefault("run", {})
        if isinstance(where, dict):
            where["out"] = str(out / name)
        tables[name] = table
        made[name] = out / name / PRODUCTS.get(kind, PRODUCT)
    return tables


def common_of(recipe: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    common = recipe.get("common", {})
    if not isinstance(common, Mapping) or not all(isinstance(table, Mapping) for table in common.values()):
        raise RefembedError("train-recipe", f"{file}: common has a table for each kind of stage")
    for kind in common:
        if kind not in STAGES:
            raise RefembedError("train-recipe", f"{file}: common.{kind}: the stages are {', '.join(STAGES)}")
    return common


def run_named(table: dict[str, Any], file: Path, name: str) -> dict[str, Any]:
    """One stage in its folder, unless it has ended there."""
    folder = Path(table["run"]["out"] if "run" in table else table["out"])
    mark = fingerprint(table)
    found = json.loads((folder / DONE).read_bytes()) if (folder / DONE).exists() else None
    if found and found["fingerprint"] != mark:
        raise RefembedError(
            "train-recipe",
            f"{file}: stage {name} has ended in {folder} with other settings; remove that, or change out",
        )
    if found is None:
        tell(f"{name}: {table['stage']}")
        found = {"fingerprint": mark, "stage": table["stage"], **summary(run_stage(table, file))}
        if world().rank == 0:
            write_json(folder / DONE, found)
        wait_for_all()
    tell(f"{name}: {json.dumps(brief(summary(found)), ensure_ascii=False)}")
    return found


def brief(value: Any) -> Any:
    """A result for the eye: without the figures of single sets, which stand in done.json, and of few digits."""
    if isinstance(value, Mapping):
        return {key: brief(item) for key, item in value.items() if " " not in key or key.split()[-1] in FORMS}
    if isinstance(value, list):
        return [brief(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


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
    text = json.dumps(table, sort_keys=True, ensure_ascii=False)
    paths = sorted(set(re.findall(r'"(/[^"]*)"', text)))
    marks = [mark for path in paths for folder in Path(path).parents if (mark := mark_of(folder))]
    return hashlib.sha256(json.dumps([text, marks]).encode()).hexdigest()


def mark_of(folder: Path) -> str | None:
    """A stage's that has ended there."""
    try:
        return str(json.loads((folder / DONE).read_bytes())["fingerprint"])
    except (OSError, ValueError, LookupError, TypeError):  # a folder of something else
        return None


def tell(line: str) -> None:
    if world().rank == 0:
        print(f"refembed train: {line}", file=sys.stderr, flush=True)
