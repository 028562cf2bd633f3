"""Every shape comment of the reference is executed: compared with the real shape, and a wrong one is noticed."""

import ast
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from shape_comments import NUMBER_TYPES, SIZES, Call, Claim, UnclaimedError, disagreements, load, read, watch
from support import random_ids, random_parameters, sampled

import refembed.reference
from refembed.reference import FULL, SLIDING, Config

FOLDER = Path(refembed.reference.__file__).parent
TOKENS = 11
# No two sizes alike, halves and quarters included, nor like a number in a comment: a wrong name is a wrong number.
CONFIG = Config(
    vocabulary=50,
    width=28,
    mlp=34,
    heads=6,
    key_heads=3,
    head=10,
    dense=44,
    dimensions=26,
    layer_kinds=(SLIDING, FULL),
    reach=3,
    query_scalar=10.0,
)
CONFIG_SIZES = {name: TOKENS if name == "tokens" else getattr(CONFIG, name) for name in SIZES}


def run_everything(package: str) -> None:
    run_forward(package)
    run_gradients(package)
    run_losses(package)
    run_pretraining(package)


def parameters_and_pooler() -> dict[str, np.ndarray]:
    rng, parameters = np.random.default_rng(2), random_parameters(CONFIG)
    parameters["pooling.query"] = rng.standard_normal((1, CONFIG.width))
    parameters["pooling.key.weight"] = rng.standard_normal((CONFIG.width, CONFIG.width))
    parameters["pooling.value.weight"] = rng.standard_normal((CONFIG.width, CONFIG.width))
    return parameters


def run_forward(package: str) -> None:
    """Call every function of the forward, the general ones with sizes that are no size of the config as well."""
    model, operations, quantize = load(package, "model"), load(package, "operations"), load(package, "quantize")
    rng = np.random.default_rng(0)
    parameters = parameters_and_pooler()
    ids = random_ids(CONFIG, TOKENS)
    for pooler in ("mean", "first", "last", "attention"):
        embedding = model.embed(ids, parameters, replace(CONFIG, pooler=pooler), load(package, "trace").collector({}))
    model.embed_batch([ids, ids[:5], ids[:8], ids, ids[:1]], parameters, CONFIG)
    model.truncate(embedding, 17)
    model.truncate(np.ones((3, 5, 23)), 9)
    x, weight = rng.standard_normal((2, 3, 13)), rng.standard_normal((19, 13))
    operations.linear(x, weight)
    operations.rms_norm(x, weight[0], 1e-6)
    for function in (operations.gelu, operations.softmax, operations.l2_normalize):
        function(x)
    rotation = load(package, "positions").rotary_angles(TOKENS, CONFIG.head, 10.0, np.float64)
    load(package, "positions").rotate(rng.standard_normal((3, 5, TOKENS, CONFIG.head)), *rotation)
    matrix = rng.standard_normal((5, 96))
    for grid in (quantize.INT8_BLOCK, quantize.INT4_BLOCK, quantize.INT8_ROW, quantize.INT4_ROW):
        scales = quantize.block_scales(matrix, grid)
        for given in (None, scales):
            quantize.dequantize(quantize.quantize(matrix, grid, given))
            quantize.fake_quantize(matrix.astype(np.float32), grid, given)
            quantize.fake_quantize_gradient(np.ones_like(matrix), matrix, grid, given)
    levels = rng.integers(-8, 8, (7, 3, 18)).astype(np.int8)
    quantize.unpack_int4(quantize.pack_int4(levels))
    quantize.int8_vectors(rng.standard_normal((2, 3, 18)))
    bits = quantize.binary_vectors(rng.standard_normal((2, 9, 56)))
    quantize.signs(bits)
    quantize.binary_similarity(bits[0], bits[1, :5])


def run_gradients(package: str) -> None:
    """Call every function of the backward pass, the general ones with sizes that are no size of the config."""
    gradients, backward = load(package, "gradients"), load(package, "backward")
    rng, ids, parameters = np.random.default_rng(1), random_ids(CONFIG, TOKENS), parameters_and_pooler()
    x, upstream, weight = (rng.standard_normal(shape) for shape in ((2, 3, 13), (2, 3, 19), (19, 13)))
    gradients.linear_gradient(upstream, weight)
    gradients.linear_gradients(upstream, x, "weight", {"weight": weight})
    gradients.rms_norm_gradients(x, x, "weight", {"weight": weight[0]}, 1e-6)
    for function in (gradients.gelu_gradient, gradients.softmax_gradient, gradients.l2_normalize_gradient):
        function(x, x)
    gradients.truncate_gradient(upstream[..., :9], x)
    rotation = load(package, "positions").rotary_angles(TOKENS, CONFIG.head, 10.0, np.float64)
    gradients.rotate_gradient(rng.standard_normal((3, 5, TOKENS, CONFIG.head)), *rotation)
    gradients.dense_head_gradients(rng.standard_normal((2, 3, 26)), rng.standard_normal((2, 3, 28)), parameters)
    for pooler in ("mean", "first", "last", "attention"):
        config = replace(CONFIG, pooler=pooler)
        backward.embed_gradients(rng.standard_normal(CONFIG.dimensions), ids, parameters, config)
    backward.embed_batch_gradients(rng.standard_normal((2, CONFIG.dimensions)), [ids, ids[:5]], parameters, CONFIG)


def run_losses(package: str) -> None:
    """Call every loss and its gradient, with a teacher of another width, and matching on rows of more axes too."""
    losses, rng = load(package, "losses"), np.random.default_rng(3)
    batch, teacher = (
        losses.Batch(*(rng.standard_normal(shape) for shape in ((7, width), (7, width), (7, 1, width))))
        for width in (13, 19)
    )
    mask = losses.false_negative_mask([[2, 9, 1], [2, 1], [2, 9, 1], [2], [3], [4], [5]], "abcdefg")
    given = batch, mask, teacher, rng.standard_normal((19, 13)), (13, 9)
    losses.total(*given)
    losses.total_gradient(*given)
    losses.stop_gradient(rng.standard_normal((2, 3)))
    losses.log_sum_exp(rng.standard_normal((2, 3, 7)))


def run_pretraining(package: str) -> None:
    """Call UL2's corruption, and the decoder on a source and a target of other lengths than any."""
    ul2, decoder, rng = load(package, "ul2"), load(package, "decoder"), np.random.default_rng(4)
    ul2.choose(0.5, dict.fromkeys(ul2.DENOISERS, 1.0))
    piece, _ = ul2.pieces(np.arange(4, 41), replace(CONFIG, context=33))
    example = ul2.denoise(piece, "x3-50", {"X": 41}, np.arange(42, 49), CONFIG, rng)
    shapes, origins = load(package, "config").parameter_shapes(CONFIG), decoder.origins(CONFIG)
    parameters = {name: rng.standard_normal(shapes[origin]) for name, origin in origins.items()}
    decoder.adapt(parameters, CONFIG)
    decoder.fresh_dense(CONFIG, rng)
    decoder.denoising_loss([example, example], parameters, CONFIG)
    logits = decoder.target_logits(example, parameters, CONFIG)
    decoder.language_model_loss_gradient(logits, example.targets)


@cache
def sources() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(FOLDER.glob("*.py"))}


@cache
def claims() -> tuple[Claim, ...]:
    return tuple(claim for file, text in sources().items() for claim in read(file, text).claims)


@cache
def calls() -> tuple[Call, ...]:
    return tuple(watch(FOLDER, lambda: run_everything("refembed.reference")))


def test_every_shape_comment_is_true() -> None:
    """If this failed, a comment or docstring would tell a reader a shape that is not so, or that no code has."""
    wrong, used = disagreements(list(claims()), list(calls()), CONFIG_SIZES)
    assert not wrong, "\n".join(sorted(set(wrong))[:20])
    assert not set(claims()) - used, "never executed:\n" + "\n".join(map(str, set(claims()) - used))


def test_no_shape_is_overlooked() -> None:
    """If this failed, the reader of shape comments would skip lines and the test above would prove little.

    Counted without it: comments that open a parenthesis first, and docstring lines with a name, two spaces and one.
    """
    comments = docstrings = 0
    for text in sources().values():
        comments += len(re.findall(r"  # (?:x )?\(", text))
        docstrings += len(re.findall(r"^    [a-z_]+ {2,}\(", text, flags=re.MULTILINE))
    assert comments == len({(c.file, c.line) for c in claims() if c.statement})
    whole = [c for c in claims() if not c.statement and c.part == "" and c.text != "scalar"]
    assert docstrings == len(whole)
    assert comments > 60
    assert docstrings > 40


def wrong_versions(claim: Claim) -> list[tuple[int, int, str]]:
    """(start, end, new text) within the claim's line: wrong shapes or number types in its place."""
    start, end = claim.column, claim.column + len(claim.text)
    if claim.text == "scalar":
        return [(start, end, "(width)  ")]
    sizes = [size.strip() for size in claim.text[1:-1].rstrip(",").split(",")]
    shapes = [[*sizes, "7"], *([sizes[:-1]] if len(sizes) > 1 and sizes[0] != "..." else [])]
    for place, size in enumerate(sizes):
        if size == "...":
            continue
        others = [other for other in SIZES if other != size]
        others += [f"2*{size}"] if size in SIZES else [str(int(size) + 1)] if size.isdigit() else []
        shapes += [[*sizes[:place], other, *sizes[place + 1 :]] for other in others]
        if place and sizes[place - 1] not in ("...", size):
            shapes.append([*sizes[: place - 1], size, sizes[place - 1], *sizes[place + 1 :]])
    return [(start, end, f"({', '.join(shape)}{',' * (len(shape) == 1)})") for shape in shapes]


@cache
def needed(file: str, line: int) -> frozenset[int]:
    """Lines of the function a line stands in and of the file's classes: the rest is not read again and again."""
    nodes = [node for node in ast.parse(sources()[file]).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    spans = [range(node.lineno, (node.end_lineno or 0) + 1) for node in nodes]
    kept = [span for node, span in zip(nodes, spans, strict=True) if line in span or isinstance(node, ast.ClassDef)]
    return frozenset(number for span in kept for number in span)


def around(claim: Claim, source: str) -> str:
    """A claim's file with every line blank that it does not need."""
    lines = needed(claim.file, claim.line)
    return "\n".join(text if number in lines else "" for number, text in enumerate(source.split("\n"), 1))


def planted(claim: Claim, start: int, end: int, text: str) -> str:
    lines = sources()[claim.file].split("\n")
    line = lines[claim.line - 1]
    lines[claim.line - 1] = line[:start] + text + line[end:]
    return "\n".join(lines)


@pytest.mark.parametrize("file", sampled((path.name for path in sorted(FOLDER.glob("[a-z]*.py"))), 4))
def test_every_planted_wrong_shape_is_noticed(file: str) -> None:
    """If this failed, some shape comment could be wrong and pass.

    For every claim: a size added, one left out, each size put in place of each, doubled, and neighbours exchanged.
    A changed comment changes nothing that runs (asserted), so each is held against the shapes watched once.
    """
    unnoticed = []
    elsewhere = [claim for claim in claims() if claim.kind == "field" and claim.file != file]
    for claim in read(file, sources()[file]).claims:
        original = read(file, around(claim, sources()[file]))
        mine = [call for call in calls() if call.file == file or claim.kind == "field"]
        touched = [call for call in mine if call.function == claim.function] or mine
        for start, end, text in wrong_versions(claim):
            changed = read(file, around(claim, planted(claim, start, end, text)))
            assert changed.code == original.code
            held = changed.claims + elsewhere
            if not any(disagreements(held, [call], CONFIG_SIZES)[0] for call in touched):  # the first tells of most
                unnoticed.append(f"{claim}: {text}")
    assert not unnoticed, "\n".join(unnoticed)


def test_planted_wrong_number_types_are_noticed() -> None:
    """If this failed, a comment could call float16 scales int8."""
    typed = [claim for claim in claims() if claim.types]
    assert len(typed) >= 8
    for claim in typed:
        line = sources()[claim.file].split("\n")[claim.line - 1]
        tail = line[claim.column + len(claim.text) :]
        for name in claim.types:
            tail = re.sub(
                rf"\b{name}\b", next(other for other in ("int32", *NUMBER_TYPES) if other != name), tail, count=1
            )
        changed = read(claim.file, planted(claim, claim.column + len(claim.text), len(line), tail))
        wrong, _ = disagreements(changed.claims, [call for call in calls() if call.file == claim.file], CONFIG_SIZES)
        assert wrong, str(claim)


def test_modified_modules_are_run_and_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, the check would look at something other than the modules that run.

    A copy of the whole reference, a wrong shape planted in each file, is loaded under another name, run and watched.
    """
    copy = tmp_path / "planted_shapes"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    last = {claim.file: claim for claim in claims()}
    for file, claim in last.items():
        start, end, text = wrong_versions(claim)[0]
        (copy / file).write_text(planted(claim, start, end, text))
    monkeypatch.syspath_prepend(tmp_path)
    seen = watch(copy, lambda: run_everything("planted_shapes"))
    found = [claim for path in sorted(copy.glob("*.py")) for claim in read(path.name, path.read_text()).claims]
    wrong, _ = disagreements(found, seen, CONFIG_SIZES)
    assert {line.split(" ")[0] for line in wrong} == {f"{claim.file}:{claim.line}" for claim in last.values()}


def test_code_that_no_longer_fits_its_comment_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, the code could change its shapes and leave the comments behind."""
    copy = tmp_path / "planted_code"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text, right = (copy / "pooling.py").read_text(), "return states[-1]  #"
    assert right in text
    (copy / "pooling.py").write_text(text.replace(right, "return states[-1:]  #"))
    monkeypatch.syspath_prepend(tmp_path)
    seen = watch(copy, lambda: run_forward("planted_code"))
    found = [claim for path in sorted(copy.glob("*.py")) for claim in read(path.name, path.read_text()).claims]
    assert any("pooling.py" in line for line in disagreements(found, seen, CONFIG_SIZES)[0])


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    for row in x:  # (tokens, width)\n        pass\n",
        "def f(x):\n    y = x  # see (tokens, width)\n",
        "# (tokens, width)\n",
        'def f(x):\n    """Turns (tokens, width) into one."""\n',
    ],
)
def test_a_shape_that_cannot_be_checked_is_refused(source: str) -> None:
    """If this failed, a shape could hide where nothing is compared with it."""
    with pytest.raises(UnclaimedError):
        read("f.py", source)


def test_a_shape_on_code_that_does_not_run_is_reported() -> None:
    """If this failed, comments on dead code would count as executed."""
    text = sources()["quantize.py"].replace(
        "    return signed.reshape", "    if not len(signed):\n        n = 1  # (n)\n    return signed.reshape"
    )
    found = read("quantize.py", text).claims
    _, used = disagreements(found, [call for call in calls() if call.file == "quantize.py"], CONFIG_SIZES)
    assert any(claim.subject == "n" and claim.kind == "local" for claim in set(found) - used)
