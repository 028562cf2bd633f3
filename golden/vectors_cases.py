"""Write golden/vectors/cases.json: embeddings in 8 bits and in one, by hand and by exact fractions.

Run: python golden/vectors_cases.py
"""

import json
from fractions import Fraction
from pathlib import Path

FILE = Path(__file__).parent / "vectors" / "cases.json"
# Numbers that float32 holds exactly. With a largest magnitude of 127/64 a level is 64 times its number.
CASES = {
    "ordinary": [0.5, -0.25, 0.125, -1.984375, 0.75, 1.0, -1.5, 0.046875],
    "ties": [1.984375, 0.0078125, 0.0234375, 0.0390625, -0.0078125, -0.0234375, 1.0, -1.0],
    "zeros": [0.0, -0.0, 1.984375, 0.0, -1.984375, 0.0, 0.0, 0.0],
    "nothing": [0.0] * 8,
    "two-bytes": [1, -1, 1, 1, -1, -1, 1, -1, -1, 1, -1, -1, 1, 1, -1, 1],
    "two-other-bytes": [1, 1, 1, -1, -1, -1, 1, -1, -1, -1, -1, 1, 1, 1, 1, 1],
    "small": [0.49609375, -0.25, 0.125, 0.0625, -0.03125, 0.4375, -0.375, 0.00390625],
    "largest-is-below-zero": [0.0, 0.25, -4.0, 1.0, 2.0, -2.0, 3.0, -3.0],
}


def level(number: float, largest: Fraction) -> int:
    """Python rounds a fraction's ties to even."""
    return round(Fraction(number) * 127 / largest) if largest else 0


def byte(numbers: list[float]) -> int:
    return int("".join("1" if number > 0 else "0" for number in numbers), 2)


def cosine(first: list[float], second: list[float]) -> float:
    """Of the vectors of 1 and -1, as counted."""
    same = sum((a > 0) == (b > 0) for a, b in zip(first, second, strict=True))
    return float(Fraction(2 * same - len(first), len(first)))


def case(name: str, numbers: list[float]) -> dict:
    largest = max(abs(Fraction(number)) for number in numbers)
    return {
        "case": name,
        "embedding": numbers,
        "int8": [level(number, largest) for number in numbers],
        "binary": [byte(numbers[at : at + 8]) for at in range(0, len(numbers), 8)],
        "signs": [1 if number > 0 else -1 for number in numbers],
    }


def content() -> str:
    similarity = {
        size: [[cosine(first, second) for second in alike] for first in alike]
        for size in (8, 16)
        for alike in [[numbers for numbers in CASES.values() if len(numbers) == size]]
    }
    cases = ",\n ".join(json.dumps(case(*one)) for one in CASES.items())
    return f'{{"cases": [\n {cases}\n],\n"binary_similarity": {json.dumps(similarity)}}}\n'


if __name__ == "__main__":
    FILE.write_text(content())
