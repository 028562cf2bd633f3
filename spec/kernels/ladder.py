"""Climb the ladder of kernels on this machine, and print what README.md shows.

OPENBLAS_NUM_THREADS=1 python spec/kernels/ladder.py [--rows N ...] [--rounds N] [--markdown]

For each product of a layer and each number of rows: what every rung cannot pass (the count in README.md with this
core's own rates in it), the median rate that came out, and its share of NumPy's BLAS. One thread; the rungs take
turns; W comes from memory, as in a forward, where the other layers' weights have passed through the caches since it was
last used. --markdown prints the tables alone, as they stand in README.md between its two markers.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version

import byte_rungs
import float_rungs
import numpy as np
from float_rungs import backend_matrix
from llvmlite import binding
from numba import njit
from numpy.typing import NDArray
from refembed_numba.instructions import ROWS, float_tile
from refembed_numba.matmul import BYTE_PATH, FLOAT_PATH, FLOATS, PANEL
from rung import Machine, Rung, aligned, f32, placed

from refembed.reference import Config

CONFIG = Config()
PRODUCTS = {  # name -> depth, outputs
    "queries, keys and values": (CONFIG.width, (CONFIG.heads + 2 * CONFIG.key_heads) * CONFIG.head),
    "gate and up": (CONFIG.width, 2 * CONFIG.mlp),
    "down": (CONFIG.mlp, CONFIG.width),
}
ROWS_OF = [18, 4 * 122, 512]  # a query, four documents, a full pass
CACHES = {"second": 2**18, "third": 2**23, "memory": 2**28}  # bytes that only this level holds
LAYERS = 3
NEAREST = 2**14  # bytes that the nearest cache holds with room to spare
EFFORT = 2**24  # bytes or more read for each reading of a rate
TILES = [(1, 4), (2, 4), (4, 4), (6, 4), (7, 4), (8, 4), (8, 3), (12, 2)]  # rows, and registers of columns
TILE_SHAPE = 336, CONFIG.width, CONFIG.width  # rows, depth, outputs: a multiple of every tile
Readings = dict[tuple[str, int, str], float]  # (product, rows, rung) -> 10^9 operations a second


# ----------------------------------------------------------------------------------------------------- what a core has
@njit
def chain(x, times):
    """Additions that wait for each other."""
    total = f32(0)
    for _ in range(times):
        for k in range(len(x)):
            total += x[k]
    return total


@njit
def update(x, times):
    for n in range(times):
        for k in range(len(x)):
            x[k] += f32(n)


@njit
def read(x, times):
    """Whole numbers add in any order, so this waits for nothing but the numbers."""
    total = 0
    for _ in range(times):
        for k in range(len(x)):
            total += x[k]
    return total


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def least(run: Callable[[], object]) -> float:
    """The least of some readings: what the core can do when nothing disturbs it."""
    run()
    return min(seconds(run) for _ in range(25))


def filled(size: int) -> NDArray[np.int64]:
    """So many bytes of memory. Zeros never written to would all be one page, which stays in the nearest cache."""
    numbers = aligned((size // 8,), np.int64)
    numbers[:] = 1
    return numbers


def measure() -> Machine:
    """This core's rates."""
    near = aligned((NEAREST // 4,), f32)
    times = max(1, EFFORT // NEAREST)
    rates = {}
    for level, size in CACHES.items():
        numbers, again = filled(size), max(1, EFFORT // size)
        rates[level] = again * size / least(partial(read, numbers, again)) / 1e9
    return Machine(
        add=least(partial(chain, near, times)) / (times * len(near)) * 1e9,
        update=NEAREST * times / least(partial(update, near, times)) / 1e9,
        peak=tile_rate(ROWS, PANEL // FLOAT_PATH.lanes, ROWS, 64, PANEL, 2000),
        **rates,
    )


# --------------------------------------------------------------------------------------------------- shapes of a tile
def tile_product(rows: int, vectors: int) -> Callable[..., None]:
    """The product by a tile of another shape."""
    panel = FLOAT_PATH.lanes * vectors
    tile = float_tile(FLOAT_PATH._replace(rows=rows, columns=panel))

    @njit
    def product(a, numbers, c, all_rows, depth, columns, times):
        for _ in range(times):
            for p in range(columns // panel):
                for i in range(0, all_rows, rows):
                    b_start, c_start = p * depth * panel, i * columns + p * panel
                    tile(a, i * depth, depth, numbers, b_start, panel, c, c_start, columns, depth, b_start)

    return product


def tile_rate(rows: int, vectors: int, all_rows: int, depth: int, outputs: int, times: int) -> float:
    """10^9 operations a second of a product (all_rows, depth) x (depth, outputs) by tiles of one shape."""
    matrix = backend_matrix(np.ones((1, outputs, depth), f32), FLOATS, FLOAT_PATH.lanes * vectors)
    a, c = placed(np.ones(all_rows * depth, f32)), aligned((all_rows * matrix.columns,), f32)
    run = partial(tile_product(rows, vectors), a, matrix.numbers, c, all_rows, depth, matrix.columns, times)
    return times * 2 * all_rows * depth * outputs / least(run) / 1e9


# --------------------------------------------------------------------------------------------------------- the ladders
def climb(
    ladder: Sequence[Rung], rows: int, shape: tuple[int, int], rounds: int, other: NDArray[np.int64]
) -> list[float]:
    """Each rung's median rate, 10^9 operations a second. `other` is read before each, to empty the caches of W.

    The first layer is not timed: after it the code, A and C are at hand, as in a forward.
    """
    rng, (depth, outputs) = np.random.default_rng(0), shape
    a, w = rng.standard_normal((rows, depth), f32), rng.standard_normal((LAYERS, outputs, depth), f32)
    runs = [rung.ready(a, w)[0] for rung in ladder]
    spent: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run(0)  # compiles
    for _ in range(rounds):
        for run, times in zip(runs, spent, strict=True):
            read(other, 1)
            run(0)
            times += [seconds(partial(run, layer)) for layer in range(1, LAYERS)]
    return [2 * rows * depth * outputs / statistics.median(times) / 1e9 for times in spent]


LADDERS = {"float32": float_rungs.LADDER, "int8": float_rungs.LADDER[:1] + byte_rungs.LADDER}


def climb_all(rows_of: Sequence[int], rounds: int) -> dict[str, Readings]:
    other = filled(CACHES["memory"])
    found: dict[str, Readings] = {precision: {} for precision in LADDERS}
    for precision, ladder in LADDERS.items():
        for name, shape in PRODUCTS.items():
            for rows in rows_of:
                rates = climb(ladder, rows, shape, rounds, other)
                found[precision] |= {(name, rows, rung.name): rate for rung, rate in zip(ladder, rates, strict=True)}
    return found


# ------------------------------------------------------------------------------------------------------------ printing
def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(x: float) -> str:
    digits = 0 if x >= 10 else 1 if x >= 1 else 2
    return f"{x:.{digits}f}"


def machine_table(machine: Machine) -> str:
    """What a core offers, with the words of README.md."""
    meaning = {
        "add": "a float32 addition, until its sum can be added to: nanoseconds",
        "update": "sums in the nearest cache, read, added to and written back: GB/s",
        "second": "reading from the second cache (256 KiB): GB/s",
        "third": "reading from the third cache (8 MiB): GB/s",
        "memory": "reading from memory (256 MiB): GB/s",
        "peak": "the last rung's tile with its numbers in the nearest cache: GFLOP/s",
    }
    return table(["one core", "here"], [[words, number(getattr(machine, name))] for name, words in meaning.items()])


def ladder_table(name: str, precision: str, readings: Readings, machine: Machine) -> str:
    """One product: a line for each rung, three cells for each number of rows."""
    depth, outputs = PRODUCTS[name]
    rows_of = sorted({rows for _, rows, _ in readings})
    head = [f"{precision}, {name}: {depth} -> {outputs}"]
    for rows in rows_of:
        head += [f"{rows} rows: at most", "came out", "of BLAS"]
    lines = []
    for rung in LADDERS[precision]:
        line = [rung.name]
        for rows in rows_of:
            rate = readings[name, rows, rung.name]
            share = rate / readings[name, rows, "BLAS"]
            line += [number(rung.limit(machine, rows)), number(rate), f"{100 * share:.0f} %"]
        lines.append(line)
    return table(head, lines)


def tile_table(rates: dict[tuple[int, int], float]) -> str:
    """Shapes of the float32 tile."""
    rows, depth, outputs = TILE_SHAPE
    head = [f"tile ({rows} rows, {depth} -> {outputs})", "sums", "registers", "loads for each multiply-add", "GFLOP/s"]
    lines = []
    for (tall, wide), rate in rates.items():
        sums = tall * wide
        line = [
            f"{tall} x {FLOAT_PATH.lanes * wide}",
            sums,
            sums + wide + 1,
            f"{(tall + wide) / sums:.2f}",
            number(rate),
        ]
        lines.append([str(cell) for cell in line])
    return table(head, lines)


def setting() -> str:
    """The processor and the libraries, in a line."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    words = [f"{blas['name']} {blas['version']}"]
    with suppress(ImportError):  # the extra `threads`
        from threadpoolctl import threadpool_info

        for pool in threadpool_info():
            if pool["user_api"] == "blas":
                if pool["num_threads"] != 1:
                    raise SystemExit("BLAS has several threads, and the rungs have one: set OPENBLAS_NUM_THREADS=1")
                words.append(f"with kernels for {pool.get('architecture', 'an unknown CPU')}")
    return (
        f"{platform.machine()} {binding.get_host_cpu_name()}, {platform.system()}; Numba {version('numba')}, "
        f"NumPy {np.__version__}; BLAS: {' '.join(dict.fromkeys(words))}; "
        f"backend's paths {FLOAT_PATH.name} and {BYTE_PATH.name}."
    )


def pages(machine: Machine, found: dict[str, Readings], tiles: dict[tuple[int, int], float]) -> str:
    """All tables, as README.md has them."""
    parts = [setting(), machine_table(machine)]
    parts += [ladder_table(name, "float32", found["float32"], machine) for name in PRODUCTS]
    parts += [tile_table(tiles)]
    parts += [ladder_table(name, "int8", found["int8"], machine) for name in PRODUCTS]
    return "\n\n".join(parts)


def main(words: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, nargs="+", default=ROWS_OF, help="of A: tokens")
    arguments.add_argument("--rounds", type=int, default=5, help="of which the median is printed")
    arguments.add_argument("--markdown", action="store_true", help="nothing but the tables")
    given = arguments.parse_args(words)
    setting()  # refuses before the long work, not after
    machine = measure()
    tiles = {shape: tile_rate(*shape, *TILE_SHAPE, 4) for shape in TILES}
    text = pages(machine, climb_all(given.rows, given.rounds), tiles)
    print(text if given.markdown else f"10^9 operations a second; README.md explains each line.\n\n{text}")


if __name__ == "__main__":
    main()
