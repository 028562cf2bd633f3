"""Stages prefinetune and finetune: vectors of queries and of what answers them are pulled together, others apart.

Both are the same training on other data: pairs in large batches of evenly weighted types of task, then triples with
hard negatives and a teacher (RCP-2, RCP-3). The losses are refembed.reference.losses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refembed.checkpoint import TOKENIZER, WEIGHTS
from refembed.errors import RefembedError
from refembed.evaluation.metrics import check_libraries, rankings, retrieval
from refembed.layout import whole_folder, write_tensors
from refembed.reference import POOLERS
from refembed.reference.losses import ALPHA, LENGTHS, TEMPERATURE, Weights
from refembed.reference.quantize import FORMS
from refembed.tokenizer import Tokenizer

from .. import losses
from ..forward import unit
from ..model import TorchModel, load_model
from ..quantization import measured_as
from ..saving import save_model
from .chance import generator
from .config import Model, Optimizer, Run, at_least, read
from .data import Batch, Batches, DataSettings, Example
from .distributed import parallel, whole, world
from .gradcache import add_gradients, vectors_of
from .loop import alone, fingerprint, finished, train
from .teacher import TeacherSettings, open_teacher

MEASURED = 2**14  # tokens at once where chunk is 0: held-out examples may be many more than a batch


@dataclass(frozen=True)
class LossSettings:
    """[loss]: spec/10-losses.md.

    lengths                           of the vectors compared (Matryoshka); embedding matching takes the whole ones
    contrastive, spread_out, matching what each loss counts in the total
    """

    temperature: float = TEMPERATURE
    alpha: float = ALPHA
    lengths: tuple[int, ...] = LENGTHS
    contrastive: float = 1.0
    spread_out: float = 1.0
    matching: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, alpha=0, contrastive=0, spread_out=0, matching=0)
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}, above 0 needed")
        if not self.lengths or min(self.lengths) < 1 or len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"lengths is {list(self.lengths)}, at least one above 0 needed, and none twice")


@dataclass(frozen=True)
class FinetuneSettings:
    """A file of stage finetune.

    chunk           tokens through the model at once, which bounds the memory; 0: all of a batch
    quantization    the form whose rounding the model learns to live with; none where ""
    rounded         held-out figures are given of the weights rounded to this form, too; of none where ""
    pooler          mean, first, last or attention; the checkpoint's where ""
    """

    run: Run
    model: Model
    data: DataSettings
    optimizer: Optimizer
    loss: LossSettings = field(default_factory=LossSettings)
    chunk: int = 0
    teacher: TeacherSettings | None = None
    quantization: str = ""
    rounded: str = ""
    pooler: str = ""

    def __post_init__(self) -> None:
        at_least(self, chunk=0)
        for name, known in (("quantization", FORMS), ("rounded", FORMS), ("pooler", sorted(POOLERS))):
            if getattr(self, name) not in ("", *known):
                raise ValueError(f"{name} is {getattr(self, name)!r}, one of {', '.join(known)} needed, or none")
        others = self.data.batch > 1
        if not (
            (self.loss.contrastive and (others or self.data.hard))
            or (self.loss.spread_out and others)
            or (self.loss.matching and self.teacher)
        ):
            raise ValueError("no loss is left that could teach anything; see [loss], data.batch, data.hard and teacher")


@dataclass(frozen=True)
class PrefinetuneSettings(FinetuneSettings):
    """A file of stage prefinetune: the same, but on pairs alone, and each type of task has as many batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.hard:
            raise ValueError(f"data.hard is {self.data.hard}, 0 needed: hard negatives are stage finetune's")
        object.__setattr__(self, "data", replace(self.data, even=True))


def run_prefinetune(table: Mapping[str, Any], file: Path) -> dict[str, Any]:
    return run(read(PrefinetuneSettings, table, file))


def run_finetune(table: Mapping[str, Any], file: Path) -> dict[str, Any]:
    return run(read(FinetuneSettings, table, file))


def run(settings: FinetuneSettings) -> dict[str, Any]:
    out = settings.run.out
    with alone(out):  # before the stage opens the teacher's vectors there
        return finished(out, fingerprint(settings)) or train(Contrastive(settings), settings)


class Contrastive:
    """The stage, as loop.Stage describes it.

    teacher_folder   where the teacher's vectors are kept, for runs that share them; the run's own
    module   the model, and where a teacher's vectors are of another width the mapping to it, which is trained with it
    """

    def __init__(self, settings: FinetuneSettings, teacher_folder: Path | None = None) -> None:
        check_libraries()  # before hours of training, after which held-out figures would fail
        self.settings = settings
        self.model = starting_model(settings)
        dimensions = self.model.config.dimensions
        if max(settings.loss.lengths) > dimensions:
            raise RefembedError(
                "train-config",
                f"loss.lengths has {max(settings.loss.lengths)}, the model's vectors {dimensions} numbers",
            )
        if settings.data.context > self.model.config.context:  # or the first longer text would end the run
            raise RefembedError(
                "train-config", f"data.context is {settings.data.context}, the model's {self.model.config.context}"
            )
        tokenize = Tokenizer(settings.model.folder / TOKENIZER, self.model.config)
        self.batches = Batches(settings.data, settings.run.seed, tokenize)
        kept = teacher_folder or settings.run.out / "teacher"
        self.teacher = open_teacher(settings.teacher, self.batches, kept) if settings.teacher else None
        mapping = self.mapping_to(self.teacher.width) if self.teacher else None
        self.module: nn.Module = nn.ModuleDict({"model": self.model} | ({"mapping": mapping} if mapping else {}))
        self.student = parallel(self.model, settings.run.parallel)
        self.mapping = parallel(mapping, settings.run.parallel) if mapping else None

    def mapping_to(self, width: int) -> nn.Linear | None:
        """From the student's vectors to the teacher's width; none where they are of one."""
        own = self.model.config.dimensions
        if width == own:
            return None
        mapping: nn.Linear = nn.utils.skip_init(nn.Linear, own, width, bias=False, device=self.model.device)
        start = generator(self.settings.run.seed, "mapping").standard_normal((width, own)) * own**-0.5
        mapping.weight.data.copy_(torch.from_numpy(start))
        return mapping

    def step(self, index: int) -> dict[str, Any]:
        batch = self.batches(index)
        texts = [*batch.queries, *batch.positives, *batch.negatives]
        mask = self.mask(batch)
        goal = self.goal(batch)
        value = add_gradients(self.student, texts, lambda vectors: self.loss(vectors, mask, goal), self.settings.chunk)
        return {"loss": float(value), "set": batch.name, "tokens": sum(map(len, texts))}

    def mask(self, batch: Batch) -> Tensor:
        queries, positives = ([ids.tobytes() for ids in side] for side in (batch.queries, batch.positives))
        return losses.mask_of(queries, positives, self.model.device)

    def goal(self, batch: Batch) -> losses.Batch | None:
        """The teacher's vectors of a batch."""
        if self.teacher is None:
            return None
        found = [torch.from_numpy(side).to(self.model.device) for side in self.teacher(batch)]
        return losses.Batch(*found)

    def loss(self, vectors: Tensor, mask: Tensor, goal: losses.Batch | None) -> Tensor:
        """The total of raw vectors (texts, n): queries, positives, and negatives grouped by example."""
        chosen, examples = self.settings.loss, len(mask)
        found = losses.total(
            losses.split(vectors, examples),
            mask,
            lengths=chosen.lengths,
            temperature=chosen.temperature,
            alpha=chosen.alpha,
            weights=Weights(chosen.contrastive, chosen.spread_out),
        )
        if goal is None:
            return found
        mapped = vectors if self.mapping is None else self.mapping(vectors)  # as a module, whose gradient is exchanged
        return found + chosen.matching * losses.embedding_matching(losses.split(mapped, examples), goal)

    def measure_sets(self) -> dict[str, float]:
        """Of each set's held-out examples the loss, all as one batch and without the teacher, and how their queries
        find their positives among those of the set; the means over sets, and where there are several each one's.
        Scores are in percent.
        """
        found = {name: self.measure_set(name, rows) for name, rows in self.batches.held_out().items() if rows}
        if not found:
            return {}
        means = {key: float(np.mean([row[key] for row in found.values()])) for key in next(iter(found.values()))}
        single = {f"{key} {name}": value for name, row in found.items() for key, value in row.items()}
        return means | (single if len(found) > 1 else {})

    def measure(self) -> dict[str, float]:
        """measure_sets(), and its means once more of the rounded weights where these are asked for."""
        found, form = self.measure_sets(), self.settings.rounded
        if not form:
            return found
        with measured_as(self.model, form):
            rounded = self.measure_sets()
        return found | {f"{key} {form}": rounded[key] for key in ("loss", "ndcg@10", "mrr@10") if key in rounded}

    def measure_set(self, name: str, examples: Sequence[Example]) -> dict[str, float]:
        batch = self.batches.batch(name, examples)
        texts = [*batch.queries, *batch.positives, *batch.negatives]
        vectors = vectors_of(self.student, texts, self.settings.chunk or MEASURED)
        loss = float(self.loss(vectors, self.mask(batch), None))
        queries, positives, _ = losses.split(vectors, len(batch.queries))
        return {"loss": loss} | search_scores(unit(queries), unit(positives), batch)

    def positions(self) -> dict[str, int]:
        return self.batches.positions()

    def seek(self, positions: Mapping[str, int]) -> None:
        self.batches.seek(positions)

    def finish(self, folder: Path) -> None:
        """A checkpoint folder; with the attention pooler, which no library knows, only its model.safetensors."""
        tensors = {name: whole(parameter) for name, parameter in self.model.named_parameters()}  # by all processes
        if world().rank:
            return
        if self.model.config.pooler == "attention":
            with whole_folder(folder) as place:
                write_tensors(place / WEIGHTS, {name: tensor.numpy() for name, tensor in tensors.items()})
            return
        with torch.device("meta"):
            complete = TorchModel(self.model.config, source=self.model.source)
        complete.load_state_dict(tensors, assign=True)
        save_model(complete, folder)


def starting_model(settings: FinetuneSettings) -> TorchModel:
    """The checkpoint, with the pooler that was asked for. A new attention pooler starts as the mean: its query is zero,
    so all scores are the same, and its values are the tokens' vectors as they are.
    """
    chosen, device = settings.model, world().device
    options: dict[str, Any] = {"compiling": chosen.compiling, "checkpointing": chosen.checkpointing}
    options["quantization"] = settings.quantization or None
    model = load_model(chosen.folder, chosen.precision, device=device, **options)
    if settings.pooler in ("", model.config.pooler):
        return model
    config = replace(model.config, pooler=settings.pooler)
    other = TorchModel(config, chosen.precision, source=model.source, **options)
    tensors = model.state_dict()
    if settings.pooler == "attention":
        width = config.width
        key = generator(settings.run.seed, "pooling").standard_normal((width, width)) * width**-0.5
        tensors |= {
            "pooling.query": torch.zeros(1, width),
            "pooling.key.weight": torch.from_numpy(key).float(),
            "pooling.value.weight": torch.eye(width),
        }
    other.load_state_dict(tensors, assign=True)
    return other.to(device)


def search_scores(queries: Tensor, positives: Tensor, batch: Batch) -> dict[str, float]:
    """How each different query finds its positives among all different ones: nDCG@10 and MRR@10, in percent.

    queries, positives   unit vectors (examples, n)
    """
    asked, stored = ([ids.tobytes() for ids in side] for side in (batch.queries, batch.positives))
    places = {text: str(row) for row, text in enumerate(stored)}  # of a text that is there twice, the last
    relevant: dict[str, dict[str, int]] = {}
    for query, positive in zip(asked, stored, strict=True):
        relevant.setdefault(str(asked.index(query)), {})[places[positive]] = 1
    ids = list(places.values())
    rows, documents = [int(id) for id in relevant], [int(id) for id in ids]
    found = rankings(queries.cpu().numpy()[rows], positives.cpu().numpy()[documents], ids)
    scores = retrieval(dict(zip(relevant, found, strict=True)), ids, relevant)
    return {key: scores[key] for key in ("ndcg@10", "mrr@10")}
