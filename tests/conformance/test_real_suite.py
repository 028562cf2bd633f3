"""golden/embeddinggemma-300m: refembed's backends with the real weights, and what checking costs without them."""

import json
import subprocess
import sys
from functools import cache

import pytest

from refembed.backend import find_backends
from refembed.cli import main
from refembed.conformance.defects import DEFECTS
from refembed.conformance.suite import SEEN, Suite, golden_folder, open_suite

NAME = "embeddinggemma-300m"
BACKENDS = [found.name for found in find_backends() if not found.why_not and found.name != "loopback"]  # that is numpy
MEASURED = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "refembed", *sys.argv[1:]], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, used.ru_maxrss / 1024, used.ru_utime + used.ru_stime)
"""


@cache
def suite() -> Suite:
    return open_suite(golden_folder(NAME))


@pytest.fixture
def vectors(tmp_path):
    """A file of right vectors."""
    file = tmp_path / "vectors.jsonl"
    rows = [{"case": case.id, "vectors": suite().vectors(case).tolist()} for case in suite().cases]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("levels", "cases"),
    [
        ("tokens,vectors", "prompt-*,distinct-*,batch-*"),
        pytest.param("tokens,vectors", "*", marks=pytest.mark.long),
        pytest.param("stages,laws", "prompt-*,distinct-*-reach-plus-one,batch-*", marks=pytest.mark.long),
        ("prompts", "prompt-*,dimensions-*,unrelated-*"),
    ],
)
def test_backends_conform_on_the_real_model(backend, levels, cases, weights, tmp_path, capsys):
    """Wrong if a backend does not give the released model's vectors, at every length, in every company."""
    file = tmp_path / "conformance.json"
    options = ["--suite", NAME, "--checkpoint", str(weights), "--levels", levels, "--cases", cases]
    assert main(["verify", "--backend", backend, *options, "--json", str(file)]) == 0, capsys.readouterr().out
    assert json.loads(file.read_bytes())["conforms"]
    assert not capsys.readouterr().err


def test_checking_needs_no_weights_and_little_else(vectors):
    """Wrong if the checking side takes more than a minute or 300 MiB for the real model's vectors."""
    argv = [sys.executable, "-c", MEASURED, "verify", "--suite", NAME, "--vectors", vectors]
    status, memory, seconds = map(
        float, subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    )
    assert status == 0
    assert memory < 300
    assert seconds < 60


def test_every_known_mistake_shows_on_the_real_model():
    """Wrong if the released model's vectors cannot tell some known mistake from the truth in float32."""
    separations = {defect.id: suite().separation(defect.id, "float32") for defect in DEFECTS}
    assert [id for id, bounds in separations.items() if bounds < SEEN] == []


def test_float16_is_refused_with_the_overflow(vectors, capsys):
    """Wrong if float16 is called an unknown word in place of a precision that cannot hold this model."""
    assert main(["verify", "--suite", NAME, "--vectors", str(vectors), "--precision", "float16"]) == 2
    said = capsys.readouterr().err
    overflow = suite().manifest["unsupported"]["float16"]
    assert overflow["largest"] > 65504
    assert f"{overflow['stage']} of case {overflow['case']} reaches {overflow['largest']:,.0f}" in said


def test_transformers_overflows_float16_where_it_is_said(weights):
    """Wrong if the released model stays within float16 at the case, stage and token that the manifest names."""
    import torch
    from transformers import AutoModel

    overflow = suite().manifest["unsupported"]["float16"]
    (case,) = [case for case in suite().cases if case.id == overflow["case"]]
    model = AutoModel.from_pretrained(weights, dtype=torch.float32).eval()
    kept = []
    layer = model.layers[int(overflow["stage"].split(".")[1])]
    layer.register_forward_hook(lambda module, given, result: kept.append(result))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(suite().tokens(case)[0])[None].long())
    row = kept[0][0, overflow["token"]]
    assert float(row.abs().max()) == pytest.approx(overflow["largest"], rel=1e-2)
    assert bool(row.half().isinf().any())
