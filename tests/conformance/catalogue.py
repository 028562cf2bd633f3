"""Write spec/defects.md from the catalogue and the golden manifests. Run: python tests/conformance/catalogue.py"""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from refembed.conformance.defects import CONTROLS, DEFECTS
from refembed.conformance.suite import PRECISIONS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "spec" / "defects.md"
FAMILIES = {
    "A": "Direction of attention",
    "B": "Window and layer pattern",
    "C": "Padding and batches",
    "D": "Pooling, dense head, output",
    "E": "Prompts and tokens",
    "F": "Inner arithmetic",
    "G": "Precision and backends",
}
HEAD = """# Known mistakes

What ports of EmbeddingGemma have really got wrong. This page is written by `python tests/conformance/catalogue.py` from
`refembed/conformance/defects.py`, where each entry is also a small change of the reference; `refembed verify` names an
entry when a port gives that entry's own vectors. Lengths are the released model's; the twin's window is 8 where they
say 256.

Where it was seen: **R** reported by somebody; **C** read in a port's own code, not run; **N** reported for a
neighbouring model that shares the code path; **M** measured with the real weights. Threads may have been fixed since.

The numbers say how far the mistake lies from the truth, in units of the error a right port is allowed, at the case that
shows it best. 3 or more is seen; below 3 (in brackets) that precision's contract cannot see it.
"""


def manifests() -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text()) for path in sorted((ROOT / "golden").glob("*/manifest.json"))
    }


def shown(ratio: float | str) -> str:
    if ratio == "infinite":
        return "infinite"
    return f"{float(ratio):,.0f}" if float(ratio) >= 3 else f"({float(ratio):.2g})"


def page() -> str:
    suites = {name: manifest for name, manifest in manifests().items() if manifest.get("defects")}
    lines = [HEAD]
    for family, defects in groupby(DEFECTS, key=lambda defect: defect.family[0]):
        lines.append(f"## {family}. {FAMILIES[family]}\n")
        for defect in defects:
            seen = "nowhere yet" if defect.reported == "-" else defect.reported
            lines += [
                f"### {defect.id}\n",
                f"{defect.family}: {defect.title}. What users see: {defect.effect}. Seen in: {seen}. "
                f"Least input that shows it: {defect.exposed}. What is right: "
                f"[{defect.requirement}]({defect.chapter}#{defect.requirement.lower()}).\n",
                "| suite | " + " | ".join(PRECISIONS) + " | best case |",
                "| --- |" + " --- |" * (len(PRECISIONS) + 1),
            ]
            for name, manifest in suites.items():
                entry = manifest["defects"][defect.id]["separation"]
                cells = " | ".join(shown(entry[precision]["ratio"]) for precision in PRECISIONS)
                lines.append(f"| {name} | {cells} | {entry['float32']['case']} |")
            lines.append("")
    lines += [
        "## Changes that must not matter\n",
        "These leave the final vector as it is, rounding apart. A checker must say that it cannot tell them apart, and "
        "never call them mistakes.\n",
        *(f"- {control}" for control in CONTROLS),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
