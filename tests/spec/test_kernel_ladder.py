"""spec/kernels: every rung of the ladder against the one below and against the truth, and a page that shows the rungs.

The truth is NumPy's product in float64, or in whole numbers. A float32 number summed from n products, in any order,
with fused multiply-adds or without, is off by at most n u / (1 - n u) times the sum of their magnitudes, u = 2^-24.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
from hypothesis import example, given, settings
from hypothesis import strategies as some

pytest.importorskip("numba", reason="the ladder of kernels needs Numba: pip install '.[numba]'")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "spec" / "kernels"))
import byte_rungs
import float_rungs
import ladder
from refembed_numba import matmul
from rung import Machine, aligned
from test_chapters import broken_links, fences, prose, run_examples

FOLDER = Path(ladder.__file__).parent
PAGE = FOLDER / "README.md"
SOURCES = [file.read_text() for folder in (FOLDER, Path(matmul.__file__).parent) for file in folder.glob("*.py")]
MARKED = re.compile(r"<!-- ladder -->\n\n(.*?)\n\n<!-- end of ladder -->", re.DOTALL)
SHAPES = some.tuples(some.integers(1, 20), some.integers(1, 90), some.integers(1, 150))  # rows, depth, outputs
LONG_SHAPES = some.tuples(some.integers(1, 20), some.integers(1, 300), some.integers(1, 150))
FLOAT = {rung.name: rung for rung in float_rungs.LADDER}
BYTE = {rung.name: rung for rung in byte_rungs.LADDER}
ONE = Machine(add=1, update=1, second=1, third=1, memory=1, peak=1)


def climb(rungs, a, w):
    """Each rung's product, W standing second of three layers. The first layer's is in C before, and must not show."""
    found = {}
    for name, rung in rungs.items():
        run, c = rung.ready(a, np.stack([w + 1, w, w - 1]))
        run(0)
        run(1)
        found[name] = c.copy()
    return found


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def growth(terms):
    """n u / (1 - n u), with room for float64's own rounding, 2^-29 of float32's."""
    return terms * 2.0**-24 / (1 - terms * 2.0**-24) * (1 + 1e-6)


# -------------------------------------------------------------------------------------------------------------- float32
@settings(max_examples=40, deadline=None)
@given(SHAPES, some.integers(0, 99))
@example((18, 768, 1280), 0)
@example((13, 1152, 768), 0)
@example((101, 40, 70), 0)  # more rows than the backend takes at a time
def test_float_rungs(shape, seed):
    """Wrong if a rung leaves out or doubles a product, or sums in another order than the rung below."""
    rows, depth, outputs = shape
    a, w = normal(seed, rows, depth), normal(seed + 1, outputs, depth)
    found = climb(FLOAT, a, w)
    a, w = a.astype(np.float64), w.astype(np.float64)
    bound = growth(depth) * (np.abs(a) @ np.abs(w).T)
    for name, c in found.items():
        assert c.shape == (rows, outputs), name
        assert (np.abs(c - a @ w.T) <= bound).all(), name
    for below, name in (("naive", "reordered"), ("reordered", "blocked"), ("blocked", "packed")):
        np.testing.assert_array_equal(found[name], found[below], err_msg=name)
    assert (np.abs(found["tile"].astype(np.float64) - found["packed"]) <= 2 * bound).all()


@settings(max_examples=40, deadline=None)
@given(SHAPES, some.integers(0, 99))
def test_float_rungs_on_whole_numbers(shape, seed):
    """Wrong if a rung is off by anything where nothing has to be rounded."""
    rows, depth, outputs = shape
    rng = np.random.default_rng(seed)
    a, w = rng.integers(-9, 10, (rows, depth)), rng.integers(-9, 10, (outputs, depth))
    for name, c in climb(FLOAT, a.astype(np.float32), w.astype(np.float32)).items():
        np.testing.assert_array_equal(c, a @ w.T, err_msg=name)


# ----------------------------------------------------------------------------------------------------------------- int8
def levels_of(x, block=matmul.BLOCK):
    """Levels (rows, blocks, block) as whole numbers and scales (rows, blocks), by code of the test's own.

    To the nearest; what float32 takes for half-way goes up, as in the backend, so that all have the same levels.
    """
    filled = np.pad(x, ((0, 0), (0, -x.shape[1] % block))).reshape(len(x), -1, block)
    largest = np.max(np.abs(filled), axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        raised = np.nan_to_num(filled * (np.float32(127) / largest)) + np.float32(128.5)
    return np.trunc(raised).astype(np.int64) - 128, (largest[..., 0] / np.float32(127)).astype(np.float64)


@settings(max_examples=40, deadline=None)
@given(LONG_SHAPES, some.integers(0, 99))
@example((18, 768, 1280), 0)
@example((13, 1152, 768), 0)
@example((101, 40, 70), 0)  # more rows than the backend takes at a time
def test_byte_rungs(shape, seed):
    """Wrong if a block gets another's scale, or a rung's arithmetic between blocks is not float32's."""
    rows, depth, outputs = shape
    a, w = normal(seed, rows, depth), normal(seed + 1, outputs, depth)
    found = climb(BYTE, a, w)
    (a, a_scales), (w, w_scales) = levels_of(a), levels_of(w)
    terms = np.einsum("ibk,jbk,ib,jb->ijb", a, w, a_scales, w_scales, optimize=True)
    bound = growth(terms.shape[-1] + 2) * np.abs(terms).sum(-1)  # two more: scale by scale, and by the sum
    for name, c in found.items():
        assert c.shape == (rows, outputs), name
        assert (np.abs(c - terms.sum(-1)) <= bound).all(), name
    np.testing.assert_array_equal(found["packed"], found["naive"])
    assert (np.abs(found["tile, shifts"].astype(np.float64) - found["packed"]) <= 2 * bound).all()
    np.testing.assert_array_equal(found["tile"], found["tile, shifts"])


@settings(max_examples=40, deadline=None)
@given(LONG_SHAPES, some.integers(0, 99), some.sampled_from([1, 127]))
def test_byte_rungs_on_whole_numbers(shape, seed, least):
    """Wrong if one unit of one whole sum is lost, with the instruction or without, at the largest levels too.

    127 opens every block, so every scale is 1; 300 products of at most 127^2 stay below 2^24: float32 rounds nothing.
    """
    rows, depth, outputs = shape
    rng = np.random.default_rng(seed)
    a, w = (rng.integers(least, 128, (n, depth)) * rng.choice([-1, 1], (n, depth)) for n in (rows, outputs))
    a[:, :: matmul.BLOCK] = w[:, :: matmul.BLOCK] = 127
    for name, c in climb(BYTE, a.astype(np.float32), w.astype(np.float32)).items():
        np.testing.assert_array_equal(c, a @ w.T, err_msg=name)


def test_byte_rungs_on_zeros():
    """Wrong if a block of zeros, whose scale is 0, divides by it."""
    for name, c in climb(BYTE, np.zeros((7, 70), np.float32), normal(0, 65, 70)).items():
        np.testing.assert_array_equal(c, 0, err_msg=name)


# ------------------------------------------------------------------------------------------------------------- the page
def test_the_last_rung_is_the_backends():
    """Wrong if the ladder ends at a copy of the kernel in use."""
    assert float_rungs.multiply is matmul.multiply
    assert byte_rungs.tiles is float_rungs.tiles
    assert ladder.float_tile.__module__ == "refembed_numba.instructions"


def skeleton(page, lanes):
    """The tables of a page with their numbers taken out, and a tile's width in registers, which hold so many numbers
    where the page was made: all that does not change from run to run, or with the machine.
    """
    lines = [
        re.sub(r"^(\| \d+ x )(\d+)", lambda found: f"{found[1]}{int(found[2]) / lanes:g} registers", line)
        for line in page.splitlines()
        if line.startswith("|")
    ]
    return [re.sub(r"(?<=\| )[\d.]+(?= [|%])", "n", line) for line in lines]


def test_readme_has_the_commands_tables():
    """Wrong if the page shows rungs, shapes or columns that the command does not print, or lacks a number."""
    found = {
        precision: {
            (product, rows, rung.name): 1.0 for product in ladder.PRODUCTS for rows in ladder.ROWS_OF for rung in rungs
        }
        for precision, rungs in ladder.LADDERS.items()
    }
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        printed = ladder.pages(ONE, found, dict.fromkeys(ladder.TILES, 1.0))
    (tables,) = MARKED.findall(PAGE.read_text())
    assert skeleton(tables, 16) == skeleton(printed, matmul.FLOAT_PATH.lanes)
    assert len(skeleton(tables, 16)) > 60


def test_a_table_by_hand():
    """Wrong if a cell stands under another's head, or a share is not of the same shape's BLAS."""
    rates = {"BLAS": 200.0, "naive": 4.04, "reordered": 40.0, "blocked": 50.0, "packed": 100.0, "tile": 220.0}
    readings = {("down", rows, name): rate / rows for name, rate in rates.items() for rows in (1, 2)}
    machine = Machine(add=0.5, update=160, second=100, third=60, memory=12, peak=240)
    assert ladder.ladder_table("down", "float32", readings, machine).splitlines() == [
        "| float32, down: 1152 -> 768 | 1 rows: at most | came out | of BLAS | 2 rows: at most | came out | of BLAS |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| BLAS | 6.0 | 200 | 100 % | 12 | 100 | 100 % |",
        "| naive | 4.0 | 4.0 | 2 % | 4.0 | 2.0 | 2 % |",
        "| reordered | 30 | 40 | 20 % | 30 | 20 | 20 % |",
        "| blocked | 6.0 | 50 | 25 % | 12 | 25 | 25 % |",
        "| packed | 6.0 | 100 | 50 % | 12 | 50 | 50 % |",
        "| tile | 6.0 | 220 | 110 % | 12 | 110 | 110 % |",
    ]


def test_limits_of_int8_by_hand():
    """Wrong if a prediction of the int8 tables is another than README.md derives."""
    machine = Machine(add=0.5, update=160, second=100, third=60, memory=12, peak=240)
    assert byte_rungs.plain(machine, 100) == 240
    assert byte_rungs.plain(machine, 9) == pytest.approx(9 * 2 / 1.0625 * 12)
    assert byte_rungs.instruction(machine, 100) == pytest.approx(4 * 240 * 16 / 18)
    assert byte_rungs.instruction(machine._replace(second=50), 100) == pytest.approx(12 * 50)
    assert byte_rungs.instruction(machine, 9) == byte_rungs.plain(machine, 9)


def test_the_command(monkeypatch, capsys):
    """Wrong if the command does not measure every rung it prints. On toy sizes: its numbers mean nothing here."""
    monkeypatch.setattr(ladder, "PRODUCTS", {"toy": (70, 100)})
    monkeypatch.setattr(ladder, "CACHES", dict.fromkeys(ladder.CACHES, 2**12))
    monkeypatch.setattr(ladder, "TILES", [(1, 1)])
    monkeypatch.setattr(ladder, "setting", lambda: "a toy")  # refuses where BLAS has several threads
    monkeypatch.setattr(ladder, "EFFORT", 2**12)
    ladder.main(["--markdown", "--rows", "1", "7", "--rounds", "1"])
    printed = capsys.readouterr().out
    for rung in (*float_rungs.LADDER, *byte_rungs.LADDER):
        (*_, line) = re.findall(rf"^\| {rung.name} \|.*$", printed, re.MULTILINE)
        rates = [float(cell) for cell in re.findall(r"(?<=\| )[\d.]+(?= )", line)]
        assert len(rates) == 6
        assert min(rates) >= 0


def test_blas_with_more_threads_is_refused(monkeypatch):
    """Wrong if one thread is compared with several."""
    pools = [{"user_api": "blas", "num_threads": 2}]
    monkeypatch.setattr(pytest.importorskip("threadpoolctl"), "threadpool_info", lambda: pools)
    with pytest.raises(SystemExit, match="OPENBLAS_NUM_THREADS=1"):
        ladder.setting()


@pytest.mark.parametrize("shape", [(3, 5), (1,), (2, 3, 7)])
def test_arrays_begin_where_a_cache_line_does(shape):
    """Wrong if a rung is slower or faster by where its numbers happened to lie."""
    for dtype in (np.float32, np.int8):
        array = aligned(shape, dtype)
        assert array.ctypes.data % 64 == 0
        assert (array.shape, array.dtype) == (shape, dtype)


def test_page_is_true():
    """Wrong if an example gives another output, a link leads nowhere, or a line of code shown is not the code."""
    text = PAGE.read_text()
    ran, report = run_examples("kernels", text)
    assert report == ""
    assert ran >= 5
    assert broken_links(PAGE) == []
    assert text.count("```") == 2 * len(fences(text))
    assert ">>>" not in prose(text)
    shown = [block for language, block in fences(text) if language == "py"]
    code = ["\n".join(line.strip() for line in source.splitlines()) for source in SOURCES]
    assert len(shown) >= 5
    for block in shown:
        lines = "\n".join(line.strip() for line in block.splitlines())
        assert any(lines in source for source in code), block
