"""What is printed and written of a verdict: text, JSON, JUnit XML, what changed since the last run, exit statuses."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from mutants import MutantPort, twin
from safetensors.numpy import save_file

from refembed.cli import build_parser, main
from refembed.conformance.defects import DEFECTS
from refembed.conformance.mutation import Mutation
from refembed.conformance.port import CallablePort
from refembed.conformance.report import as_dict, as_json, as_junit, as_text
from refembed.conformance.suite import golden_folder, open_suite
from refembed.conformance.verify import LEVELS, Report, verify

CAUSAL = next(defect for defect in DEFECTS if defect.id == "causal")
VERDICTS = {"right", "wrong", "failed", "not asked"}
HEAD = {
    "format": int, "refembed": str, "port": str, "suite": str, "golden": str, "golden_shipped": bool,
    "model_digest": str, "known_mistakes_visible": int, "known_mistakes_visible_with_prompts": int,
    "known_mistakes": int, "precision": str, "number_of_cases": int, "conforms": bool, "verdict": str,
    "allowed_error_used": (dict, type(None)), "first_wrong_stage": (dict, type(None)), "diagnosis": list,
    "hints": list, "outcomes": list,
}  # fmt: skip
OUTCOME = {
    "level": str, "case": str, "verdict": str, "used": (float, type(None)), "said": str, "stage": (str, type(None)),
    "law": (str, type(None)),
}  # fmt: skip
DIAGNOSIS = {
    "defect": str, "title": str, "to_defect": (float, type(None)), "to_truth": (float, type(None)), "cases": list,
    "foretold": float, "chapter": str,
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def awkward(text: str) -> Any:
    raise ValueError('<tag> & "quotes" \x00 \x1b[31m \ud800 ]]>')


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    """A right port; one with a known mistake; one with NaN; one that fails with awkward words."""
    nan = MutantPort(after=lambda vectors: vectors * np.nan)
    failing = CallablePort(lambda texts: np.zeros((len(texts), 48)), trace=awkward, name="<a> & \x00 \ud800")
    return {
        "right": verify(twin(), MutantPort(traces=True)),
        "causal": verify(twin(), MutantPort(CAUSAL.mutation, traces=True)),
        "nan": verify(twin(), nan),
        "failing": verify(twin(), failing),
    }


WHICH = pytest.mark.parametrize("which", ["right", "causal", "nan", "failing"])


def vectors_file(name: str, mutation: Mutation | None = None) -> str:
    port = MutantPort(mutation) if mutation else MutantPort()
    kept = {f"{case.id}/embedding": np.ascontiguousarray(port.embed(case, case.prompted)) for case in twin().cases}
    save_file(kept, name)
    return name


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The id of the one line on standard error, with nothing on standard output."""
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    return err.rstrip().rpartition("[")[2].rstrip("]")


def check_keys(found: dict[str, Any], needed: dict[str, Any]) -> None:
    assert set(found) == set(needed)
    for key, kind in needed.items():
        assert isinstance(found[key], kind), (key, found[key])


# ------------------------------------------------------------------------------------------------------------ the forms
@WHICH
def test_json_is_whole_and_plain(reports, which):
    """Wrong if conformance.json cannot be read by a strict reader, lacks a key, or says something else than the run."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    report = reports[which]
    read = json.loads(as_json(report).decode("utf-8"), parse_constant=refuse)
    assert read == as_dict(report)
    check_keys(read, HEAD)
    for one in read["outcomes"]:
        check_keys(one, OUTCOME)
        assert one["verdict"] in VERDICTS
        assert one["level"] in LEVELS
        assert one["said"].isprintable()
    for one in read["diagnosis"]:
        check_keys(one, DIAGNOSIS)
    assert read["conforms"] == (which == "right")
    assert read["number_of_cases"] == len(twin().cases) == 72
    manifest = (twin().folder / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest().startswith(read["golden"])
    assert len(read["golden"]) == 12
    assert read["known_mistakes"] == len(DEFECTS)
    whole, prompts = (2, 10) if which == "failing" else (0, 0)  # it neither shortens vectors nor puts prompts
    assert read["known_mistakes_visible_with_prompts"] == len(DEFECTS) - whole
    assert read["known_mistakes_visible"] == len(DEFECTS) - whole - prompts
    assert read["golden_shipped"] is True
    assert read["model_digest"] == twin().manifest["model"]["digest"]


@WHICH
def test_junit_counts_are_right(reports, which):
    """Wrong if a port's own CI cannot read the XML, or counts other failures than there were."""
    report = reports[which]
    suite = ElementTree.fromstring(as_junit(report))
    assert suite.tag == "testsuite"
    counted = Counter(outcome.verdict for outcome in report.outcomes)
    found = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    assert found == {
        "tests": len(report.outcomes),
        "failures": counted["wrong"],
        "errors": counted["failed"],
        "skipped": counted["not asked"],
    }
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert len(suite.findall(f"testcase/{tag}")) == found[key]
    names = [(one.attrib["classname"], one.attrib["name"]) for one in suite.findall("testcase")]
    assert len(set(names)) == len(names) == found["tests"]


def test_text_of_a_right_port(reports):
    """Wrong if a right port's author is not told so, or not how much of the allowed error was used."""
    text = as_text(reports["right"])
    assert text.endswith("\nCONFORMS")
    share, case = reports["right"].used()
    assert f"at most {100 * share:.0f} % ({case})" in text
    assert "  laws     12 right" in text


def test_text_of_a_known_mistake(reports):
    """Wrong if the report lacks the name, the evidence, what users see, or where to read on; or goes on for pages."""
    text = as_text(reports["causal"])
    assert "DOES NOT CONFORM" in text
    assert "diagnosis: causal (A1): attention is causal in every layer" in text
    assert "first wrong stage: layer.00.attention.weights" in text or "first wrong stage: layer.00" in text
    for part in (CAUSAL.effect, CAUSAL.reported, f"spec/{CAUSAL.chapter}", "bounds of this mistake's own vectors"):
        assert part in text
    assert "more (--json FILE has them all)" in text
    assert len(text.splitlines()) < 40


def test_verdict_is_told_apart_from_no_verdict(here):
    """Wrong if a program that reads conformance.json takes a port that never answered for one that is wrong."""
    silent = CallablePort(lambda texts: None)
    found = {
        which: json.loads(as_json(verify(twin(), port, levels=["vectors"], cases=["prompt-*"])))
        for which, port in {"right": MutantPort(), "wrong": MutantPort(CAUSAL.mutation), "silent": silent}.items()
    }
    words = {"right": "conforms", "wrong": "does not conform", "silent": "could not be verified"}
    assert {which: one["verdict"] for which, one in found.items()} == words
    assert [found[which]["conforms"] for which in words] == [True, False, False]
    assert found["silent"]["allowed_error_used"] is None


def test_allowed_error_is_that_of_vectors_and_stages(reports):
    """Wrong if a share of the bound is told where no number was compared with one, or a law's counts as an answer's."""
    port = CallablePort(lambda texts: np.full((len(texts), 48), 48**-0.5), tokenize=lambda texts: [])
    report = verify(twin(), port, levels=["tokens", "laws"])
    assert {outcome.verdict for outcome in report.outcomes if outcome.level == "laws"} == {"right"}
    assert report.used() == (0.0, "")
    assert "allowed error used" not in as_text(report)
    shares = [o.used for o in reports["right"].outcomes if o.level in ("vectors", "prompts", "stages") and o.used]
    assert reports["right"].used()[0] == max(shares)


def test_junit_says_the_verdict_and_the_diagnosis(reports):
    """Wrong if somebody who reads the XML alone is not told which mistake it is."""
    suite = ElementTree.fromstring(as_junit(reports["causal"]))
    properties = {one.attrib["name"]: one.attrib["value"] for one in suite.findall("properties/property")}
    assert (properties["verdict"], properties["diagnosis"]) == ("does not conform", "causal")
    assert "diagnosis: causal (A1)" in (suite.findtext("system-out") or "")
    suite = ElementTree.fromstring(as_junit(reports["right"]))
    properties = {one.attrib["name"]: one.attrib["value"] for one in suite.findall("properties/property")}
    assert (properties["verdict"], properties["diagnosis"]) == ("conforms", "none")
    assert suite.findtext("system-out") == "CONFORMS"


def test_same_sentence_is_said_once():
    """Wrong if what differs is buried among lines that say the same of one case after another."""
    port = CallablePort(lambda texts: 1 / 0 if len(texts) == 1 else [[0.1] * 47] * len(texts))
    lines = as_text(verify(twin(), port, levels=["vectors"])).splitlines()
    (single,) = [line for line in lines if "raised ZeroDivisionError" in line]
    assert single.startswith("  vectors prompt-query and 67 others: the port raised ZeroDivisionError")
    assert sum("vectors of 47 numbers" in line for line in lines) == 1


def test_single_case_is_no_cases():
    """Wrong if a report says "1 cases"."""
    text = as_text(verify(twin(), MutantPort(), cases=["text-empty"]))
    assert ", 1 case, float32\n" in text


@pytest.mark.parametrize(("suite", "seen"), [("twin", 2), ("embeddinggemma-300m", 3)])
def test_int4_says_how_little_it_sees(suite, seen, capsys):
    """Wrong if a port that conforms to a contract which hides nearly every mistake is told no more than that."""
    golden = open_suite(golden_folder(suite))
    rows = {f"{case.id}/embedding": np.ascontiguousarray(golden.vectors(case)) for case in golden.cases}
    save_file(rows, "right.safetensors")
    words = ["verify", "--model", suite, "--vectors", "right.safetensors"]
    assert main([*words, "--precision", "int4"]) == 0
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0] == "CONFORMS"
    assert f"only {seen} of 91 known mistakes can be seen at int4" in last[1]
    assert "verify it with float32 weights first" in last[1]
    assert main(words) == 0
    assert capsys.readouterr().out.endswith("\nCONFORMS\n")


# ------------------------------------------------------------------------------------- what is certain of the unknown
def said_of(after: Any, precision: str = "float32") -> str:
    report = verify(twin(), MutantPort(after=after), precision, levels=["vectors"])
    assert not report.explanations
    return as_text(report).partition("diagnosis: unknown")[2]


def test_vectors_in_another_order_are_said_to_be():
    """Wrong if a port that mixes up the vectors of a batch, or of a cache, is told that its mistake is unknown only."""
    said = said_of(lambda vectors: vectors[::-1])
    assert "every wrong vector, in 3 cases, is the right one of another text: text 0 of case batch-" in said
    kept: list[Any] = []

    def stale(vectors: Any) -> Any:
        kept.append(vectors)
        return kept[max(0, len(kept) - 2)] if kept[max(0, len(kept) - 2)].shape == vectors.shape else vectors

    assert "text 0 of case prompt-document has that of 'task: search result" in said_of(stale)


def test_vectors_of_another_length_are_said_to_be():
    """Wrong if vectors that lack only their division by the length are called unknown without a word of it."""
    said = said_of(lambda vectors: 3 * vectors)
    assert "every vector has the right direction and the length 3 in place of 1" in said


def test_vectors_of_a_coarser_precision_are_said_to_be():
    """Wrong if a port that was only held to the wrong contract is sent looking for a mistake."""
    said = said_of(lambda vectors: np.round(vectors, 4))
    assert "every vector is within the bounds of float32-gelu16, beyond which" in said
    assert "of 91 known mistakes lie: if the port computes so, verify it with --precision float32-gelu16" in said


@pytest.mark.parametrize(
    "after",
    [np.negative, lambda v: v[:, ::-1], lambda v: v * np.nan, lambda v: np.where(v > 0, 0.2, -0.2) * (1 + v)],
    ids=["negated", "numbers reversed", "NaN", "signs"],
)
def test_nothing_is_said_that_is_not_certain(after):
    """Wrong if an unknown mistake gets an explanation that does not hold."""
    assert "for certain" not in said_of(after)


def test_wrong_tokens_beside_right_vectors_are_said_to_be():
    """Wrong if a port with right vectors is told that no known mistake gives these vectors."""
    port = CallablePort(lambda texts: [[1.0]], tokenize=lambda texts: [[1]] * len(texts))
    port.embed = MutantPort().embed  # type: ignore[method-assign]
    text = as_text(verify(twin(), port, levels=["tokens", "vectors"]))
    assert "diagnosis: unknown; the final vectors are right; wrong are only tokens" in text


def test_text_of_an_unknown_mistake(reports):
    """Wrong if a mistake that nobody has described is given a name, or none is missed."""
    assert "diagnosis: unknown" in as_text(reports["nan"])
    assert "a vector holds NaN or infinity" in as_text(reports["nan"])


@WHICH
def test_text_is_safe_to_print(reports, which):
    """Wrong if a port's words can move a terminal's cursor, or cannot be printed at all."""
    assert all(line.isprintable() for line in as_text(reports[which]).splitlines())


# ----------------------------------------------------------------------------------------------------- the command line
def test_exit_statuses(capsys):
    """Wrong if a script cannot tell conforms, does not, and could not be verified apart."""
    right, wrong = vectors_file("right.safetensors"), vectors_file("wrong.safetensors", CAUSAL.mutation)
    assert main(["verify", "--vectors", right]) == 0
    assert "CONFORMS" in capsys.readouterr().out
    assert main(["verify", "--vectors", wrong]) == 1
    assert "diagnosis: causal" in capsys.readouterr().out
    assert main(["verify", "--vectors", "missing.jsonl"]) == 2
    save_file({"another-case/embedding": np.zeros((1, 48))}, "other.safetensors")
    assert main(["verify", "--vectors", "other.safetensors"]) == 2
    assert "COULD NOT BE VERIFIED" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--call", "--command", "--url", "--vectors", "--backend"])
def test_empty_option_is_not_another_port(option, capsys):
    """Wrong if an empty variable in a script gets refembed's own backend verified in place of the port."""
    assert main(["verify", option, ""]) == 2
    assert "CONFORMS" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--backend", "numpy", "--call", "x:y"],
        ["--backend", "numpy", "--timeout", "0"],
        ["--backend", "numpy", "--timeout", "-1"],
        ["--backend", "numpy", "--timeout", "nan"],
        ["--backend", "numpy", "--timeout", "soon"],
        ["--url", "http://x", "--dialect", "morse"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_refused(argv, capsys):
    """Wrong if options that make no sense are taken for something else."""
    with pytest.raises(SystemExit) as end:
        main(["verify", *argv])
    assert end.value.code == 2
    assert "usage: refembed verify" in capsys.readouterr().err


def test_written_files_agree_with_what_was_printed(capsys):
    """Wrong if the files that a run leaves tell something else than the screen."""
    wrong = vectors_file("wrong.safetensors", CAUSAL.mutation)
    assert (
        main(["verify", "--vectors", wrong, "--json", "a.json", "--junit", "a.xml", "--cases", "prompt-*, text-*"]) == 1
    )
    out = capsys.readouterr().out
    read = json.loads(Path("a.json").read_bytes())
    counted = Counter(one["verdict"] for one in read["outcomes"] if one["level"] == "vectors")
    assert f"  vectors  {counted['wrong']} wrong\n" in out
    assert {one["case"].partition("-")[0] for one in read["outcomes"]} == {"prompt", "text"}
    assert int(ElementTree.parse("a.xml").getroot().attrib["failures"]) == counted["wrong"]


def test_files_appear_whole_or_not_at_all(here, capsys):
    """Wrong if a file that cannot be written is found out after the run, or an earlier report is lost with it."""
    right = vectors_file("right.safetensors")
    Path("kept.json").write_text("earlier")
    assert main(["verify", "--vectors", right, "--json", "kept.json", "--junit", "no/such/folder.xml"]) == 2
    assert refused(capsys) == "output-unwritable"
    assert Path("kept.json").read_text() == "earlier"
    assert sorted(file.name for file in here.iterdir()) == ["kept.json", "right.safetensors"]


def test_levels_and_cases_narrow_the_run(capsys):
    """Wrong if more or less is asked than was chosen."""
    assert (
        main(["verify", "--backend", "numpy", "--levels", "tokens, laws", "--cases", "batch-*", "--json", "a.json"])
        == 0
    )
    asked = Counter(one["level"] for one in json.loads(Path("a.json").read_bytes())["outcomes"])
    assert asked == {"tokens": 4, "laws": 12}


@pytest.mark.parametrize(
    ("options", "id"),
    [
        (["--cases", "no-such-case"], "verify-no-case"),
        (["--cases", "text-*,no-such-case"], "verify-no-case"),
        (["--dialect", "tei"], "verify-option"),
        (["--name", "x"], "verify-option"),
        (["--checkpoint", "x"], "verify-option"),
        (["--timeout", "9"], "verify-option"),
        (["--levels", "vector"], "verify-level"),
        (["--precision", "float16"], "verify-precision"),
        (["--levels", "laws", "--cases", "prompt-*"], "verify-nothing"),
        (["--suite", "no-such-model"], "golden-missing"),
        (["--suite", "."], "golden-missing"),
    ],
)
def test_nothing_verified_is_an_error(options, id, capsys):
    """Wrong if a slip in the options gives a verdict on nothing."""
    assert main(["verify", "--vectors", vectors_file("right.safetensors"), *options]) == 2
    assert refused(capsys) == id


@pytest.mark.parametrize(("level", "suite"), [("losses", "/no/such/folder"), ("gradients", "embeddinggemma-300m")])
def test_a_level_of_its_own_takes_no_other_suite(level, suite, capsys):
    """Wrong if a slip in the folder's name verifies the shipped vectors in its place."""
    assert main(["verify", "--level", level, "--suite", suite, "--call", "json:loads"]) == 2
    assert "takes a folder" in capsys.readouterr().err


def test_runs_as_a_program_of_its_own():
    """Wrong if the command works inside the tests only."""
    Path("my_port.py").write_text("def embed(texts):\n    return [[0.1] * 48 for text in texts]\n")
    command = [sys.executable, "-m", "refembed", "verify", "--call", "my_port:embed", "--cases", "unrelated-*"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "DOES NOT CONFORM" in done.stdout
    assert done.stderr == ""


# ----------------------------------------------------------------------------------------------------- what has changed
def test_track_says_only_what_changed(capsys):
    """Wrong if a port's author must look for what a change broke, or is not told that nothing did."""
    right, wrong = vectors_file("right.safetensors"), vectors_file("wrong.safetensors", CAUSAL.mutation)
    track = ["--track", "runs.json", "--cases", "text-*"]

    def run(file: str) -> str:
        main(["verify", "--vectors", file, *track])
        return capsys.readouterr().out

    assert "allowed error used" in run(right), "the first run is told in full"
    assert run(right) == "no change\nCONFORMS\n"
    broken = run(wrong)
    assert broken.count("right -> wrong") == 24
    assert "diagnosis: none -> causal" in broken
    assert "DOES NOT CONFORM" in broken
    assert run(wrong).startswith("no change\nDOES NOT CONFORM")
    mended = run(right)
    assert mended.count("wrong -> right") == 24
    assert "diagnosis: causal -> none" in mended


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--precision", "int8"], "precision float32 there, int8 here"),
        (["--cases", "text-*"], "72 cases there, 24 here (batch-equal-lengths only there)"),
        (["--levels", "vectors"], "5 levels there, 1 here (laws only there)"),
        (["--suite", "changed"], "golden vectors 3720b85bac99 there"),
    ],
    ids=["precision", "cases", "levels", "edition"],
)
def test_track_compares_like_with_like(options, said, capsys):
    """Wrong if a verdict seems to change though something else was asked, or a whole run is lost for a part of it."""
    right = vectors_file("right.safetensors")
    shutil.copytree(twin().folder, "changed", ignore=shutil.ignore_patterns("none"))
    manifest = Path("changed/manifest.json")
    manifest.write_text(manifest.read_text().replace("the query prompt", "a query's prompt", 1))
    assert main(["verify", "--vectors", right, "--track", "runs.json"]) == 0
    kept = Path("runs.json").read_bytes()
    capsys.readouterr()
    assert main(["verify", "--vectors", right, "--track", "runs.json", *options]) == 0
    out, err = capsys.readouterr()
    assert "known mistakes that these cases see" in out, "it is told in full"
    assert err.startswith("note: runs.json is left as it is, since it is of another run: ")
    assert said in err
    assert Path("runs.json").read_bytes() == kept


def test_run_without_an_answer_is_not_tracked(capsys):
    """Wrong if the last run that said something is lost because the port did not start to answer today."""
    save_file({"another-case/embedding": np.zeros((1, 48))}, "other.safetensors")
    silent = ["verify", "--vectors", "other.safetensors", "--track", "runs.json"]
    assert main(silent) == 2
    assert not Path("runs.json").exists()
    assert main(["verify", "--vectors", vectors_file("right.safetensors"), "--track", "runs.json"]) == 0
    kept = Path("runs.json").read_bytes()
    capsys.readouterr()
    assert main(silent) == 2
    out, err = capsys.readouterr()
    assert "right -> failed" in out
    assert err == "note: runs.json is left as it is, since nothing was answered\n"
    assert Path("runs.json").read_bytes() == kept


def test_track_keeps_the_laws_apart():
    """Wrong if one law's verdict is compared with another's."""
    argv = ["verify", "--backend", "numpy", "--levels", "laws", "--track", "runs.json"]
    assert main(argv) == 0
    before = json.loads(Path("runs.json").read_bytes())
    assert len({(one["case"], one["law"]) for one in before["outcomes"]}) == 12


@pytest.mark.parametrize("content", [b"not json", b"[]", b"{}", b"\xff", b'{"outcomes": [5]}', b"[" * 100_000])
def test_track_file_of_something_else_is_left_alone(content, capsys):
    """Wrong if somebody's file is overwritten because its name was given by mistake."""
    Path("notes.json").write_bytes(content)
    assert main(["verify", "--backend", "numpy", "--track", "notes.json"]) == 2
    assert refused(capsys) == "verify-track"
    assert Path("notes.json").read_bytes() == content


# ------------------------------------------------------------------------------------------------------ refembed golden
def test_golden_list_shows_every_case(capsys):
    """Wrong if a case cannot be found by looking."""
    assert main(["golden", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [case.id for case in twin().cases]
    assert all(case.why in line for case, line in zip(twin().cases, lines, strict=True))


def test_golden_show_gives_a_case_in_full(capsys):
    """Wrong if what is shown is not what a port is judged by."""
    assert main(["golden", "show", "twin", "batch-wide-gap"]) == 0
    head, *rows = map(json.loads, capsys.readouterr().out.splitlines())
    case = next(case for case in twin().cases if case.id == "batch-wide-gap")
    assert head["prompted"] == list(case.prompted)
    assert [row["ids"] for row in rows] == [ids.tolist() for ids in twin().tokens(case)]
    assert [row["embedding"] for row in rows] == twin().vectors(case).tolist()


def test_golden_inputs_are_enough_to_make_a_file_of_vectors(capsys):
    """Wrong if a port that reads `golden inputs` and writes vectors, and nothing else, does not conform."""
    assert main(["golden", "inputs"]) == 0
    asked = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    cases = {case.id: case for case in twin().cases}
    with open("mine.jsonl", "w") as handle:
        for one in asked:
            vectors = MutantPort().embed(cases[one["case"]], one["prompted"])
            handle.write(json.dumps({"case": one["case"], "vectors": vectors.tolist()}) + "\n")
    assert main(["verify", "--vectors", "mine.jsonl"]) == 0
    assert "CONFORMS" in capsys.readouterr().out


def test_golden_path_holds_the_manifest(capsys):
    """Wrong if the folder that is printed is not the one that is read."""
    assert main(["golden", "path", "twin"]) == 0
    assert Path(capsys.readouterr().out.strip()) == twin().folder


@pytest.mark.parametrize("name", ["quantised", "ul2", "vectors"])
@pytest.mark.parametrize("what", ["list", "show", "inputs"])
def test_golden_data_is_said_to_be_data(what, name, capsys):
    """Wrong if files that are whole are said to be missing or damaged, or nobody is told where to read on."""
    folder = twin().folder.parent / name
    assert main(["golden", "path", name]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    assert main(["golden", what, name]) == main(["verify", "--suite", name, "--backend", "numpy"]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert str(folder) in line
        chapter = re.search(r"spec/[\w.-]+\.md", line)[0]
        assert f"golden/{name}" in (folder.parents[1] / chapter).read_text()
        assert line.endswith("[golden-data]")


@pytest.mark.parametrize(
    ("argv", "id"),
    [
        (["show", "twin", "no-such-case"], "verify-no-case"),
        (["list", "quantised"], "golden-data"),
        (["show", "twin"], "verify-no-case"),
        (["list", "no-such-model"], "golden-missing"),
        (["path", "no-such-model"], "golden-missing"),
    ],
)
def test_golden_refuses_what_is_not_there(argv, id, capsys):
    """Wrong if a slip in a name prints nothing, or a traceback."""
    assert main(["golden", *argv]) == 2
    assert refused(capsys) == id


@pytest.mark.parametrize("command", ["verify", "golden"])
def test_help_shows_examples(command, capsys):
    """Wrong if somebody who asks for help sees options but no command to start from, or an example that is refused."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = capsys.readouterr().out
    examples = [line.strip() for line in out.splitlines() if line.strip().startswith(f"refembed {command} ")]
    assert len(examples) >= 3
    for example in examples:
        words = shlex.split(example.partition(" > ")[0].replace("$(refembed golden path twin)", "twin"))[1:]
        build_parser().parse_args(words)
