"""The losses' level of verify: right ports conform, and every known mistake is named."""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loss_mutants import cases
from support import sampled
from torch_losses import WRONG, TorchPort

from refembed.cli import main
from refembed.conformance import losses as judge
from refembed.conformance.loss_mistakes import MISTAKES, TABLE
from refembed.conformance.losses import answer_of, open_losses, part_of, verify_losses
from refembed.conformance.mutation import replaced
from refembed.conformance.report import as_dict, as_junit, as_text
from refembed.conformance.suite import golden_folder
from refembed.errors import RefembedError

GOLDEN = golden_folder("losses")
SPEC = Path(__file__).parents[2] / "spec"
PORTS = """
from refembed.conformance.losses import answer_of

def right(asked):
    answer = {part: numbers.tolist() for part, numbers in answer_of(asked).items()}
    return {"value": answer.pop("value"), "gradients": answer}
def wrong(asked):
    places = list(range(len(asked["queries"])))  # as if no text were another's
    return right(asked | {"query_texts": places, "positive_texts": places})
def value_only(asked): return {"value": right(asked)["value"]}
def number(asked): return right(asked)["value"]
def tensors(asked):
    import torch
    answer = right(asked)
    slopes = {side: torch.tensor(slope, requires_grad=True) for side, slope in answer["gradients"].items()}
    return {"value": torch.tensor(answer["value"]), "gradients": slopes}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own, with ports in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ports.py").write_text(PORTS)
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def remembered() -> Iterator[None]:
    """What a mistake gives is computed once, for all ports."""
    computed: dict[Any, Any] = {}
    compute = judge.mistaken

    def mistaken(mistake: str, asked: Any, part: str, number: Any = np.complex128) -> Any:
        key = mistake, id(asked), part, number
        if key not in computed:
            computed[key] = asked, compute(mistake, asked, part, number)  # asked is kept, and its id with it
        return computed[key][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "mistaken", mistaken)
        patch.setattr(judge, "open_losses", cache(open_losses))
        yield


class Spoilt(TorchPort):
    """A right port that answers with something else in the end."""

    def __init__(self, spoil: Any) -> None:
        super().__init__()
        self.spoil = spoil

    def loss(self, asked: Mapping[str, Any]) -> Any:
        return self.spoil(super().loss(asked))


# the golden values


@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_the_reference_gives_the_golden_values(number: type) -> None:
    """Wrong if reference and golden/losses have drifted apart."""
    for case in cases():
        found = answer_of(case.asked, number)
        assert set(found) == set(case.answer)
        assert all(case.used(part, found[part]) <= 1 for part in found), case.id


def test_complex_steps_give_the_hand_written_gradients() -> None:
    """Wrong if mistakes' gradients were taken otherwise than the truth's."""
    with replaced({"stop_gradient": np.real}):
        for case in cases():
            for part, true in answer_of(case.asked).items():
                np.testing.assert_allclose(part_of(case.asked, part), true, atol=1e-12 * (1 + np.max(np.abs(true))))


# ports


@pytest.mark.parametrize("number", [torch.float32, torch.float64], ids=str)
def test_a_right_port_conforms(number: torch.dtype) -> None:
    """Wrong if a port in PyTorch, which took no part in it, is refused, or the bounds fit by luck."""
    report = verify_losses(GOLDEN, TorchPort(number))
    assert report.conforms
    assert not report.explanations
    assert report.visible == report.known == len(MISTAKES)
    assert {outcome.level for outcome in report.outcomes} == {"values", "gradients"}
    assert report.used()[0] < 0.5


def test_every_mistake_has_a_wrong_port() -> None:
    """Wrong if a mistake is in the catalogue that nothing was ever told by."""
    assert set(WRONG) == {mistake.id for mistake in MISTAKES}
    assert len(WRONG) == len(TABLE) >= 40


@pytest.mark.parametrize("id", sampled(WRONG))
def test_the_mistake_of_a_port_is_named(id: str) -> None:
    """Wrong if a port in PyTorch with this mistake conforms, or its mistake is taken for another or not known."""
    report = verify_losses(GOLDEN, TorchPort(**WRONG[id]))
    assert not report.conforms
    assert [one.defect.id for one in report.explanations] == [id]
    assert report.first_wrong_stage is not None


def test_an_unknown_mistake_is_not_guessed() -> None:
    """Wrong if something else is called by the name of a known mistake."""
    report = verify_losses(GOLDEN, TorchPort(log=lambda self, x: (1.001 * x).log()))
    assert not report.conforms
    assert not report.explanations
    assert "diagnosis: unknown; no single known mistake gives these numbers" in as_text(report)


def test_two_mistakes_are_named_loss_by_loss() -> None:
    """Wrong if a port with two mistakes is told nothing."""
    port = TorchPort(**WRONG["mask-missing"], **WRONG["matching-cosine"])
    report = verify_losses(GOLDEN, port)
    assert not report.explanations
    assert len(report.hints) == 2
    assert "the contrastive cases alone are those of mask-missing" in as_text(report)
    assert "the matching cases alone are those of matching-cosine" in as_text(report)


def test_gradients_alone_show_what_values_cannot() -> None:
    """Wrong if a mistake that leaves the value right passes, or passes unsaid where gradients are not given."""
    port = TorchPort(**WRONG["hardness-differentiated"])
    outcomes = verify_losses(GOLDEN, port).outcomes
    assert {one.verdict for one in outcomes if one.level == "values"} == {"right"}
    port = Spoilt(lambda answer: {"value": answer["value"]})
    report = verify_losses(GOLDEN, port)
    assert report.conforms
    assert report.visible == report.known - 3  # those that have no other sign
    assert {one.verdict for one in report.outcomes if one.level == "gradients"} == {"not asked"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda answer: answer["value"], "no value, or gradients without their names"),
        (lambda answer: answer | {"gradients": [1.0]}, "no value, or gradients without their names"),
        (lambda answer: {"gradients": answer["gradients"]}, "without 'value'"),
        (lambda answer: answer | {"value": [answer["value"]]}, "a value of shape (1,), () needed"),
        (lambda answer: answer | {"value": "much"}, "something else than numbers"),
        (lambda answer: answer | {"gradients": {"queries": answer["gradients"]["queries"]}}, "without 'positives'"),
        (
            lambda answer: answer | {"gradients": answer["gradients"] | {"queries": [[0.0]]}},
            "gradient of queries of sh",
        ),
    ],
)
def test_a_spoilt_answer_is_said(spoil: Any, said: str) -> None:
    """Wrong if an answer of another form passes, or is not described."""
    report = verify_losses(GOLDEN, Spoilt(spoil))
    assert report.verdict == "could not be verified"
    assert all(said in outcome.said for outcome in report.outcomes)


def test_nan_is_wrong() -> None:
    """Wrong if no number passes for one."""
    report = verify_losses(GOLDEN, Spoilt(lambda answer: answer | {"value": float("nan")}))
    assert {one.verdict for one in report.outcomes if one.level == "values"} == {"wrong"}
    assert json.dumps(as_dict(report), allow_nan=False)


# the command line


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    status = main(["verify", "--level", "losses", *options])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.mark.parametrize("function", ["right", "tensors", "value_only"])
def test_a_right_function_conforms(function: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if a function's answer is refused for the library whose numbers it holds."""
    status, said = run(capsys, "--call", f"ports:{function}")
    assert status == 0, said
    assert "CONFORMS" in said.splitlines()


def test_a_wrong_function_is_diagnosed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if the report leaves out the first wrong thing, the mistake, its evidence or the chapter."""
    status, said = run(capsys, "--call", "ports:wrong", "--json", "out.json", "--junit", "out.xml")
    assert status == 1
    for part in (
        "first wrong stage: contrastive value (case contrastive-same-query)",
        "diagnosis: mask-missing (H): TN is missing",
        "bounds of this mistake's own numbers and",
        "what is right: spec/10-losses.md",
    ):
        assert part in said
    found = json.loads((here / "out.json").read_text())
    assert [one["defect"] for one in found["diagnosis"]] == ["mask-missing"]
    assert (found["suite"], found["verdict"]) == ("losses", "does not conform")
    assert "does not conform" in (here / "out.xml").read_text()


def test_a_command_conforms(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if a program that speaks JSON lines cannot be asked for losses."""
    (here / "program.py").write_text(
        "import json, sys\nfrom ports import right\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    print(json.dumps(right(asked) if asked['call'] == 'loss' else {'name': 'program'}), flush=True)\n"
    )
    status, said = run(capsys, "--command", f"{sys.executable} program.py", "--precision", "float64")
    assert status == 0, said
    assert said.startswith("program against losses")


@pytest.mark.parametrize(
    ("options", "id"),
    [
        (["--call", "ports:number"], None),
        (["--call", "ports:right", "--cases", "nothing-*"], "verify-no-case"),
        (["--call", "ports:right", "--precision", "int8"], "verify-precision"),
        (["--backend", "numpy"], "verify-option"),
        (["--url", "http://127.0.0.1:9"], "verify-option"),
        (["--call", "ports:right", "--levels", "losses,tokens"], "verify-level"),
    ],
)
def test_nothing_verified_is_an_error(options: list[str], id: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if a run that judged nothing ends like one that did."""
    status, said = run(capsys, *options)
    assert status == 2
    assert f"[{id}]" in said if id else "COULD NOT BE VERIFIED" in said


def test_some_cases_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if --cases is not heard."""
    assert "4 cases" in run(capsys, "--call", "ports:right", "--cases", "spread-*")[1]


def test_junit_has_a_test_for_each_case_and_level() -> None:
    """Wrong if a port's own CI would miss a case."""
    xml = as_junit(verify_losses(GOLDEN, TorchPort())).decode()
    assert xml.count("<testcase") == 2 * len(cases())


# a damaged folder


def damaged(here: Path, change: Any) -> Path:
    folder = here / "damaged"
    shutil.copytree(GOLDEN, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("change", "id"),
    [
        (lambda manifest: manifest.update(number_of_cases=25), "golden-count"),
        (lambda manifest: manifest["cases"].pop(), "golden-count"),
        (lambda manifest: manifest["cases"].append(manifest["cases"][0]), "golden-count"),
        (lambda manifest: manifest.update(cases=[], number_of_cases=0), "golden-count"),
        (lambda manifest: manifest["files"]["values.safetensors"].update(sha256="0" * 64), "golden-digest"),
        (lambda manifest: manifest.update(files={}), "golden-unlisted"),
        (lambda manifest: manifest.pop("usual"), "golden-manifest"),
        (lambda manifest: manifest["usual"].pop("alpha"), "golden-case"),
        (lambda manifest: manifest["cases"][0].update(inputs="five"), "golden-case"),
        (lambda manifest: manifest["cases"][0].update(negatives=False), "golden-values"),
        (lambda manifest: manifest["cases"][0].update(value=float("nan")), "golden-values"),
        (lambda manifest: manifest["cases"][0]["bounds"].update(value=0.0), "golden-values"),
        (lambda manifest: manifest["cases"][0]["bounds"].update(gradients=float("inf")), "golden-values"),
    ],
)
def test_a_damaged_folder_is_refused(change: Any, id: str, here: Path) -> None:
    """Wrong if a damaged folder looks like one that a port passes."""
    with pytest.raises(RefembedError) as error:
        verify_losses(damaged(here, change), TorchPort())
    assert error.value.id == id


def test_other_bounds_are_foreign(here: Path) -> None:
    """Wrong if somebody's wider bounds pass for ours."""
    folder = damaged(here, lambda manifest: manifest["cases"][0]["bounds"].update(value=1.0))
    assert "NOT the golden vectors" in as_text(verify_losses(folder, TorchPort()))
    assert "NOT the golden vectors" not in as_text(verify_losses(GOLDEN, TorchPort()))


# the pages


def test_the_question_of_the_protocol_is_what_verify_asks() -> None:
    """Wrong if spec/protocol.md shows a question of another form, another answer to it, or leaves a key undescribed."""
    page = (SPEC / "protocol.md").read_text()
    asked, answer = (json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    assert all(set(asked) == {"call", *case.asked} for case in cases())
    found = answer_of(asked)
    for part, shown in {"value": answer["value"], **answer["gradients"]}.items():
        np.testing.assert_allclose(found.pop(part), shown, atol=1e-7)
    assert not found
    table = page[page.index("| key | what it is |") :].partition("\n\n")[0]
    described = {key for row in table.splitlines() for key in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert described == set(cases()[0].asked)


def test_the_chapter_lists_the_catalogue() -> None:
    """Wrong if spec/10-losses.md lacks a mistake, words it otherwise, or knows one more."""
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| (.*?) \| (.*?) \| ([a-z0-9-]+) \|$", (SPEC / "10-losses.md").read_text(), re.MULTILINE
    )
    assert [row[:3] for row in rows] == [(one.id, one.title, one.effect) for one in MISTAKES]
    for id, _, _, case in rows:
        (shown,) = (one for one in cases() if one.id == case)
        assert any(judge.sees(id, shown, part) for part in shown.answer), f"{case} does not show {id}"
