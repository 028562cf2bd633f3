"""Write golden/<model>: cases, their values in float64, bounds, and each known defect's own vectors.

python golden/generate.py twin
python golden/generate.py embeddinggemma-300m FOLDER     (the real checkpoint)

Needs the golden extra. Values come from the float64 reference. Every stage that transformers has a module for, and
every vector, is compared with transformers, patched to float64, and nothing is written where the two differ by more
than 1e-12 of the tensor's largest number. Known mistakes' vectors are the mutated reference's own, on the real model in
float32. Run by hand, then commit: no test runs this.

How a bound is derived, for each case and stage, at each precision: the case is run by independent implementations at
that precision, and the final vector's bound is SAFETY times the largest error of any of them, or of the middle case's
where that is larger, since one case may be lucky. The worst number of a stage is a matter of luck far more than that of
a vector, which sums over tokens: there the bound is SAFETY times the largest error in any case that stores stages. A
defect counts as seen by a case only where its vector lies at least three bounds away.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from inputs import Input, inputs
from oracle import Array, OnnxOracle, Oracle, float64_everywhere
from safetensors.numpy import save_file
from twin_model import write_twin

from refembed.checkpoint import open_checkpoint
from refembed.conformance.defects import CONTROLS, DEFECTS, Defect
from refembed.conformance.mutation import Model, replaced
from refembed.conformance.suite import FORMAT, PRECISIONS, SEEN
from refembed.reference import collector, truncate
from refembed.reference.operations import gelu, linear
from refembed.reference.quantize import INT4_BLOCK, INT8_BLOCK, fake_quantize
from refembed.tokenizer import Tokenizer

HERE = Path(__file__).parent
AGREEMENT = 1e-12
CONTROL = 1e-6  # a change that must not matter moves the vector by less, in float32 too
SAFETY = 4  # a right port may err this many times more than the worst implementation tried
SHORT = 70  # tokens up to which every defect is tried
BEST_CASES = 3  # whose vectors are stored for each defect
FULL_TRACES = 4  # the twin's shortest texts with every tensor, beside
BEYOND_REACH = {"length-reach-plus-two", "distinct-first-reach-plus-one"}  # where the window hides something


def open_model(folder: Path, dtype: type = np.float64) -> Model:
    checkpoint = open_checkpoint(folder)
    tokenizer = Tokenizer(folder / "tokenizer.json", checkpoint.config)
    return Model(checkpoint.config, checkpoint.parameters(dtype), tokenizer, checkpoint.prompts)


# ----------------------------------------------------------------------------------------------------------------------
# Independent implementations at each precision: ids -> stages


class Peak(NamedTuple):
    """Where the residual stream of a case's first text is largest.

    tokens    the text's length
    token     the place in it, from 0
    largest   the magnitude there
    """

    tokens: int
    case: str
    stage: str
    token: int
    largest: float


Run = Callable[[Array, bool], dict[str, Array]]  # ids, coarse -> stages


def numpy_stages(model: Model, functions: dict[str, Callable[..., Any]] | None = None) -> Run:
    def run(ids: Array, coarse: bool) -> dict[str, Array]:
        kept: dict[str, Array] = {}
        keep = collector(kept)

        def trace(name: str, tensor: Array) -> None:
            if not coarse or not is_fine(name):
                keep(name, tensor)

        with replaced(functions or {}):
            embed_stages(ids, model, trace)
        return kept

    return run


def is_fine(stage: str) -> bool:
    """Within a layer: too large to keep for long texts of the real model."""
    return stage.startswith("layer.") and not stage.endswith(".out")


def embed_stages(ids: Array, model: Model, trace: Any) -> None:
    """embed(), through the module, so that replaced functions are used."""
    from refembed.reference import model as module

    module.embed(ids, model.parameters, model.config, trace)


def half_gelu(x: Array) -> Array:
    """An activation table in float16, as ggml has: argument and result are rounded."""
    return gelu(x.astype(np.float16).astype(x.dtype)).astype(np.float16).astype(x.dtype)


def quantized_model(model: Model, grid: Any) -> Model:
    """Matrices as they come back from blocks of 32."""
    parameters = dict(model.parameters)
    table = parameters["embed_tokens.weight"]
    for name, tensor in parameters.items():
        if name != "embed_tokens.weight" and tensor.ndim == 2:
            parameters[name] = padded_quantize(np.asarray(tensor, np.float32), grid)
    rows = QuantizedRows(table, grid)
    return Model(model.config, parameters | {"embed_tokens.weight": rows}, model.tokenizer, model.prompts)


class QuantizedRows:
    def __init__(self, table: Any, grid: Any) -> None:
        self.table, self.grid = table, grid

    def __getitem__(self, ids: Array) -> Array:
        return padded_quantize(np.asarray(self.table[ids], np.float32), self.grid)


def padded_quantize(matrix: Array, grid: Any) -> Array:
    """fake_quantize, with rows filled up to whole blocks."""
    columns = matrix.shape[1]
    short = -columns % 32
    return fake_quantize(np.pad(matrix, ((0, 0), (0, short))), grid)[:, :columns]


def quantized_linear(x: Array, weight: Array) -> Array:
    """Activations in int8 blocks of 32 as well."""
    flat = x.reshape(-1, x.shape[-1])
    return linear(padded_quantize(flat, INT8_BLOCK).reshape(x.shape), weight)


def implementations(folder: Path, scratch: Path) -> Iterator[tuple[str, str, Run]]:
    """(precision, name, ids -> stages) of everything that is tried."""
    single = open_model(folder, np.float32)
    yield "float32", "numpy", numpy_stages(single)
    yield "float32", "transformers eager", Oracle(folder, torch.float32).run
    yield "float32", "transformers sdpa", Oracle(folder, torch.float32, "sdpa").run
    yield "float32", "onnxruntime", OnnxOracle(folder, scratch).run
    yield "float32-gelu16", "numpy, float16 activation table", numpy_stages(single, {"gelu": half_gelu})
    yield "bfloat16", "transformers eager", Oracle(folder, torch.bfloat16).run
    yield "bfloat16", "transformers sdpa", Oracle(folder, torch.bfloat16, "sdpa").run
    eight, four = quantized_model(single, INT8_BLOCK), quantized_model(single, INT4_BLOCK)
    yield "int8", "numpy, int8 blocks", numpy_stages(eight)
    yield "int8", "numpy, int8 blocks of weights and activations", numpy_stages(eight, {"linear": quantized_linear})
    yield "int4", "numpy, int4 blocks, activations in int8 blocks", numpy_stages(four, {"linear": quantized_linear})


# ----------------------------------------------------------------------------------------------------------------------
# Truth


def error(found: Array, truth: Array) -> float:
    """The largest difference, in units of the truth's largest number."""
    return float(np.max(np.abs(found - truth)) / np.max(np.abs(truth)))


def true_stages(model: Model, ids: Array, oracle: Oracle, coarse: bool) -> dict[str, Array]:
    """The stages of one text, whole; refused where the oracle disagrees."""
    kept = numpy_stages(model)(ids, coarse)
    with float64_everywhere():
        theirs = oracle.run(ids, coarse)
    for name, tensor in theirs.items():
        apart = error(kept[name], tensor)
        if apart > AGREEMENT:
            sys.exit(f"{name} of {len(ids)} tokens: {apart:.2e} from transformers in float64, nothing written")
    return kept


def peak(case: str, stages: dict[str, Array]) -> Peak:
    """The largest number that any layer gives."""
    worst = max((name for name in stages if name.endswith(".out")), key=lambda name: np.max(np.abs(stages[name])))
    token, _ = np.unravel_index(np.argmax(np.abs(stages[worst])), stages[worst].shape)
    return Peak(len(stages[worst]), case, worst, int(token), float(np.max(np.abs(stages[worst]))))


def probe(tensor: Array, coarse: bool) -> Array:
    """What is kept of a stage: all of it, or the first and last token's rows."""
    return tensor[[0, -1]] if coarse and tensor.ndim == 2 else tensor


def worth_running(defect: Defect, case: Input, tokens: int, reach: int) -> bool:
    """Long texts only for the families that need them: the rest shows on short ones."""
    if tokens <= SHORT or defect.family == "E6":
        return True
    longest = {
        "A": 5 * reach,
        "B": 5 * reach,
        "C": 5 * reach * (len(case.texts) > 1),
        "F": 3 * reach * (defect.family == "F1"),
    }
    return tokens <= longest.get(defect.family[0], 0)


def build(name: str, folder: Path, target: Path, scratch: Path) -> None:
    model = open_model(folder)
    cases = inputs(model)
    coarse = name != "twin"
    oracle = Oracle(folder, torch.float64)
    stages: dict[str, list[dict[str, Array]]] = {}
    truth: dict[str, Array] = {}
    peaks: list[Peak] = []
    for case in cases:
        ids = [model.tokens(model.prompted(text)) for text in case.texts]
        whole = [true_stages(model, one, oracle, coarse) for one in ids]
        peaks.append(peak(case.id, whole[0]))
        stages[case.id] = [{name: probe(tensor, coarse) for name, tensor in one.items()} for one in whole]
        raw = np.stack([one["projected"] for one in stages[case.id]])
        truth[case.id] = truncate(raw, case.dimensions or model.config.dimensions)
        say(f"truth {case.id}")
    del oracle
    spread = spreads(cases, stages, truth, folder, scratch, coarse)
    _, probed = traced_cases(name, cases, stages)
    bounds = {case.id: bounds_of(case.id, spread, probed) for case in cases}
    separations, vectors = defect_vectors(
        open_model(folder, np.float32) if coarse else model, cases, stages, truth, bounds
    )
    write_suite(name, target, folder, model, cases, stages, truth, bounds, spread, separations, vectors, peaks)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def spreads(
    cases: list[Input],
    stages: dict[str, list[dict[str, Array]]],
    truth: dict[str, Array],
    folder: Path,
    scratch: Path,
    coarse: bool,
) -> dict[str, dict[str, dict[str, float]]]:
    """precision -> case -> stage kind -> the largest error of any implementation."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for precision, name, run in implementations(folder, scratch):
        for case in cases:
            entry = found.setdefault(precision, {}).setdefault(case.id, {})
            for row, true in enumerate(stages[case.id]):
                theirs = run(true["tokens"], coarse)
                for stage, tensor in theirs.items():
                    if stage in true and stage not in ("tokens", "embedding"):
                        entry[stage] = max(entry.get(stage, 0.0), error(probe(tensor, coarse), true[stage]))
                final = truncate(theirs["embedding"], len(truth[case.id][row]))
                entry["embedding"] = max(
                    entry.get("embedding", 0.0), float(np.max(np.abs(final - truth[case.id][row])))
                )
        say(f"spread {precision} {name}")
    return found


def bounds_of(
    case: str, spread: dict[str, dict[str, dict[str, float]]], probed: set[str]
) -> dict[str, dict[str, float]]:
    """precision -> stage -> bound."""
    result: dict[str, dict[str, float]] = {}
    for precision, by_case in spread.items():
        result[precision] = {}
        for stage, worst in by_case[case].items():
            if stage == "embedding":
                usual = float(np.median([entry[stage] for entry in by_case.values()]))
            else:
                usual = max(by_case[one].get(stage, 0.0) for one in probed)
            result[precision][stage] = float(f"{SAFETY * max(worst, usual):.2g}")
    return result


def defect_vectors(
    model: Model,
    cases: list[Input],
    stages: dict[str, list[dict[str, Array]]],
    truth: dict[str, Array],
    bounds: dict[str, dict[str, dict[str, float]]],
) -> tuple[dict[str, dict[str, float]], dict[tuple[str, str], Array]]:
    """defect -> case -> distance from the truth; and the vectors themselves."""
    distances: dict[str, dict[str, float]] = {}
    vectors: dict[tuple[str, str], Array] = {}
    for name, mutation in [*((defect.id, defect.mutation) for defect in DEFECTS), *CONTROLS.items()]:
        defect = next((one for one in DEFECTS if one.id == name), None)
        for case in cases:
            tokens = max(len(one["tokens"]) for one in stages[case.id])
            if tokens > SHORT and not (defect and worth_running(defect, case, tokens, model.config.reach)):
                continue
            wrong = model.embed(case.texts, case.dimensions, mutation)
            distance = np.max(np.abs(wrong - truth[case.id]))
            distances.setdefault(name, {})[case.id] = float(distance) if np.isfinite(distance) else float("inf")
            vectors[name, case.id] = wrong
        say(f"defect {name}: {max(distances[name].values()):.2g}")
    for name in CONTROLS:
        if max(distances.pop(name).values()) > CONTROL:
            sys.exit(f"control {name} changes the vector")
    return distances, vectors


# ----------------------------------------------------------------------------------------------------------------------
# Files


def write_suite(
    name: str, target: Path, folder: Path, model: Model, cases: list[Input], stages: Any, truth: Any, bounds: Any,
    spread: Any, distances: dict[str, dict[str, float]], vectors: dict[tuple[str, str], Array], peaks: list[Peak],
) -> None:  # fmt: skip
    target.mkdir(parents=True, exist_ok=True)
    full, probed = traced_cases(name, cases, stages)
    values: dict[str, Array] = {}
    traces: dict[str, Array] = {}
    entries = []
    for case in cases:
        values[f"{case.id}/embedding"] = truth[case.id]
        for row, one in enumerate(stages[case.id]):
            values[f"{case.id}/tokens.{row}"] = one["tokens"].astype(np.int32)
        kept = stored_stages(
            name, case.id in full, case.id in probed, stages[case.id][0], len(model.config.layer_kinds)
        )
        traces |= {f"{case.id}/{stage}": np.ascontiguousarray(tensor, np.float32) for stage, tensor in kept.items()}
        flags = {
            precision: sorted(
                defect for defect, by_case in distances.items()
                if by_case.get(case.id, 0) >= SEEN * bounds[case.id][precision]["embedding"]
            )
            for precision in PRECISIONS
        }  # fmt: skip
        entries.append(
            {
                "id": case.id,
                "why": case.why,
                "texts": [
                    {key: value for key, value in asdict(text).items() if value is not None} for text in case.texts
                ],
                "prompted": [model.prompted(text) for text in case.texts],
                "dimensions": case.dimensions or model.config.dimensions,
                "stages": sorted(kept),
                "flags": flags["float32"],
                "bounds": {
                    precision: {
                        stage: bound for stage, bound in by_stage.items() if stage == "embedding" or stage in kept
                    }
                    for precision, by_stage in bounds[case.id].items()
                },
            }
        )
    wrong: dict[str, Array] = {}
    defects = {}
    for defect in DEFECTS:
        ratios = {
            precision: {
                case: distance / bounds[case][precision]["embedding"] for case, distance in distances[defect.id].items()
            }
            for precision in PRECISIONS
        }
        best = best_cases(defect, ratios["float32"], vectors, bounds)
        for case in best:
            wrong[f"{defect.id}/{case}"] = vectors[defect.id, case].astype(np.float32)
        defects[defect.id] = {
            "cases": best,
            "distances": {case: rounded(distance) for case, distance in distances[defect.id].items()},
            "separation": {
                precision: {
                    "case": (case := max(by_case, key=lambda one: by_case[one])),
                    "ratio": rounded(by_case[case]),
                }
                for precision, by_case in ratios.items()
            },
        }
    save_file(values, target / "values.safetensors")
    save_file(traces, target / "stages.safetensors")
    save_file(wrong, target / "defects.safetensors")
    files = sorted(path for path in target.rglob("*") if path.is_file() and path.name != "manifest.json")
    checkpoint = open_checkpoint(folder)
    manifest = {
        "format": FORMAT,
        "model": {
            "name": name,
            "digest": checkpoint.digest,
            "dimensions": model.config.dimensions,
            "context": model.config.context,
            "reach": model.config.reach,
            "layers": len(model.config.layer_kinds),
        },
        "generator": {
            package: version(package) for package in ("refembed", "numpy", "torch", "transformers", "onnxruntime")
        },
        "number_of_cases": len(entries),
        "files": {
            str(path.relative_to(target)): {
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in files
        },
        "spread": {
            precision: rounded(float(np.median([entry["embedding"] for entry in by_case.values()])))
            for precision, by_case in spread.items()
        },
        "unsupported": overflow(peaks),
        "defects": defects,
        "cases": entries,
    }
    (target / "manifest.json").write_text(lined(manifest))
    say(f"{len(entries)} cases, {sum(path.stat().st_size for path in target.rglob('*') if path.is_file()):,} bytes")


def overflow(peaks: list[Peak]) -> dict[str, dict[str, Any]]:
    """That float16 cannot hold the model, with the shortest text that shows it; nothing where it can."""
    beyond = [one for one in peaks if one.largest > float(np.finfo(np.float16).max)]
    if not beyond:
        return {}
    least = min(beyond)
    return {"float16": least._asdict() | {"largest": rounded(least.largest)}}


def traced_cases(name: str, cases: list[Input], stages: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The cases whose every tensor is stored, and those with some: single texts, on the real model not the shortest."""
    lengths = {case.id: len(stages[case.id][0]["tokens"]) for case in cases if len(case.texts) == 1}
    telling = sorted((case for case, tokens in lengths.items() if tokens >= 4), key=lambda case: lengths[case])
    if name == "twin":
        return {*telling[:FULL_TRACES], *BEYOND_REACH}, set(lengths)
    return set(), {case for case in telling if case.startswith(("length", "prompt", "distinct"))}


def lined(manifest: dict[str, Any]) -> str:
    """JSON with a line for each case, file and known mistake: short, and a change shows where it was made."""

    def written(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    members = []
    for key, value in manifest.items():
        if key == "cases":
            members.append(f"{written(key)}: [\n" + ",\n".join(map(written, value)) + "\n]")
        elif key in ("files", "defects"):
            inside = (f"{written(name)}: {written(entry)}" for name, entry in value.items())
            members.append(f"{written(key)}: {{\n" + ",\n".join(inside) + "\n}")
        else:
            members.append(f"{written(key)}: {written(value)}")
    return "{\n" + ",\n".join(members) + "\n}\n"


def best_cases(
    defect: Defect, ratios: dict[str, float], vectors: dict[tuple[str, str], Array], bounds: Any
) -> list[str]:
    """The case that shows a defect best, then those that tell it best from every other defect."""

    def apart(case: str) -> float:
        own, bound = vectors[defect.id, case], bounds[case]["float32"]["embedding"]
        others = [vectors[other.id, case] for other in DEFECTS if other is not defect and (other.id, case) in vectors]
        distances = [np.max(np.abs(own - other)) for other in others if np.array_equal(np.isnan(own), np.isnan(other))]
        finite = [float(distance) / bound for distance in distances if np.isfinite(distance)]
        return min(min(finite, default=np.inf), ratios[case])

    usual = {case: ratio for case, ratio in ratios.items() if case.startswith("dimensions") == (defect.family == "D5")}
    first = max(usual, key=lambda case: usual[case])
    rest = sorted((case for case in usual if case != first), key=lambda case: -apart(case))
    return [first, *rest[: BEST_CASES - 1]]


def rounded(ratio: float) -> float | str:
    return "infinite" if not np.isfinite(ratio) else float(f"{ratio:.3g}")


def stored_stages(name: str, full: bool, probed: bool, one: dict[str, Array], layers: int) -> dict[str, Array]:
    """Every tensor, or layer outputs (twin), or the first and last token at chosen stages (real)."""
    if full:
        return {stage: tensor for stage, tensor in one.items() if stage not in ("tokens", "embedding")}
    if not probed:
        return {}
    if name == "twin":
        chosen = [*(f"layer.{index:02d}.out" for index in range(layers)), "pooled"]
        return {stage: one[stage] for stage in chosen}
    chosen = ["embedded", *(f"layer.{index:02d}.out" for index in (0, 5, 11, 17, 22, 23)), "final_norm", "pooled"]
    return {stage: one[stage] for stage in chosen}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", choices=("twin", "embeddinggemma-300m"))
    arguments.add_argument("folder", nargs="?", type=Path)
    given = arguments.parse_args()
    target = HERE / given.model
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / "suite"
        folder = given.folder
        if given.model == "twin":
            folder = fresh / "checkpoint"
            write_twin(folder)
        build(given.model, folder, fresh, Path(scratch))
        if target.exists():
            shutil.rmtree(target)
        shutil.move(fresh, target)


if __name__ == "__main__":
    main()
