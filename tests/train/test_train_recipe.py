"""Recipes: stages in order, each on what earlier ones made, and only what is needed runs again."""

import json
import sys
import warnings
from pathlib import Path

import pytest
from refembed_torch.train import command, config, distributed, recipe

from refembed.cli import main
from refembed.errors import RefembedError

RECIPES = Path(__file__).parents[2] / "spec" / "recipes"


@pytest.fixture
def ran(monkeypatch):
    """The tables of the stages that ran; running one writes a file where its product would be."""
    tables = []

    def run(table, file):
        tables.append(table)
        out = Path(table["run"]["out"] if "run" in table else table["out"])
        out.mkdir(parents=True, exist_ok=True)
        (out / "model").mkdir(exist_ok=True)
        return {"steps": len(tables), "settings": "long", "fingerprint": "x"}

    monkeypatch.setattr(recipe, "run_stage", run)
    monkeypatch.setattr(recipe, "check_stage", lambda table, file: None)
    return tables


def stages(*more):
    return {
        "out": "runs",
        "common": {"finetune": {"run": {"steps": 5, "seed": 1}, "optimizer": {"learning_rate": 1.0}}},
        "stage": [
            {"name": "first", "stage": "finetune", "model": {"folder": "start"}},
            {"name": "second", "stage": "finetune", "model": {"folder": "@first"}, "run": {"steps": 7}},
            {"name": "whole", "stage": "soup", "folders": ["@first", "@second"], "log": "@first/log.jsonl"},
            *more,
        ],
    }


def test_stages_build_on_each_other(tmp_path, ran):
    """Wrong if a stage started from anything but what it names, or took another's settings."""
    recipe.run_recipe(stages(), tmp_path / "recipe.toml")
    out = tmp_path / "runs"
    assert [table.get("run", {}).get("out", table.get("out")) for table in ran] == [
        str(out / name) for name in ("first", "second", "whole")
    ]
    assert ran[1]["model"]["folder"] == str(out / "first" / "model")
    assert ran[0]["model"]["folder"] == "start"
    assert ran[1]["run"] == {"steps": 7, "seed": 1, "out": str(out / "second")}
    assert ran[1]["optimizer"] == {"learning_rate": 1.0}
    assert ran[2]["folders"] == [str(out / "first" / "model"), str(out / "second" / "model")]
    assert ran[2]["log"] == str(out / "first" / "log.jsonl")
    assert "run" not in ran[2]


def test_what_has_ended_is_left_alone(tmp_path, ran):
    """If this failed, going on with a recipe would train everything again, or skip what is new."""
    recipe.run_recipe(stages(), tmp_path / "recipe.toml")
    found = recipe.run_recipe(stages({"name": "more", "stage": "soup"}), tmp_path / "recipe.toml")
    assert len(ran) == 4
    assert ran[3]["out"].endswith("more")
    assert [one["steps"] for one in found] == [1, 2, 3, 4]
    assert "settings" not in found[0]


@pytest.mark.parametrize(("folder", "product"), [("runs", "@first"), ("Läufe", "@first"), ("runs", "@first/a/b/c")])
def test_an_earlier_stage_made_anew_is_not_overlooked(tmp_path, ran, folder, product):
    """If this failed, a soup of old parts would pass for one of the new; or a file of somebody else's, who calls it the
    same, end the recipe.
    """
    (tmp_path / "done.json").write_text("[]")
    whole = stages() | {"out": folder}
    whole["stage"][1]["model"]["folder"] = product
    recipe.run_recipe(whole, tmp_path / "recipe.toml")
    changed = json.loads(json.dumps(whole))
    changed["stage"][0]["model"]["folder"] = "other"
    with pytest.raises(RefembedError, match=r"first has ended .* with other settings"):
        recipe.run_recipe(changed, tmp_path / "recipe.toml")
    (tmp_path / folder / "first" / "done.json").unlink()
    with pytest.raises(RefembedError, match=r"second has ended .* with other settings"):
        recipe.run_recipe(changed, tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"out": None}, "a recipe has out and at least one"),
        ({"stage": []}, "a recipe has out and at least one"),
        ({"stages": []}, "stages is not a key of a recipe"),
        ({"stage": [{"stage": "soup"}]}, "each stage has a name of its own; None is none"),
        ({"stage": [{"name": "a/b", "stage": "soup"}]}, "each stage has a name of its own"),
        ({"stage": [{"name": "a", "stage": "soup"}] * 2}, "each stage has a name of its own"),
        ({"stage": ["soup"]}, "a recipe has out and at least one"),
        ({"stage": "soup", "run": {}}, "is one stage and no recipe; run it without --all"),
        (
            {"stage": [{"name": "a", "stage": "soup"}, {"name": "b", "stage": "soup", "folders": ["@later"]}]},
            "stage b names @later, and no stage before",
        ),
        ({"common": {"finetun": {}}}, "common.finetun: the stages are pretrain, adapt"),
        ({"common": {"finetune": 1}}, "common has a table for each kind of stage"),
    ],
)
def test_a_wrong_recipe_is_named(tmp_path, ran, changed, said):
    """If this failed, a slip would be found hours into a chain, or never."""
    table = {key: value for key, value in {**stages(), **changed}.items() if value is not None}
    with pytest.raises(RefembedError, match=said) as caught:
        recipe.run_recipe(table, tmp_path / "recipe.toml")
    assert caught.value.id == "train-recipe"
    assert not ran


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"stage": "soupe"}, "stage is 'soupe', one of pretrain"), ({"weight": [1]}, "weight is not a key of this table")],
)
def test_all_stages_are_read_first(tmp_path, monkeypatch, wrong, said):
    """If this failed, a slip in the last stage's settings would be found when all others have run."""
    soup = {"name": "a", "stage": "soup", "folders": ["b", "c"]}
    monkeypatch.setattr(recipe, "run_stage", lambda table, file: pytest.fail("a stage ran"))
    with pytest.raises(RefembedError, match=said):
        recipe.run_recipe({"out": "runs", "stage": [soup, soup | {"name": "d"} | wrong]}, tmp_path / "recipe.toml")


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.toml")), ids=lambda file: file.stem)
def test_recipes_that_are_shown_can_be_read(file, monkeypatch):
    """If this failed, a recipe of the specification would name a key, a stage or a value that there is not."""
    for name in ("REFEMBED_DATA", "REFEMBED_DEFAULT", "EMBEDDINGGEMMA_DIR"):
        monkeypatch.setenv(name, "/somewhere")
    tables = recipe.tables_of(config.load(file), file)
    for table in tables.values():
        command.check_stage(table, file)
    assert tables


def test_where_it_runs(tmp_path, ran, monkeypatch):
    """Wrong if a variable in the recipe's folder were taken for a name, as it is not in any other path."""
    monkeypatch.setenv("PLACE", str(tmp_path / "place"))
    recipe.run_recipe(stages() | {"out": "$PLACE/runs"}, tmp_path / "recipe.toml")
    assert ran[0]["run"]["out"] == str(tmp_path / "place" / "runs" / "first")


@pytest.mark.parametrize("name", ["torch", "matplotlib"])
def test_a_library_that_is_not_there(tmp_path, monkeypatch, name):
    """If this failed, a light install would answer `refembed train` with a traceback."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RefembedError, match=rf"training needs {name}.*pip install") as caught:
        command.check_libraries()
    assert caught.value.id == "train-missing"


def test_the_command(tmp_path, capsys, monkeypatch):
    """Wrong if refembed train did not hand its tables to the stage and print what it says."""
    file = tmp_path / "soup.toml"
    file.write_text('stage = "soup"\nout = "x"\n')
    monkeypatch.setitem(command.STAGES, "soup", ("recipe", "", "made_up"))
    monkeypatch.setattr(
        recipe, "made_up", lambda table, file: {"table": table, "settings": 1, "at": str(file)}, raising=False
    )
    assert main(["train", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == {"table": {"out": "x"}, "at": str(file)}
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world", lambda: distributed.World(1, 2, "cpu"))
        assert main(["train", str(file)]) == 0
    assert capsys.readouterr().out == ""  # the first process has said it
    file.write_text('stage = "bake"\n')
    assert main(["train", str(file)]) == 2
    assert "stage is 'bake', one of pretrain, adapt" in capsys.readouterr().err
    file.write_text('[[stage]]\nstage = "soup"\n')
    assert main(["train", str(file)]) == 2
    assert "is a recipe of several stages; run it with --all" in capsys.readouterr().err


def test_what_is_told_of_a_stage(tmp_path, ran, capsys, monkeypatch):
    """Wrong if a stage's means drown in the figures of single sets, or these are lost."""
    figures = {"loss": 1.23456, "loss int4-block": 2.0, "loss some_set": 3.0}
    result = {"steps": 5, "held_out": {"before": figures, "parts": [figures]}, "settings": "long"}
    monkeypatch.setattr(recipe, "run_stage", lambda table, file: ran.append(table) or result)
    monkeypatch.setattr(recipe, "write_json", lambda file, content: ran.append(content))
    recipe.run_recipe({"out": "runs", "stage": [{"name": "a", "stage": "soup"}]}, tmp_path / "recipe.toml")
    line = capsys.readouterr().err.splitlines()[-1].removeprefix("refembed train: a: ")
    short = {"loss": 1.235, "loss int4-block": 2.0}
    assert json.loads(line) == {"stage": "soup", "steps": 5, "held_out": {"before": short, "parts": [short]}}
    assert ran[-1]["held_out"] == result["held_out"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_warning_is_given_once(tmp_path, capsys, monkeypatch, rank):
    """If this failed, each process and each trial of a search would say anew what is wrong with the same files."""
    file = tmp_path / "soup.toml"
    file.write_text('stage = "soup"\n')

    def warning(table, file):
        for _ in range(3):
            with warnings.catch_warnings():  # as libraries do, after which Python forgets what it has shown
                pass
            warnings.warn(f"3 lines of {tmp_path} are malformed", stacklevel=1)
        return {}

    monkeypatch.setitem(command.STAGES, "soup", ("recipe", "", "made_up"))
    monkeypatch.setattr(recipe, "made_up", warning, raising=False)
    monkeypatch.setattr(distributed, "world", lambda: distributed.World(rank, 2, "cpu"))
    assert main(["train", str(file)]) == 0
    assert capsys.readouterr().err.count("are malformed") == 1 - rank
