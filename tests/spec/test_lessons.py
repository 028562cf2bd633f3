"""spec/lessons: checks that fail until an exercise is solved, pass on the solutions, and name typical mistakes."""

import ast
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_chapters import broken_links, fences

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "spec" / "lessons"))
import break_it
import check
import train_tiny
from checks import CHAPTERS, EXERCISES, LESSONS

from refembed.reference.losses import Batch

FOLDER = Path(check.__file__).parent
ROOT = FOLDER.parents[1]
PAGE = FOLDER / "README.md"
EVERY = [(lesson, exercise) for lesson, exercises in EXERCISES.items() for exercise in exercises]
SOURCES = {lesson: (FOLDER / "solutions" / f"{name}.py").read_text() for lesson, name in LESSONS.items()}


def verdicts(lesson, folder):
    """Exercise -> its outcome."""
    return {outcome.exercise: outcome for outcome in check.outcomes(lesson, folder)}


def body_of(source, name):
    """A function's statements after its docstring, as they stand in the source."""
    (node,) = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name)
    return "\n".join(source.splitlines()[node.body[1].lineno - 1 : node.end_lineno])


@pytest.fixture
def solved(tmp_path):
    """A copy of the solutions, to be spoilt."""
    return Path(shutil.copytree(FOLDER / "solutions", tmp_path / "solved"))


# the checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", LESSONS)
def test_nothing_passes_unsolved(lesson):
    """Wrong if a check passes on an exercise nobody has solved, or takes what is not written for a crash."""
    for exercise, outcome in verdicts(lesson, FOLDER / "exercises").items():
        assert outcome.verdict in (check.TO_DO, check.WAITS), f"{exercise}: {outcome}"


@pytest.mark.parametrize("lesson", LESSONS)
def test_solutions_pass(lesson):
    """Wrong if a check asks for something that the model is not."""
    found = verdicts(lesson, FOLDER / "solutions")
    assert list(found) == list(EXERCISES[lesson])
    assert {outcome.verdict for outcome in found.values()} == {check.RIGHT}, found


@pytest.mark.parametrize(("lesson", "exercise"), EVERY)
def test_each_exercise_alone(lesson, exercise, solved):
    """Wrong if one exercise left undone, all others solved, is not named as such, or fails what does not rest on it."""
    file = solved / f"{LESSONS[lesson]}.py"
    file.write_text(SOURCES[lesson].replace(body_of(SOURCES[lesson], exercise), "    raise NotImplementedError"))
    found = verdicts(lesson, solved)
    assert (found[exercise].verdict, found[exercise].words) == (check.TO_DO, "yours to write")
    for other, outcome in found.items():
        if other != exercise:
            resting = outcome.verdict == check.WAITS and exercise in outcome.words
            assert outcome.verdict == check.RIGHT or resting, outcome


MISTAKES = [  # lesson, exercise, right code, a learner's, a word of what the check must say
    (1, "with_prompt", "prompts[task] + text", "prompts[task].strip() + text", "last space is lost"),
    (1, "with_prompt", "if title:", "if False:", "title is ignored"),
    (1, "merge", "_, at = min(ranked)", "_, at = ranked[0]", "whatever its rank"),
    (1, "with_ends", '"max_position_embeddings"] - 2', '"max_position_embeddings"]', "BOS and EOS are not counted"),
    (1, "with_ends", "ids[:", "ids[-4:][:", "start is cut"),
    (1, "embed_tokens", ' * np.sqrt(settings["hidden_size"])', "", "square root of the width is left out"),
    (2, "linear", "weight.T", "weight", "not transposed"),
    (2, "rms_norm", "(1 + weight)", "weight", "by w, not by 1 + w"),
    (2, "rms_norm", "axis=-1, ", "", "whole array"),
    (2, "rms_norm", "np.sqrt(mean_square + epsilon)", "(np.sqrt(mean_square) + epsilon)", "after the square root"),
    (2, "rms_norm", "mean_square + epsilon", "mean_square", "epsilon is left out"),
    (2, "gelu", "x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))", "np.maximum(x, 0)", "ReLU"),
    (2, "gated_mlp", "gate = gelu", "gate = ", "no activation"),
    (3, "rotary_angles", "np.arange(0, head, 2)", "np.arange(head // 2)", "twice as slow"),
    (3, "rotary_angles", "np.arange(tokens)", "np.arange(1, tokens + 1)", "begin at 1"),
    (3, "rotate", "np.split(x, 2, axis=-1)", "x[..., ::2], x[..., 1::2]", ""),
    (3, "rotate", "first * cos - second * sin, second * cos + first * sin",
     "first * cos + second * sin, second * cos - first * sin", "backwards"),
    (4, "softmax", " - scores.max(axis=-1, keepdims=True)", "", "overflows"),
    (4, "window_mask", "sliding_window // 2", "sliding_window", "not halved"),
    (4, "window_mask", "np.abs(position[:, None] - position)", "position[:, None] - position", ""),
    (4, "window_mask", "distance <= reach", "distance < reach", "edge is left out"),
    (4, "split_heads", "x.reshape(len(x), -1, head).swapaxes(0, 1)", "x.reshape(-1, len(x), head)", "another's"),
    (4, "attend", " * scale", "", "not scaled"),
    (4, "attend", "scores + mask", "scores", "mask is left out"),
    (4, "attention", "1 / np.sqrt(settings", "1 / (settings", "itself"),
    (4, "attention", "rotate(normed, cos, sin)", "normed", "not turned"),
    (4, "attention", '"query_pre_attn_scalar"', '"head_dim"', "not by query_pre_attn_scalar"),
    (4, "window_mask", "else sliding_window // 2", "else 8", ""),
    (5, "layer", "x = x + norm(attention", "x = norm(attention", ""),
    (5, "encode", '"rope_local_base_freq"] if sliding else settings["rope_theta"]',
     '"rope_theta"] if sliding else settings["rope_local_base_freq"]', "bases are swapped"),
    (5, "encode", " if sliding else None", "", "full layers have the window too"),
    (5, "mean_pool", "states.mean(axis=0)", "states[1:-1].mean(axis=0)", "BOS and EOS are left out"),
    (5, "dense_head", 'linear(pooled, parameters["2_Dense.linear.weight"])',
     'np.tanh(linear(pooled, parameters["2_Dense.linear.weight"]))', "activation"),
    (5, "truncate", "l2_normalize(embedding[..., :dimensions])", "embedding[..., :dimensions]", "unit length again"),
    (5, "embed_ids", "return l2_normalize(", "return (", "unit length"),
    (6, "log_hardness", "alpha *", "-alpha *", "alpha has the wrong sign"),
    (6, "false_negative_mask", "i == j or (", "(", "diagonal is masked"),
    (6, "log_terms", "log_w + ", "", "weight is left out"),
    (6, "contrastive", "np.exp(terms - largest[:, None])", "np.exp(terms)", ""),
    (6, "second_moment", "max(len(x) * (len(x) - 1), 1)", "12", ""),
    (6, "second_moment", "other_cosines(x) ** 2", "(l2_normalize(x) @ l2_normalize(x).T) ** 2", "with itself"),
    (6, "l2_normalize_gradient", "(upstream - np.sum(upstream * unit, axis=-1, keepdims=True) * unit)", "upstream",
     "only the division"),
    (6, "contrastive_gradient", "(examples * temperature)", "examples", "temperature is left out"),
    (6, "second_moment_gradient", "4 * other", "2 * other", "stands in the sum twice"),
]  # fmt: skip


@pytest.mark.parametrize(("lesson", "exercise", "right", "wrong", "words"), MISTAKES)
def test_typical_mistakes(lesson, exercise, right, wrong, words, solved):
    """Wrong if a typical wrong answer passes, or is not called by its name where the check knows it."""
    body = body_of(SOURCES[lesson], exercise)
    assert body.count(right) == 1, body
    spoilt = SOURCES[lesson].replace(body, body.replace(right, wrong))
    (solved / f"{LESSONS[lesson]}.py").write_text(spoilt)
    outcome = verdicts(lesson, solved)[exercise]
    assert outcome.verdict == check.WRONG, outcome
    assert words in outcome.words


SETTINGS = json.loads((ROOT / "golden/twin/checkpoint/config.json").read_text())
READ = [  # every place where a solution reads a setting
    (lesson, number, found[1])
    for lesson, source in SOURCES.items()
    for number, found in enumerate(re.finditer(r'settings\["(\w+)"\]', source))
]


@pytest.mark.parametrize(("lesson", "number", "name"), READ)
def test_a_number_of_the_twin_typed_in_is_noticed(lesson, number, name, solved):
    """Wrong if a solution passes that has the twin's own number for a setting, and so fits the twin alone."""
    counted = itertools.count()
    typed = re.sub(
        r'settings\["\w+"\]', lambda f: repr(SETTINGS[name]) if next(counted) == number else f[0], SOURCES[lesson]
    )
    assert typed != SOURCES[lesson]
    (solved / f"{LESSONS[lesson]}.py").write_text(typed)
    assert {one.verdict for one in verdicts(lesson, solved).values()} - {check.RIGHT}


BROKEN = [  # what is done to lesson 2's solution, the verdict on rms_norm, words it must say
    ("return x / np.sqrt(mean_square", "return x / np.sqrt(mean_sqare", check.CRASHED, "py, line 14: return x / "),
    ("return x / np.sqrt(mean_square + epsilon) * (1 + weight)", "x / 2", check.WRONG, "nothing is returned"),
    ("    mean_square = ", "    x /= 2\n    mean_square = ", check.CRASHED, "not its own to change"),
    ("def rms_norm(", "def rmsnorm(", check.WRONG, "lesson2_mlp.py has no function of this name"),
    ("axis=-1, keepdims=True)", "axis=-1, keepdims=False)", check.CRASHED, "broadcast"),
    ("* (1 + weight)", "* (1 + weight)[0]", check.WRONG, "of 480 numbers differ"),
    ("* (1 + weight)  # (..., n)", "@ np.ones((len(weight), 3))", check.WRONG, "expected shape (10, 48), got (10, 3)"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "verdict", "words"), BROKEN)
def test_what_a_learner_is_told(right, wrong, verdict, words, solved):
    """Wrong if a slip of the pen is told as something else, or without the learner's own line."""
    assert right in SOURCES[2]
    (solved / "lesson2_mlp.py").write_text(SOURCES[2].replace(right, wrong))
    outcome = verdicts(2, solved)["rms_norm"]
    assert outcome.verdict == verdict
    assert words in outcome.words


def test_a_file_that_is_no_python(solved):
    """Wrong if a missing bracket ends the command, or is not told with its line."""
    (solved / "lesson2_mlp.py").write_text(SOURCES[2].replace("* (1 + weight)", "* (1 + weight"))
    (outcome,) = verdicts(2, solved).values()
    assert outcome.verdict == check.CRASHED
    assert re.search(r"was never closed \(lesson2_mlp.py, line \d+\)", outcome.words)


def test_what_rests_on_an_earlier_mistake(solved):
    """Wrong if a right function is blamed for an earlier lesson's mistake without a word of it."""
    (solved / "lesson2_mlp.py").write_text(SOURCES[2].replace("(1 + weight)", "weight"))
    outcome = verdicts(5, solved)["layer"]
    assert outcome.verdict == check.WRONG
    assert "begin with rms_norm of lesson 2, which is WRONG" in outcome.words


@pytest.mark.parametrize("lesson", LESSONS)
def test_solutions_have_the_exercises_form(lesson):
    """Wrong if an exercise asks for other functions or arguments than its solution has, or has no docstring."""

    def functions(folder):
        tree = ast.parse((FOLDER / folder / f"{LESSONS[lesson]}.py").read_text())
        return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}

    asked, solved = functions("exercises"), functions("solutions")
    for name, node in asked.items():
        assert ast.unparse(node.args) == ast.unparse(solved[name].args), name
        assert ast.get_docstring(node), name
    assert set(EXERCISES[lesson]) <= set(asked)


def test_the_command(capsys):
    """Wrong if the exit status does not tell right from unsolved, or a lesson is left out."""
    assert check.main(["--folder", str(FOLDER / "solutions")]) == 0
    printed = capsys.readouterr().out
    assert all(f"lesson {lesson}: {name}.py" in printed for lesson, name in LESSONS.items())
    assert check.main(["3"]) == 1
    assert "0 of 2 right" in capsys.readouterr().out
    for wrong in (["7"], ["--folder", "nowhere"]):
        with pytest.raises(SystemExit) as ended:
            check.main(wrong)
        assert ended.value.code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--call", "solutions.lesson5_model:embed"],
        ["--level", "losses", "--call", "solutions.lesson6_loss:loss", "--cases", "contrastive*,spread*"],
    ],
    ids=["model", "losses"],
)
def test_the_suite_that_ports_are_held_to(arguments):
    """Wrong if who solved every exercise has no conforming port, by the command that lessons 5 and 6 name."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "refembed", "verify", *arguments]
    done = subprocess.run(command, cwd=FOLDER, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nCONFORMS" in done.stdout


def test_the_page_shows_what_the_command_prints(solved, capsys):
    """Wrong if the page's example is not what a learner sees: the one forgotten, and gelu still to do."""
    spoilt = (
        SOURCES[2]
        .replace("(1 + weight)", "weight")
        .replace(body_of(SOURCES[2], "gelu"), "    raise NotImplementedError")
    )
    (solved / "lesson2_mlp.py").write_text(spoilt)
    check.main(["2", "--folder", str(solved)])
    (shown,) = (block for language, block in fences(PAGE.read_text()) if block.startswith("lesson 2"))
    assert capsys.readouterr().out == shown


def test_links_lead_somewhere():
    """Wrong if the page links to a file that is not there, or an exercise names a chapter that is not."""
    assert broken_links(PAGE) == []
    for lesson, name in LESSONS.items():
        named = re.findall(r"\d\d-[a-z-]+\.md", (FOLDER / "exercises" / f"{name}.py").read_text() + CHAPTERS[lesson])
        assert len(named) > 1
        assert all((FOLDER.parent / chapter).exists() for chapter in named)


# break it -------------------------------------------------------------------------------------------------------------

PUZZLES = range(1, len(break_it.CANDIDATES) + 1)


def test_exactly_one_answer_is_right(capsys):
    """Wrong if a puzzle takes a wrong answer, or refuses the right one, or a defect stands in no puzzle or in two."""
    for puzzle in PUZZLES:
        accepted = [id for id in break_it.CANDIDATES if break_it.main([str(puzzle), "--answer", id]) == 0]
        assert accepted == [break_it.answer_of(puzzle)]
        said = capsys.readouterr().out.split("\n")
        assert sum(line.startswith("Right: ") for line in said) == 1
        assert sum(line.startswith("No, this is not ") for line in said) == len(break_it.CANDIDATES) - 1
    assert sorted(map(break_it.answer_of, PUZZLES)) == list(break_it.CANDIDATES)
    assert len(break_it.CANDIDATES) >= 8


def test_puzzles_are_of_the_catalogue():
    """Wrong if a puzzle's mistake, or one it is told from, is not in the catalogue, or its chapter is not there."""
    assert set(break_it.REASONS) == set(break_it.CANDIDATES) <= set(break_it.KNOWN)
    for id, reason in break_it.REASONS.items():
        assert set(reason.neighbours) <= set(break_it.CANDIDATES) - {id}
        assert (ROOT / "spec" / break_it.KNOWN[id].chapter).exists()


def test_what_is_shown_tells_every_two_apart():
    """Wrong if two candidates give the same table: no reasoning could decide between them."""
    for one, other in itertools.combinations(break_it.CANDIDATES, 2):
        assert break_it.unlike(break_it.rows(one), break_it.rows(other)), (one, other)
        assert break_it.table(break_it.rows(one)) != break_it.table(break_it.rows(other))


def test_a_puzzle_does_not_name_its_answer(capsys):
    """Wrong if what stands above the list of candidates, or that list itself, differs by the answer's name."""
    lists = set()
    for puzzle in PUZZLES:
        assert break_it.main([str(puzzle)]) == 0
        table, _, candidates = capsys.readouterr().out.partition("Which of these is it?")
        assert not [id for id in break_it.CANDIDATES if id in table]
        lists.add(candidates)
        assert break_it.main([str(puzzle), "--stages"]) == 0
        inside = capsys.readouterr().out
        assert not [id for id in break_it.CANDIDATES if id in inside]
    assert len(lists) == 1


# What the reasons say of stages: defect, text looked at (0: 8 tokens, 1: 21), the last right stage, the first wrong one
# and its wrong tokens.
INSIDE = [
    ("causal", 0, "layer.00.attention.query_rotated", "layer.00.attention.weights", list(range(7))),
    ("norm-offset-missing", 0, "embedded", "layer.00.attention.norm", list(range(8))),
    ("rotary-missing", 0, "layer.00.attention.norm", "layer.00.attention.query_rotated", list(range(1, 8))),
    ("rotary-bases-swapped", 0, "layer.00.attention.norm", "layer.00.attention.query_rotated", list(range(1, 8))),
    ("pads-attended", 0, "layer.00.attention.query_rotated", "layer.00.attention.weights", list(range(8))),
    ("window-not-halved", 0, "embedding", None, []),
    ("window-not-halved", 1, "layer.00.attention.query_rotated", "layer.00.attention.weights", list(range(21))),
    ("pads-pooled", 1, "final_norm", "pooled", None),
    ("pool-last", 1, "final_norm", "pooled", None),
    ("pool-without-prompt", 1, "final_norm", "pooled", None),
    ("dense-missing", 1, "pooled", "embedding", None),
]


@pytest.mark.parametrize(("defect", "text", "last_right", "first_wrong", "tokens"), INSIDE)
def test_the_reasons_are_true_inside(defect, text, last_right, first_wrong, tokens):
    """Wrong if an explanation points at a stage or at tokens that are not the first to be wrong."""
    case = break_it.INSIDE[text]
    right = break_it.inside(break_it.RIGHT, case)
    found = break_it.inside(break_it.KNOWN[defect].mutation, case)
    told = dict(line.split(maxsplit=1) for line in break_it.stages(found, right).splitlines()[1:])
    stages = list(told)
    assert {told[stage] for stage in stages[: stages.index(last_right) + 1]} == {"right"}
    if first_wrong:
        assert stages.index(first_wrong) == stages.index(last_right) + 1
        assert not told[first_wrong].startswith("right")
    if tokens:
        assert break_it.wrong_tokens(found[first_wrong], right[first_wrong]) == tokens


def test_the_reasons_are_true_outside():
    """Wrong if an explanation says of a case's tokens, cosine or length what is not so."""
    tokens = [row.tokens for row in break_it.right_rows()]

    def wrong(defect):
        return {
            case.words
            for case, row in zip(break_it.CASES[:-1], break_it.rows(defect), strict=False)
            if row.cosine < 0.9999
        }

    longer = {
        size: {case.words for case, own in zip(break_it.CASES[:-1], tokens, strict=False) if own >= size}
        for size in (9, 10)
    }
    assert wrong("window-one-short") == longer[9]
    assert wrong("window-not-halved") == longer[10]
    assert wrong("lower-cased") == {"capitals"}
    assert wrong("pads-attended") == wrong("pads-pooled") == {"a word, beside 17 words in a batch"}
    assert wrong("prompt-missing") == {case.words for case in break_it.CASES[:-1] if case.texts[0].task}
    assert wrong("truncated-not-normalised") == set()
    assert [row.length for row in break_it.rows("truncated-not-normalised")][-2] < 0.9
    assert [right - row.tokens for right, row in zip(tokens, break_it.rows("eos-missing"), strict=True)] == [1] * len(
        tokens
    )
    assert break_it.rows("rotary-missing")[-1].cosine == pytest.approx(1, abs=1e-9)
    assert max(abs(row.cosine) for row in break_it.rows("dense-missing")[:-1]) < 0.25


def test_a_text_of_ones_own(capsys):
    """Wrong if --text does not show the puzzle's model, or a title without a document's task is taken."""
    puzzle = str(next(puzzle for puzzle in PUZZLES if break_it.answer_of(puzzle) == "lower-cased"))
    for text, right in (("nasa", True), ("NASA", False)):
        assert break_it.main([puzzle, "--text", text]) == 0
        assert ("cosine 1.000000" in capsys.readouterr().out) == right
    for wrong in ([puzzle, "--text", "a", "--title", "b"], ["99"], [puzzle, "--answer", "nonsense"]):
        with pytest.raises(SystemExit) as ended:
            break_it.main(wrong)
        assert ended.value.code == 2


# train a tiny one -----------------------------------------------------------------------------------------------------


def test_held_out_pairs_are_new_and_share_no_word():
    """Wrong if the score could come from a pair that was trained on, or from a word in query and document alike."""
    everything = train_tiny.pairs()
    known, held = train_tiny.split(everything)
    assert (len(everything), len(known), len(held)) == (96, 64, 32)
    assert not {(pair.animal, pair.question) for pair in known} & {(pair.animal, pair.question) for pair in held}
    for side in ("animal", "question"):
        assert {getattr(pair, side) for pair in known} == {getattr(pair, side) for pair in held}
    ends = {train_tiny.CONFIG.bos, train_tiny.CONFIG.eos}
    assert all(set(one.query.tolist()) & set(other.document.tolist()) == ends for one in held for other in everything)
    assert len({tuple(pair.document) for pair in everything}) == 96
    assert max(max(pair.query.max(), pair.document.max()) for pair in everything) < train_tiny.CONFIG.vocabulary


def test_hard_negatives_are_near_and_known():
    """Wrong if a hard negative is the answer itself, has neither animal nor question in common, or is held out."""
    known, _ = train_tiny.split(train_tiny.pairs())
    of = {tuple(pair.document): pair for pair in known}
    rng = np.random.default_rng(0)
    for pair in known:
        near = of[tuple(train_tiny.hard_negative(pair, known, rng))]
        assert (near.animal == pair.animal) + (near.question == pair.question) == 1


@pytest.mark.parametrize("without", [(), ("spread-out",), ("contrastive",), ("matryoshka",)])
def test_what_is_left_out_is_not_trained(without):
    """Wrong if the gradient is not that of the parts left in: by finite differences along one direction."""
    rng = np.random.default_rng(1)
    settings = train_tiny.Settings(without=without, alpha=0.0)  # no weight, so no constant in the gradient
    sides = [rng.standard_normal((3, 32)), rng.standard_normal((3, 32)), rng.standard_normal((3, 1, 32))]
    along, mask = [rng.standard_normal(side.shape) for side in sides], np.ones((3, 3), bool)

    def loss(step):
        moved = Batch(*(side + step * way for side, way in zip(sides, along, strict=True)))
        found = train_tiny.loss_of(moved, mask, settings)
        return ("contrastive" not in without) * found.contrastive + ("spread-out" not in without) * found.spread_out

    gradient = train_tiny.loss_of(Batch(*sides), mask, settings).gradient
    expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert sum(np.sum(one * way) for one, way in zip(gradient, along, strict=True)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.long
def test_the_tiny_model_learns(capsys):
    """Wrong if training does not lower the loss, or held-out queries do not find their documents better than before."""
    before, after = train_tiny.run(train_tiny.Settings(steps=50), every=49)
    assert after.first > 0.1 > before.first  # by luck 0.01; 0.22 came out, and 0.72 of the usual 120 steps
    assert after.right - after.others > 0.3 > before.right - before.others
    losses = re.findall(r"^ +\d+ +([\d.]+) +[\d.]+$", capsys.readouterr().out, re.MULTILINE)
    assert float(losses[-1]) < float(losses[0]) / 2


def test_spreading_alone_teaches_nothing(capsys):
    """Wrong if the score rises without the loss that says which texts belong together."""
    before, after = train_tiny.run(train_tiny.Settings(steps=10, without=("contrastive",)))
    assert after.first < 0.1
    assert after.spread < 0.6 * before.spread


def test_the_training_command_refuses(capsys):
    """Wrong if a temperature of 0, a batch of one, or an unknown part starts a run."""
    for wrong in (["--temperature", "0"], ["--examples", "1"], ["--steps", "0"], ["--without", "everything"]):
        with pytest.raises(SystemExit) as ended:
            train_tiny.main(wrong)
        assert ended.value.code == 2


def test_the_page_explains_as_the_command_does():
    """Wrong if the page's training example has other lines, or explains a number otherwise, than the command."""
    zeros = train_tiny.Scores(0, 0, 0, 0, 0)
    printed = train_tiny.report(zeros, zeros, 32, 96)
    (shown,) = (block for language, block in fences(PAGE.read_text()) if block.startswith("step"))
    numbers = r"\d\.\d{3} +\d\.\d{3}"
    assert re.sub(numbers, "n", shown.partition("\n\n")[2].rstrip()) == re.sub(numbers, "n", printed)
