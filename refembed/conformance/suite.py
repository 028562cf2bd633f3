"""A folder of golden vectors, opened and checked: JSON and safetensors, every file by its digest."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RefembedError
from .mutation import Text

FORMAT = 1
PRECISIONS = ("float32", "float32-gelu16", "bfloat16", "int8", "int4")  # each a contract: spec/protocol.md
LARGEST_FILE = 64 * 2**20
STORED = ("values.safetensors", "stages.safetensors", "defects.safetensors")
MEMBERS = {"model": dict, "number_of_cases": int, "files": dict, "defects": dict, "cases": list}
MODEL = {"name": str, "digest": str, "dimensions": int}
WIDEST = 2.0  # two vectors of unit length cannot differ by more
SEEN = 3  # a defect is seen by a case where it lies this many bounds from the truth
ROUNDED = 0.02  # distances and separations are stored to three digits, bounds to two; a changed one is off by more
SHIPPED = {
    "twin": "3720b85bac99",
    "embeddinggemma-300m": "266f0b622cb0",
    "quantised": "28995fbb662d",
    "losses": "59dcabfa6446",
    "gradients": "ba20d98eeffa",
}  # editions of golden/
DATA = {  # golden folders that no port is asked by -> the chapter that says what they hold
    "quantised": "09-quantised-weights.md",
    "ul2": "12-ul2.md",
    "vectors": "08-matryoshka.md",
}
SINGLE = 1e-7  # vectors of unit length stored in float32 lose less
Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One golden case.

    id           a slug
    why          what it shows
    texts        what a user gives; prompted: what is tokenised
    dimensions   how many numbers of each vector are compared
    stages       the stages that are stored (one text only)
    flags        the defects it can see in float32
    bounds       precision -> stage -> largest allowed error; "embedding" is of the final vector, absolute; every other
                 is in units of the true tensor's largest number
    """

    id: str
    why: str
    texts: tuple[Text, ...]
    prompted: tuple[str, ...]
    dimensions: int
    stages: tuple[str, ...]
    flags: tuple[str, ...]
    bounds: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Suite:
    """An opened golden folder. Made by open_suite."""

    folder: Path
    manifest: Mapping[str, Any]
    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        return str(self.manifest["model"]["name"])

    @cached_property
    def edition(self) -> str:
        """The first digits of the manifest's own SHA-256: which golden vectors a report was made with."""
        return hashlib.sha256((self.folder / "manifest.json").read_bytes()).hexdigest()[:12]

    @property
    def shipped(self) -> bool | None:
        """Whether these are the golden vectors that this release ships under their name; None for another name."""
        return self.edition == SHIPPED[self.name] if self.name in SHIPPED else None

    @cached_property
    def values(self) -> Mapping[str, Array]:
        return self.tensors("values.safetensors")

    @cached_property
    def stages(self) -> Mapping[str, Array]:
        return self.tensors("stages.safetensors")

    @cached_property
    def wrong(self) -> Mapping[str, Array]:
        return self.tensors("defects.safetensors")

    def tensors(self, name: str) -> Mapping[str, Array]:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            loaded: Mapping[str, Array] = load_file(self.folder / name)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RefembedError("golden-tensors", f"{self.folder / name} holds no tensors: {error}") from error
        return loaded

    def vectors(self, case: Case) -> Array:
        """(texts, dimensions) float64: what a right port gives."""
        return self.values[f"{case.id}/embedding"]

    def tokens(self, case: Case) -> list[Array]:
        """The ids of each text, BOS and EOS included, cut to the context."""
        return [self.values[f"{case.id}/tokens.{row}"] for row in range(len(case.texts))]

    def defect_vectors(self, defect: str) -> dict[str, Array]:
        """case id -> the vectors of a port that has this defect, for the cases that show it best."""
        best = self.manifest["defects"][defect]["cases"]
        return {case: self.wrong[f"{defect}/{case}"] for case in best}

    def distances(self, defect: str) -> dict[str, float]:
        """case id -> how far the defect's vectors lie from the truth, for every case it was tried on."""
        return {case: number(far) for case, far in self.manifest["defects"][defect]["distances"].items()}

    def visible(self, precision: str, cases: Sequence[Case]) -> set[str]:
        """The known mistakes that the vectors of these cases can tell from the truth at a precision."""
        bounds = {case.id: case.bounds[precision]["embedding"] for case in cases}
        return {
            defect
            for defect in self.manifest["defects"]
            if any(case in bounds and far >= SEEN * bounds[case] for case, far in self.distances(defect).items())
        }

    def separation(self, defect: str, precision: str) -> float:
        """How many bounds a defect lies from the truth at the case that shows it best."""
        return number(self.manifest["defects"][defect]["separation"][precision]["ratio"])


def number(stored: float | str) -> float:
    """JSON has no infinity: the word stands for it."""
    return float("inf") if stored == "infinite" else float(stored)


def golden_folder(name: str) -> Path:
    """Where golden vectors, of a model or of something else, lie: in the installed package, or in the source tree."""
    package = Path(__file__).parents[1]
    for root in (package / "golden", package.parent / "golden"):
        if (root / name / "manifest.json").exists() or (name in DATA and (root / name).is_dir()):
            return root / name
    raise RefembedError("golden-missing", f"no golden vectors of {name!r} in {package / 'golden'}")


def open_suite(folder: Path) -> Suite:
    """Open and check a golden folder: its format, every file's size and digest, the count of cases.

    Raises RefembedError; a damaged suite must never look like a passed one.
    """
    if folder.name in DATA and folder.parent.name == "golden":
        files = ", ".join(sorted(file.name for file in folder.iterdir()))
        raise RefembedError(
            "golden-data",
            f"{folder} has no port to ask: read its {files} and compare, as spec/{DATA[folder.name]} says",
        )
    manifest = read_manifest(folder / "manifest.json")
    check_files(folder, manifest, STORED)
    cases = tuple(read_case(folder, entry) for entry in manifest["cases"])
    counted = manifest["number_of_cases"]
    if counted != len(cases):
        raise RefembedError(
            "golden-count", f"{folder}: {len(cases)} cases, the manifest says {counted}; fetch it again"
        )
    if not cases:
        raise RefembedError("golden-empty", f"{folder}: there is no case in it, so nothing could be verified")
    ids = [case.id for case in cases]
    if len(set(ids)) != len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise RefembedError("golden-duplicate", f"{folder}: case {twice} stands there twice")
    suite = Suite(folder, manifest, cases)
    for case in cases:
        check_values(suite, case)
        check_stages(suite, case)
    check_forms(suite)
    if not manifest["defects"]:
        raise RefembedError("golden-no-defects", f"{folder}: there is no known mistake in it; fetch it again")
    for defect, entry in manifest["defects"].items():
        check_defect(suite, defect, entry)
        check_separations(suite, defect, entry)
    for case in cases:
        check_flags(suite, case)
    check_leftovers(suite)
    return suite


def read_manifest(file: Path, kinds: Mapping[str, type] = MEMBERS) -> Mapping[str, Any]:
    if not file.is_file():
        raise RefembedError("golden-missing", f"{file} is not there")
    if file.stat().st_size > LARGEST_FILE:
        raise RefembedError(
            "golden-too-large", f"{file} has {file.stat().st_size} bytes, at most {LARGEST_FILE} needed"
        )
    try:
        manifest = json.loads(file.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise RefembedError("golden-json", f"{file} is not JSON: {str(error)[:200]}") from error
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        raise RefembedError("golden-format", f"{file} is no manifest of golden vectors: its format is not a number")
    if manifest["format"] > FORMAT:
        raise RefembedError(
            "golden-newer", f"{file} has format {manifest['format']}, this refembed reads {FORMAT}; update it"
        )
    if manifest["format"] < 1:
        raise RefembedError("golden-format", f"{file} has format {manifest['format']}, {FORMAT} needed")
    for key, needed in kinds.items():
        if not isinstance(manifest.get(key), needed):
            raise RefembedError("golden-manifest", f"{file}: {key} is no {needed.__name__}")
    for key, needed in MODEL.items() if "model" in kinds else ():
        if not isinstance(manifest["model"].get(key), needed):
            raise RefembedError("golden-manifest", f"{file}: the model's {key} is no {needed.__name__}")
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any], needed: Iterable[str]) -> None:
    """Every file that the manifest lists, and that it lists those which will be read."""
    unlisted = [name for name in needed if name not in manifest["files"]]
    if unlisted:
        raise RefembedError("golden-unlisted", f"{folder}: the manifest has no digest of {unlisted[0]}")
    for name, entry in manifest["files"].items():
        check_file(folder, name, entry)


def check_file(folder: Path, name: str, entry: Any) -> None:
    file = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RefembedError("golden-path", f"{folder}: the manifest names {name}, which is outside the folder")
    if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
        raise RefembedError("golden-manifest", f"{folder}: the entry of {name} has no size and digest")
    if not file.is_file():
        raise RefembedError(
            "golden-file-missing", f"{file} is not there, and the manifest names it; fetch the folder again"
        )
    if file.stat().st_size != entry["bytes"]:
        raise RefembedError(
            "golden-size", f"{file} has {file.stat().st_size} bytes, {entry['bytes']} needed; fetch it again"
        )
    if file.stat().st_size > LARGEST_FILE:
        raise RefembedError("golden-too-large", f"{file} has more than {LARGEST_FILE} bytes, as none should")
    try:
        with file.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise RefembedError("file-unreadable", f"{file}: {error.strerror or error}") from error
    if found != entry["sha256"]:
        raise RefembedError("golden-digest", f"{file} has SHA-256 {found}, {entry['sha256']} needed; it was changed")


def read_case(folder: Path, entry: Any) -> Case:
    try:
        case = Case(
            id=str(entry["id"]),
            why=str(entry["why"]),
            texts=tuple(Text(**text) for text in entry["texts"]),
            prompted=tuple(entry["prompted"]),
            dimensions=int(entry["dimensions"]),
            stages=tuple(entry["stages"]),
            flags=tuple(entry["flags"]),
            bounds={precision: dict(bounds) for precision, bounds in entry["bounds"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RefembedError(
            "golden-case", f"{folder}: a case is not complete: {type(error).__name__} {error}"
        ) from error
    if type(entry["dimensions"]) is not int or case.dimensions < 1:
        raise RefembedError("golden-case", f"{folder}: case {case.id}: its dimensions are no whole number above 0")
    words = [*case.prompted, *(text.text for text in case.texts)]
    if not case.texts or len(case.texts) != len(case.prompted) or not all(type(word) is str for word in words):
        raise RefembedError("golden-case", f"{folder}: case {case.id} needs texts, and each with its prompt")
    return case


def check_values(suite: Suite, case: Case) -> None:
    """Its vectors are there, of the right shape, finite and of unit length, its bounds above zero."""
    where = f"{suite.folder}: case {case.id}"
    vectors = suite.values.get(f"{case.id}/embedding")
    if vectors is None or any(f"{case.id}/tokens.{row}" not in suite.values for row in range(len(case.texts))):
        raise RefembedError("golden-values", f"{where} has no vectors or no tokens")
    if vectors.shape != (len(case.texts), case.dimensions):
        raise RefembedError(
            "golden-shape", f"{where}: vectors {vectors.shape}, ({len(case.texts)}, {case.dimensions}) needed"
        )
    for row in range(len(case.texts)):
        ids = suite.values[f"{case.id}/tokens.{row}"]
        if ids.dtype.kind not in "iu" or ids.ndim != 1 or not ids.size:
            raise RefembedError("golden-values", f"{where}: the tokens of text {row} are no list of whole numbers")
    if vectors.dtype.kind != "f" or not np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-9):
        raise RefembedError("golden-norm", f"{where}: a vector is not finite or not of unit length")
    if not case.bounds or set(case.bounds) != set(suite.cases[0].bounds):
        raise RefembedError("golden-bound", f"{where} has no bounds, or at other precisions than the first case")
    for precision, bounds in case.bounds.items():
        sound = all(type(bound) is float and 0 < bound < np.inf for bound in bounds.values())
        if not sound or not bounds.get("embedding", WIDEST) < WIDEST:
            raise RefembedError("golden-bound", f"{where}: a bound at {precision} is missing, not above 0, or endless")
        beyond = sorted(set(bounds) - {"embedding", *case.stages})
        if beyond:
            raise RefembedError("golden-stages", f"{where} has a bound of {beyond[0]} and does not list that stage")


def check_stages(suite: Suite, case: Case) -> None:
    """Its stages are there, finite, with a row for each token or for the first and last, and somewhere not zero."""
    where, tokens = f"{suite.folder}: case {case.id}", len(suite.tokens(case)[0])
    for stage in case.stages:
        tensor = suite.stages.get(f"{case.id}/{stage}")
        if tensor is None or tensor.dtype.kind != "f" or not tensor.size or not np.all(np.isfinite(tensor)):
            raise RefembedError("golden-stages", f"{where}: stage {stage} is not stored, or not finite")
        if not np.any(tensor):
            raise RefembedError("golden-stages", f"{where}: stage {stage} is all zeros")
        axes = token_axes(stage)
        rows = {tensor.shape[axis] for axis in axes} if tensor.ndim > max(axes, default=0) else set()
        if rows - ({tokens, 2} if axes == (0,) else {tokens}) or bool(axes) != bool(rows):
            raise RefembedError(
                "golden-stage-shape", f"{where}: stage {stage} has shape {tensor.shape} for {tokens} tokens"
            )


def token_axes(stage: str) -> tuple[int, ...]:
    """Which axes of a stage count tokens: spec/tensors.md has the shapes."""
    part = stage.rpartition(".")[2]
    if part in ("scores", "weights"):
        return 1, 2
    if ".attention." in stage and part not in ("norm", "output", "update"):
        return (1,)
    return (0,) if stage.startswith("layer.") or stage in ("embedded", "final_norm") else ()


def check_forms(suite: Suite) -> None:
    """A stage has the same shape, but for tokens, in every case and layer."""
    forms: dict[str, tuple[str, tuple[int, ...]]] = {}
    for case in suite.cases:
        for stage in case.stages:
            axes, shape = token_axes(stage), suite.stages[f"{case.id}/{stage}"].shape
            form = tuple(0 if axis in axes else size for axis, size in enumerate(shape))
            kind = stage.partition(".")[0] + "." + stage[len("layer.00.") :] if stage.startswith("layer.") else stage
            first, known = forms.setdefault(kind, (f"case {case.id}", form))
            if form != known:
                raise RefembedError(
                    "golden-stage-shape",
                    f"{suite.folder}: case {case.id}: stage {stage} has shape {shape}, another than in {first}",
                )


def check_defect(suite: Suite, defect: str, entry: Any) -> None:
    """A defect's own vectors are there, for cases that there are, and its separations can be read."""
    precisions = set(suite.cases[0].bounds)
    try:
        shapes = {case.id: (len(case.texts), case.dimensions) for case in suite.cases}
        whole = bool(entry["cases"]) and set(entry["separation"]) == precisions
        whole = whole and all(vectors.shape == shapes[case] for case, vectors in suite.defect_vectors(defect).items())
        whole = whole and all(suite.separation(defect, precision) >= 0 for precision in precisions)
        whole = whole and all(far >= 0 and case in shapes for case, far in suite.distances(defect).items())
        whole = whole and set(entry["cases"]) <= set(entry["distances"])
        whole = whole and all(entry["separation"][one]["case"] in entry["distances"] for one in precisions)
    except RefembedError:  # the file itself
        raise
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise RefembedError("golden-defects", f"{suite.folder}: defect {defect} lacks vectors, cases or separations")


def check_separations(suite: Suite, defect: str, entry: Any) -> None:
    """Its vectors lie as far from the truth as its distances say, and these as many bounds as its separations."""
    cases, distances = {case.id: case for case in suite.cases}, suite.distances(defect)
    for case, vectors in suite.defect_vectors(defect).items():
        if not same(far_from(vectors, suite.vectors(cases[case])), distances[case], SINGLE):
            raise RefembedError(
                "golden-separation", f"{suite.folder}: {defect}'s vectors of case {case} are not as far as is said"
            )
    for precision in cases[next(iter(cases))].bounds:
        ratios = {case: far / cases[case].bounds[precision]["embedding"] for case, far in distances.items()}
        best, ratio = entry["separation"][precision]["case"], suite.separation(defect, precision)
        if not same(ratios[best], ratio) or max(ratios.values()) > ratio * (1 + ROUNDED):
            raise RefembedError(
                "golden-separation",
                f"{suite.folder}: {defect} at {precision}: separation {ratio:.3g}, by distance and bound "
                f"{max(ratios.values()):.3g}; one of them was changed",
            )


def far_from(wrong: Array, true: Array) -> float:
    """The largest difference; infinite where a number is none."""
    return float(np.max(np.abs(wrong - true))) if np.all(np.isfinite(wrong)) else float("inf")


def same(first: float, second: float, beside: float = 0.0) -> bool:
    """Whether two numbers are one, but for being stored with three digits; `beside` is forgiven too."""
    return first == second or abs(first - second) <= ROUNDED * min(first, second) + beside


def check_flags(suite: Suite, case: Case) -> None:
    """Its flags are the defects that lie SEEN float32 bounds or more from the truth."""
    limit = SEEN * case.bounds["float32"]["embedding"] if "float32" in case.bounds else float("inf")
    for defect, entry in suite.manifest["defects"].items():
        far = number(entry["distances"].get(case.id, 0.0))
        if not same(far, limit) and (far > limit) != (defect in case.flags):
            raise RefembedError(
                "golden-flags", f"{suite.folder}: case {case.id}: its flag of {defect} contradicts distance and bound"
            )
    unknown = sorted(set(case.flags) - set(suite.manifest["defects"]))
    if unknown:
        raise RefembedError("golden-flags", f"{suite.folder}: case {case.id} is flagged {unknown[0]}, no known mistake")


def check_leftovers(suite: Suite) -> None:
    """No file holds a tensor that the manifest does not list: what it belonged to was taken out."""
    listed = {
        "values.safetensors": {
            f"{case.id}/{name}"
            for case in suite.cases
            for name in ("embedding", *(f"tokens.{row}" for row in range(len(case.texts))))
        },
        "stages.safetensors": {f"{case.id}/{stage}" for case in suite.cases for stage in case.stages},
        "defects.safetensors": {
            f"{defect}/{case}" for defect, entry in suite.manifest["defects"].items() for case in entry["cases"]
        },
    }
    stored = {
        "values.safetensors": suite.values,
        "stages.safetensors": suite.stages,
        "defects.safetensors": suite.wrong,
    }
    for name, tensors in stored.items():
        left = sorted(set(tensors) - listed[name])
        if left:
            raise RefembedError(
                "golden-leftover", f"{suite.folder / name} holds {left[0]}, which the manifest does not list"
            )
