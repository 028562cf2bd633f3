"""The page of the ablations and its plots, from the logs that are kept: python tests/bench/ablations_page.py

What the paper says, what came out and by which rule stands here; words about it are spec/ablations/page.md's.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ablations import BESIDE, EXPERTS, HELD, INT4, RUNS, TASKS, WIDTH
from forms import table

PAGE, TEMPLATE = RUNS.parent.with_suffix(".md"), RUNS.with_name("page.md")
Lines = Sequence[Mapping[str, Any]]  # of the log
Figures = Mapping[str, Sequence[Mapping[str, float]]]  # run -> of each seed, in their order, its figures
Terms = Mapping[tuple[str, str], float]  # (run, form) -> what its score counts
COLUMNS = {"mean": "", **{name: name for name in (*TASKS, HELD)}}  # heading -> figure, "" the mean over tasks


def figures_of(lines: Lines) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {}
    for line in sorted(lines, key=lambda line: line["seed"]):
        if line["figures"]:
            found.setdefault(line["run"], []).append(line["figures"])
    return found


# ----------------------------------------------------------------------------------------------------------- the rule
STUDENT = 2.920  # of Student's distribution with two degrees of freedom, as three seeds have: one in twenty lies above
AGREES, OPPOSES, OPEN = "agrees", "does not", "within the spread"


def verdict(differences: Sequence[float]) -> str:
    """Whether the mean of three seeds' differences, positive where they go the paper's way, is beyond their spread."""
    middle, bound = mean(differences), bound_of(differences)
    return AGREES if middle > bound else OPPOSES if middle < -bound else OPEN


def bound_of(differences: Sequence[float]) -> float:
    """How far from zero the mean of differences lies by chance alone, one time in ten."""
    return float(STUDENT * stdev(differences) / len(differences) ** 0.5)


def sums(figures: Figures, terms: Terms, task: str = "") -> list[float]:
    """What the terms add up to, of each seed; of "" as the mean over tasks. Empty where a run was not judged so."""
    if not task:
        of_tasks = [sums(figures, terms, one) for one in TASKS]
        return [mean(values) for values in zip(*of_tasks, strict=True)]
    keys = [(run, f"{task} {form}".strip(), weight) for (run, form), weight in terms.items()]
    if not all(key in row for run, key, _ in keys for row in figures[run]):
        return []
    seeds = range(len(figures[keys[0][0]]))
    return [sum(weight * figures[run][seed][key] for run, key, weight in keys) for seed in seeds]


# --------------------------------------------------------------------------------------------------------- the claims
@dataclass(frozen=True)
class Claim:
    """One thing said of the recipe.

    says    what is better
    paper   its figures, or how the paper has it where it gives none
    terms   add up to more than nothing where it is as said
    """

    says: str
    paper: str
    terms: Terms


def over(better: str, worse: str, form: str = "", other: str | None = None) -> dict[tuple[str, str], float]:
    """The one's score of a form less the other's, of the same where no `other` is named."""
    return {(better, form): 1.0, (worse, form if other is None else other): -1.0}


def loses_less(better: str, worse: str, form: str) -> dict[tuple[str, str], float]:
    """What the form costs the worse, less what it costs the better."""
    return {(better, form): 1.0, (better, ""): -1.0, (worse, form): -1.0, (worse, ""): 1.0}


USED, CLAIMED, NOT_SAID = "used", "claimed", "-"  # no figure; said in words; not compared
WORDS = {AGREES: "so here", OPPOSES: "the reverse"}  # of what the paper does not say
CLAIMS = {
    "initialisation": [
        Claim("encoder-decoder over decoder", "60.4 > 59.7", over("pairs", "decoder")),
        Claim("decoder over random", "59.7 > 45.2", over("decoder", "random")),
        Claim("encoder-decoder over decoder trained as long", NOT_SAID, over("pairs", "longer")),
    ],
    "pooling": [
        Claim("mean over attention", "60.4 > 60.2", over("pairs", "attention")),
        Claim("mean over first", "60.4 > 59.9", over("pairs", "first")),
        Claim("mean over last", "60.4 > 59.7", over("pairs", "last")),
    ],
    "souping": [
        Claim("soup over the mean of its parts", "61.2 > 60.3",
              {("soup", ""): 1.0} | {(name, ""): -1 / len(EXPERTS) for name in EXPERTS}),
        Claim("soup over expert-0", "61.2 > 60.4", over("soup", "expert-0")),
        Claim("soup over expert-1", "61.2 > 60.4", over("soup", "expert-1")),
        Claim("soup over expert-2", "61.2 > 60.1", over("soup", "expert-2")),
    ],
    "hard negatives": [
        Claim("a hard negative over none", USED, over("base", "no-hard")),
        Claim("alpha 5 over alpha 0", USED, over("base", "alpha-0")),
    ],
    "spread-out": [
        Claim("with over without, whole vectors", USED, over("base", "no-spread")),
        Claim("int8 vectors lose less with it", CLAIMED, loses_less("base", "no-spread", "int8")),
        Claim("binary vectors lose less with it", CLAIMED, loses_less("base", "no-spread", "binary")),
        Claim("int4 weights lose less with it", CLAIMED, loses_less("base", "no-spread", INT4)),
    ],
    "distillation": [Claim("with a teacher over without", USED, over("taught", "base"))],
    "Matryoshka": [
        Claim("whole vectors over a half", "61.2 > 59.7", over("base", "base", "", "48")),
        Claim("a half over a quarter", "59.7 > 58.2", over("base", "base", "48", "24")),
        Claim("half: trained at all lengths over whole only", USED, over("base", "whole-only", "48")),
        Claim("quarter: trained at all lengths over whole only", USED, over("base", "whole-only", "24")),
        Claim("whole: trained at all lengths over whole only", NOT_SAID, over("base", "whole-only")),
    ],
    "quantisation": [
        Claim("aware: whole weights over int4", "61.15 > 60.62", over("aware", "aware", "", INT4)),
        Claim("int4: aware over rounded afterwards", USED, over("aware", "base", INT4)),
        Claim("whole weights: not aware over aware", NOT_SAID, over("base", "aware")),
    ],
}  # fmt: skip

# ablation -> its table of scores: label -> run, and of each the forms
SHOWN = {
    "initialisation": {"encoder-decoder": "pairs", "decoder": "decoder", "decoder trained as long": "longer",
                       "random": "random"},
    "pooling": {"mean": "pairs", "attention": "attention", "first": "first", "last": "last"},
    "souping": {name: name for name in ("soup", *EXPERTS)},
    "hard negatives": {"one, alpha 5": "base", "one, alpha 0": "alpha-0", "none": "no-hard"},
    "spread-out": {"with": "base", "without": "no-spread"},
    "distillation": {"with a teacher": "taught", "without": "base"},
    "Matryoshka": {"all lengths": "base", "whole only": "whole-only"},
    "quantisation": {"aware": "aware", "not": "base"},
}  # fmt: skip
FORMS_SHOWN = {name: BESIDE[run] for name, run in
               (("spread-out", "no-spread"), ("Matryoshka", "whole-only"), ("quantisation", "aware"))}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the page
def scores_table(figures: Figures, ablation: str) -> str:
    rows = [["", *COLUMNS]]
    for label, run in SHOWN[ablation].items():
        for form in FORMS_SHOWN.get(ablation, [""]):
            found = [sums(figures, {(run, form): 1.0}, task) for task in COLUMNS.values()]
            shown = [f"{mean(one):.2f} ± {stdev(one):.2f}" if one else "-" for one in found]
            rows.append([f"{label}, {form}" if form else label, *shown])
    return table(rows)


def claims_table(figures: Figures, ablation: str) -> str:
    rows = [["", "the paper", "here", *COLUMNS]]
    for claim in CLAIMS[ablation]:
        found = [sums(figures, claim.terms, task) for task in COLUMNS.values()]
        words = WORDS if claim.paper == NOT_SAID else {}
        here = verdict(found[0])
        rows.append([claim.says, claim.paper, words.get(here, here), *map(difference, found)])
    return table(rows)


def difference(found: Sequence[float]) -> str:
    if not found:
        return "-"
    shown = f"{mean(found):+.2f} ± {stdev(found):.2f}"
    return shown if verdict(found) == OPEN else f"**{shown}**"


def page(lines: Lines, template: str) -> str:
    """The template, with an ablation's tables for each {ablation}, and counts for {runs}, {minutes}, {agree} ..."""
    figures = figures_of(lines)
    made = {name: f"{scores_table(figures, name)}\n{claims_table(figures, name)}".rstrip("\n") for name in CLAIMS}
    said = [claim for claims in CLAIMS.values() for claim in claims if claim.paper != NOT_SAID]
    found = [verdict(sums(figures, claim.terms)) for claim in said]
    counts = {"agree": found.count(AGREES), "oppose": found.count(OPPOSES), "open": found.count(OPEN)}
    minutes = round(sum(line["seconds"] for line in lines) / 60)
    made |= {key: str(value) for key, value in counts.items()}
    made |= {"runs": str(len(lines)), "minutes": str(minutes), "claims": str(len(found))}
    return re.sub(r"\{([\w -]+)\}", lambda name: made[name[1]], template)


# ---------------------------------------------------------------------------------------------------------- the plots
# fmt: off
LIGHT = {"ground": "#ffffff", "ink": "#1f2328", "grid": "#d1d9e0", "agrees": "#1a7f37", "does-not": "#d1242f",
         "within-the-spread": "#818b98", "c0": "#0969da", "c1": "#bc4c00", "c2": "#8250df", "c3": "#818b98"}
DARK = {"ground": "#0d1117", "ink": "#e6edf3", "grid": "#30363d", "agrees": "#3fb950", "does-not": "#f85149",
        "within-the-spread": "#7d8590", "c0": "#58a6ff", "c1": "#f0883e", "c2": "#bc8cff", "c3": "#7d8590"}
# fmt: on


def svg(width: int, height: int, parts: Sequence[str]) -> str:
    """A picture that is light or dark as the reader's system is."""
    light, dark = (
        " ".join(f".{name} {{ fill: {colour}; stroke: {colour} }}" for name, colour in colours.items())
        for colours in (LIGHT, DARK)
    )
    inside = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<style>
{light}
@media (prefers-color-scheme: dark) {{ {dark} }}
text {{ font: 12px sans-serif; stroke: none !important }} .small {{ font-size: 10px }} .head {{ font-weight: bold }}
polyline {{ fill: none !important; stroke-width: 2 }} .bar {{ stroke-width: 6; opacity: 0.35 }}
</style>
<rect class="ground" width="{width}" height="{height}"/>
{inside}
</svg>
"""


def write(x: float, y: float, words: object, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="ink {kind}">{words}</text>'


def line(x: float, y: float, to_x: float, to_y: float, kind: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" class="{kind}"/>'


def dot(x: float, y: float, kind: str, radius: float = 3) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}"/>'


def effects(figures: Figures) -> str:
    """Every claim's difference of the mean over tasks, seed by seed, on an axis that is linear near zero."""
    left, right, top, step = 330, 840, 40, 19
    found = {name: [(claim.says, sums(figures, claim.terms)) for claim in claims] for name, claims in CLAIMS.items()}
    most = max(abs(value) for rows in found.values() for _, values in rows for value in values) * 1.1

    def across(value: float) -> float:
        share = math.log1p(min(abs(value), most)) / math.log1p(most)
        return (left + right) / 2 + math.copysign(share, value) * (right - left) / 2

    bottom = top + step * sum(1 + len(rows) for rows in found.values())
    ticks = [sign * size for size in (0.3, 1, 3, 10, 30) if size < most for sign in (1, -1)]
    parts = [line(across(tick), top, across(tick), bottom, "grid") for tick in ticks]
    parts += [write(across(tick), bottom + 14, f"{tick:+g}", "middle", "small") for tick in ticks]
    said = "points of the mean over tasks, as said to the right; a dot a seed, the bar what the rule calls their spread"
    parts += [line(across(0), top, across(0), bottom, "ink"), write((left + right) / 2, 20, said, "middle", "small")]
    y = float(top)
    for name, rows in found.items():
        parts.append(write(10, (y := y + step) - 5, name, kind="head"))
        for says, values in rows:
            y += step
            kind, middle, bound = verdict(values).replace(" ", "-"), mean(values), bound_of(values)
            parts += [
                write(24, y - 5, says),
                line(across(middle - bound), y - 9, across(middle + bound), y - 9, f"{kind} bar"),
            ]
            parts += [dot(across(value), y - 9, kind) for value in values]
    return svg(860, bottom + 24, parts)


Series = Mapping[str, Mapping[float, Sequence[float]]]  # label -> place on the axis across -> values of each seed


def curves(series: Series, across: str, up: str, even: bool = False) -> str:
    """Lines of means, and a dot for each seed. even: places are one step apart whatever they are, the largest first."""
    left, right, top, bottom = 50, 520, 24, 300
    places = sorted({place for points in series.values() for place in points}, reverse=even)
    values = [value for points in series.values() for found in points.values() for value in found]
    low, high = min(values), max(values)

    def x(place: float) -> float:
        share = places.index(place) / (len(places) - 1) if even else place / max(places)
        return left + share * (right - left)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = [write(left, 12, up, kind="small"), write((left + right) / 2, bottom + 40, across, "middle")]
    parts += [
        write(x(place), bottom + 20, f"{place:g}", "middle", "small") for place in (places if even else places[3::4])
    ]
    for value in (low + share * (high - low) / 4 for share in range(5)):
        parts += [
            line(left, y(value), right, y(value), "grid"),
            write(left - 6, y(value) + 4, f"{value:.1f}", "end", "small"),
        ]
    for number, (label, points) in enumerate(series.items()):
        path = " ".join(f"{x(place):.1f},{y(mean(found)):.1f}" for place, found in points.items())
        parts.append(f'<polyline points="{path}" class="c{number}"/>')
        parts += [dot(x(place), y(value), f"c{number}", 2) for place, found in points.items() for value in found]
        parts += [dot(right + 18, top + 20 * number, f"c{number}", 4), write(right + 28, top + 20 * number + 4, label)]
    return svg(720, bottom + 52, parts)


def plots(lines: Lines) -> dict[str, str]:
    """File name -> picture."""
    figures = figures_of(lines)
    lengths = {
        label: {float(form or WIDTH): sums(figures, {(run, form): 1.0}) for form in BESIDE["whole-only"]}
        for label, run in SHOWN["Matryoshka"].items()
    }
    starts: dict[str, dict[float, list[float]]] = {}
    for label, run in SHOWN["initialisation"].items():
        for one in (one for one in lines if one["run"] == run and one["figures"]):
            for step, loss in one["losses"]:
                starts.setdefault(label, {}).setdefault(step, []).append(loss)
    return {
        "effects.svg": effects(figures),
        "lengths.svg": curves(lengths, "numbers kept of a vector", "mean over tasks", even=True),
        "starts.svg": curves(starts, "step of prefinetuning", "loss"),
    }


def write_all(folder: Path) -> None:
    """The page and its plots, of the kept logs, into a folder that stands for spec/."""
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()]
    pictures = folder / RUNS.parent.name
    pictures.mkdir(exist_ok=True)
    (folder / PAGE.name).write_text(page(lines, TEMPLATE.read_text()))
    for name, picture in plots(lines).items():
        (pictures / name).write_text(picture)


if __name__ == "__main__":
    write_all(PAGE.parent)
