"""The gradients' level of verify: right ports conform, wrong ones do not, and golden/gradients sees every line."""

import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refembed_torch.model import TorchModel, load_model

from refembed.cli import main
from refembed.conformance import gradients as judge
from refembed.conformance.gradients import verify_gradients
from refembed.conformance.report import as_dict, as_junit, as_text
from refembed.conformance.suite import golden_folder
from refembed.errors import RefembedError
from refembed.reference.pooling import POOLERS

GOLDEN = golden_folder("gradients")
SPEC = Path(__file__).parents[2] / "spec"
PORTS = """
import json

def right(asked):
    assert [len(ids) for ids in asked["ids"]] == [10, 10] and len(asked["upstream"]) == len(asked["texts"]) == 2
    return {"gradients": json.load(open("answers.json"))[asked["pooler"]]}
def tensors(asked):
    import torch
    right_ones = right(asked)["gradients"].items()
    return {"gradients": {name: [torch.tensor(one, requires_grad=True) for one in pair] for name, pair in right_ones}}
def half(asked): return {"gradients": {name: [a / 2, b / 2] for name, (a, b) in right(asked)["gradients"].items()}}
def number(asked): return 1.0
"""
Answer = dict[str, torch.Tensor]


open_gradients = cache(judge.open_gradients)


def answer_of(asked: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Answer:
    """By PyTorch's module and autograd, which took no part in the golden numbers."""
    twin = load_model(golden_folder("twin") / "checkpoint")
    model = TorchModel(replace(twin.config, pooler=asked["pooler"])).to(dtype)
    model.load_state_dict(twin.state_dict() | {name: torch.tensor(one) for name, one in asked["parameters"].items()})
    model.dtype = dtype
    vectors = torch.nn.functional.normalize(model([torch.tensor(ids) for ids in asked["ids"]]))
    (vectors * torch.tensor(asked["upstream"], dtype=dtype)).sum().backward()
    gradients = {name: one.grad.double() for name, one in model.named_parameters()}
    return {
        name: torch.stack([one.norm(), one.flatten() @ torch.arange(one.numel()).double().cos()])
        for name, one in gradients.items()
    }


class Spoilt:
    """A right port that answers with something else in the end."""

    name = "spoilt"

    def __init__(self, spoil: Any, dtype: torch.dtype = torch.float32) -> None:
        self.spoil, self.dtype = spoil, dtype

    def gradients(self, asked: Mapping[str, Any]) -> Any:
        return self.spoil(dict(golden_answer(asked["pooler"], self.dtype)))


@cache
def golden_answer(pooler: str, dtype: torch.dtype = torch.float32) -> Answer:
    (asked,) = (case.asked for case in open_gradients(GOLDEN)[1] if case.asked["pooler"] == pooler)
    return answer_of(asked, dtype)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own, with ports in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "open_gradients", open_gradients)
    (tmp_path / "ports.py").write_text(PORTS)
    answers = {
        pooler: {name: pair.tolist() for name, pair in golden_answer(pooler).items()} for pooler in sorted(POOLERS)
    }
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    return tmp_path


# ports


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_right_port_conforms(dtype: torch.dtype) -> None:
    """Wrong if a port in PyTorch, which took no part in it, is refused, or the bound fits by luck."""
    report = verify_gradients(GOLDEN, Spoilt(lambda answer: {"gradients": answer}, dtype))
    assert report.conforms
    assert len(report.outcomes) == len(POOLERS)
    assert report.used()[0] < 0.5
    assert "known mistakes" not in as_text(report), "none is told by gradients"


def test_the_first_wrong_parameter_on_the_way_back_is_named() -> None:
    """Wrong if somebody who looks for a mistake is sent to a parameter that only suffers from it."""

    def spoil(answer: Answer) -> Any:
        for name in ("embed_tokens.weight", "layers.2.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"):
            answer[name] = answer[name] * torch.tensor([1.0, 1.001])
        return {"gradients": answer}

    report = verify_gradients(GOLDEN, Spoilt(spoil), ["two-texts"])
    assert report.first_wrong_stage == ("layers.2.mlp.up_proj.weight", "two-texts")
    (outcome,) = report.outcomes
    assert "the first on the way back of 3 that are wrong" in outcome.said
    assert "every gradient" not in outcome.said
    assert "DOES NOT CONFORM" in as_text(report)
    assert json.dumps(as_dict(report), allow_nan=False)
    assert as_junit(report).count(b"<testcase") == 1


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("row", range(0, 85, 9))
def test_every_number_counts(row: int, part: int) -> None:
    """Wrong if a parameter's length or product could be off by two bounds and pass."""
    *_, case = open_gradients(GOLDEN)[1]
    assert len(case.true) == 82 + 3, "the attention pooler's own"
    found = case.true
    found[row, part] += 2 * case.bound * found[row, 0]
    assert [int(place) for place in np.flatnonzero(case.used(found) > 1)] == [row]


def test_a_factor_of_all_is_said() -> None:
    """Wrong if the mean over texts in place of the sum is shown as 82 mistakes and nothing else."""
    report = verify_gradients(GOLDEN, Spoilt(lambda answer: {"gradients": {k: v / 2 for k, v in answer.items()}}))
    assert report.outcomes[0].said.endswith("every gradient is 0.5 times the right one")


@pytest.mark.parametrize(
    ("spoil", "verdict", "said"),
    [
        (lambda answer: 1.0, "could not be verified", "no gradients by the parameters' names"),
        (lambda answer: {"gradients": [1.0]}, "could not be verified", "no gradients by the parameters' names"),
        (lambda answer: answer, "could not be verified", "without 'gradients'"),
        (lambda answer: {"gradients": {"norm.weight": [1, 2]}}, "could not be verified", "without 'embed_tokens.we"),
        (lambda answer: {"gradients": answer | {"norm.weight": [1.0]}}, "could not be verified", "shape (1,) for norm"),
        (lambda answer: {"gradients": answer | {"norm.weight": "ab"}}, "could not be verified", "else than numbers"),
        (
            lambda answer: {"gradients": answer | {"norm.weight": [float("nan")] * 2}},
            "does not conform",
            "norm.weight is nan",
        ),
        (lambda answer: {"gradients": answer | {"more": [1.0, 2.0]}}, "conforms", ""),
    ],
)
def test_a_spoilt_answer_is_said(spoil: Any, verdict: str, said: str) -> None:
    """Wrong if an answer of another form, or no number, passes or is not described."""
    report = verify_gradients(GOLDEN, Spoilt(spoil))
    assert report.verdict == verdict
    assert said in report.outcomes[0].said


# the command line


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    status = main(["verify", "--level", "gradients", *options])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.mark.parametrize(
    ("function", "status", "says"),
    [
        ("right", 0, "\nCONFORMS"),
        ("tensors", 0, "\nCONFORMS"),
        ("half", 1, "first wrong stage: 3_Dense.linear.weight (case two-texts)"),
        ("number", 2, "COULD NOT BE VERIFIED"),
    ],
)
def test_a_function(function: str, status: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if a Python function cannot be asked, or its answer is judged otherwise than it is."""
    ended, said = run(capsys, "--call", f"ports:{function}")
    assert ended == status, said
    assert says in said


def test_a_command_conforms(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if a program that speaks JSON lines cannot be asked for gradients."""
    (here / "program.py").write_text(
        "import json, sys\nfrom ports import right\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    answer = right(asked) if asked['call'] == 'gradients' else {'name': 'program'}\n"
        "    print(json.dumps(answer), flush=True)\n"
    )
    status, said = run(capsys, "--command", f"{sys.executable} program.py", "--precision", "float64")
    assert status == 0, said
    assert said.startswith("program against gradients")


@pytest.mark.parametrize(
    ("options", "id"),
    [
        (["--call", "ports:right", "--cases", "nothing-*"], "verify-no-case"),
        (["--call", "ports:right", "--precision", "int8"], "verify-precision"),
        (["--backend", "numpy"], "verify-option"),
        (["--call", "ports:right", "--levels", "gradients,losses"], "verify-level"),
    ],
)
def test_nothing_verified_is_an_error(options: list[str], id: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if a run that judged nothing ends like one that did."""
    status, said = run(capsys, *options)
    assert status == 2
    assert f"[{id}]" in said


@pytest.mark.parametrize(
    ("suite", "case", "part"), [("gradients", "two-texts", "norm.weight"), ("losses", "total", "value")]
)
def test_golden_shows_question_and_answer(suite: str, case: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if the only way to see what verify asks, and what is right, is to read the files."""
    assert main(["golden", "list", suite]) == main(["golden", "show", suite, case]) == 0
    *listed, asked, answer = capsys.readouterr().out.splitlines()
    assert case in {line.split()[0] for line in listed}
    assert set(json.loads(asked)) == {"case", "asked"}
    assert part in json.loads(answer)["answer"]
    assert main(["golden", "inputs", suite]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if json.loads(line)["case"] == case)
    assert json.loads(line) == {"case": case, **json.loads(asked)["asked"]}
    assert main(["golden", "show", suite, "nothing"]) == 2


# a damaged folder


@pytest.mark.parametrize(
    ("change", "id"),
    [
        (lambda manifest: manifest.update(number_of_cases=2), "golden-count"),
        (lambda manifest: manifest["cases"][1].update(pooler="median"), "golden-case"),
        (lambda manifest: manifest["cases"][3].update(parameters=["pooling.query"]), "golden-case"),
        (lambda manifest: manifest.update(cases=[], number_of_cases=0), "golden-count"),
        (lambda manifest: manifest["files"]["values.safetensors"].update(sha256="0" * 64), "golden-digest"),
        (lambda manifest: manifest.update(files={}), "golden-unlisted"),
        (lambda manifest: manifest.update(checkpoint="0" * 64), "golden-case"),
        (lambda manifest: manifest.pop("checkpoint"), "golden-manifest"),
        (lambda manifest: manifest["cases"][0].update(texts=["no-such-case"]), "golden-case"),
        (lambda manifest: manifest["cases"][0].update(id="other"), "golden-case"),
        (lambda manifest: manifest["cases"][0].update(bound=0.0), "golden-values"),
        (lambda manifest: manifest["cases"][0].update(bound=1.0), "golden-values"),
    ],
)
def test_a_damaged_folder_is_refused(change: Any, id: str, here: Path) -> None:
    """Wrong if a damaged folder looks like one that a port passes."""
    folder = shutil.copytree(GOLDEN, here / "damaged")
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RefembedError) as error:
        verify_gradients(folder, Spoilt(lambda answer: {"gradients": answer}))
    assert error.value.id == id


def test_the_table_of_the_protocol_is_what_verify_asks() -> None:
    """Wrong if spec/protocol.md leaves out what a port is given, or tells of something it is not."""
    page = (SPEC / "protocol.md").read_text()
    table = page[page.index("| asked | what it is |") :].partition("\n\n")[0]
    described = {key for row in table.splitlines() for key in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert described == set(open_gradients(GOLDEN)[1][0].asked)
