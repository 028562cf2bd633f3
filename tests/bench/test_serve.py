"""The load on the server can fail: a fake server's faults are counted as what they are, and its death is survived."""

import random
import sys
from collections import Counter
from pathlib import Path
from threading import Thread

import fake_server
import pytest
import serve
from clients import MOST, Clients, one_pass, requests

SPEC = {"model": "fake", "texts": fake_server.TEXTS, "tokens": [1] * 20, "alone": [0, 5], "clients": 4, "bound": 1e-6}


@pytest.mark.parametrize(
    ("fault", "counted"),
    [
        ("none", set()),
        ("swapped", {"swapped"}),
        ("lost", {"lost"}),
        ("wrong", {"wrong"}),
        ("NaN", {"wrong"}),
        ("short", {"lost"}),
    ],
)
def test_what_a_server_gets_wrong_is_counted(fault: str, counted: set[str]) -> None:
    """Wrong if a swapped, a lost or a wrong vector passes for a right one, or a right one for none."""
    with fake_server.server(fault) as running:
        Thread(target=running.serve_forever).start()
        url = f"http://127.0.0.1:{running.server_port}"
        found = Clients({**SPEC, "url": url, "seconds": 0.2, "patience": 0}, fake_server.VECTORS).run()
        running.shutdown()
    assert {name for name, count in found["counts"].items() if count} - {"exact"} == counted
    assert found["said"] if counted else found["counts"]["exact"] == sum(texts for _, _, texts, _, _ in found["done"])


def test_a_killed_server_loses_nothing() -> None:
    """Wrong if the clients of a server that is killed under load give up, or it is not killed at all."""
    command = [sys.executable, str(Path(fake_server.__file__)), "none"]
    served = serve.Served("fake", command, bound=0, kills=1)
    seconds, alone = 3, {"a": 0, "b": 5}
    with serve.running([served]):
        served.turns.append(serve.turn(served, {**SPEC, "seconds": seconds}, fake_server.VECTORS))
    served.turns[0]["library"] = [(1, 1), (1, 1)]
    row = serve.summary(served, seconds, alone)
    assert not serve.missed(row, list(alone), served.kills)
    assert served.process.poll() is not None
    for worse in ({"again": 0}, {"killed": 0}, {"lost": 1}):
        assert len(serve.missed(row | worse, list(alone), served.kills)) == 1
    assert "again" in serve.table({"fake": row})


def test_bars_are_missed() -> None:
    """Wrong if a server that is slow, uneven, or grows passes."""
    good = dict.fromkeys(("wrong", "lost", "swapped", "miscounted"), 0) | {"requests": 1, "a, p95/p50": 2.9}
    good |= {"of the library's rate": 0.86, "MiB, first quarter": 100, "MiB, last quarter": 104}
    assert not serve.missed(good, ["a"], kills=0)
    for worse in (
        {"lost": 1},
        {"requests": 0},
        {"a, p95/p50": 3.0},
        {"of the library's rate": 0.84},
        {"MiB, last quarter": 106},
    ):
        assert len(serve.missed(good | worse, ["a"], kills=0)) == 1


def test_each_pass_asks_for_the_same_texts() -> None:
    """Wrong if what the server embeds is not what the library's rate is measured on, or no request mixes texts."""
    deck, wanted = requests(20, [0, 5], random.Random(1)), Counter(one_pass(20, [0, 5]))
    for _ in range(3):
        found: Counter[int] = Counter()
        while found.total() < wanted.total():
            texts = next(deck)
            assert 1 <= len(texts) <= MOST
            found.update(texts)
        assert found == wanted
