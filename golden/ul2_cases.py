"""Write golden/ul2/cases.json from texts whose spans are drawn by hand, in brackets. Run: python golden/ul2_cases.py"""

import json
from itertools import accumulate
from pathlib import Path

FILE = Path(__file__).parent / "ul2" / "cases.json"
MODES, SENTINELS = {"R": 6, "X": 8, "S": 7}, [9, 10, 12]
DRAWN = {
    "r3-15": "ab[cdef]ghijklmnopqrstuvwxyzABCD[E]",
    "x3-50": "a[bcd]ef[gh]ijkl[mno]",
    "x64-15": "a[b]",
    "s-25": "aaaabaaa[ab]",
}


def case(name: str, drawn: str) -> dict:
    parts = drawn[:-1].replace("]", "[").split("[")
    ids, inputs, targets = [], [2, MODES[name[0].upper()]], []
    for number, part in enumerate(parts):
        letters, mark = [ord(letter) - 50 for letter in part], SENTINELS[number // 2]
        ids += letters
        inputs += [mark] if number % 2 else letters
        targets += [mark, *letters] if number % 2 else []
    cuts = [[*accumulate(map(len, parts[side::2]))][:-1] for side in (0, 1)]
    return {"denoiser": name, "ids": ids, "cuts": cuts, "inputs": [*inputs, 1], "targets": [*targets, 1]}


def content() -> str:
    head = {"bos": 2, "eos": 1, "modes": MODES, "sentinels": SENTINELS}
    return json.dumps(head | {"cases": [case(*one) for one in DRAWN.items()]}, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    FILE.write_text(content())
