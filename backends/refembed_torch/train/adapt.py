"""Stages pretrain and adapt: a decoder-only Gemma 3, and the encoder that is made of one by UL2.

pretrain   raw text -> a small decoder from nothing, or more training of one: a folder that transformers opens
adapt      a decoder's folder -> encoder and decoder by copying -> UL2 -> the encoder: a checkpoint folder, whose dense
           matrices are fresh (spec/13-adaptation.md)
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from refembed.checkpoint import TOKENIZER
from refembed.errors import RefembedError
from refembed.layout import write_checkpoint
from refembed.output import whole_file
from refembed.reference import FULL, SLIDING, Config
from refembed.reference.decoder import fresh_dense, origins
from refembed.reference.ul2 import DENOISERS, MODES, SENTINELS, choose, denoise, pieces, span_counts
from refembed.tokenizer import Tokenizer

from ..model import Trained
from ..packing import passes
from ..precision import exact_products
from ..saving import storable
from .chance import generator
from .config import Model, Optimizer, Run, at_least, plain, read
from .data import IntArray
from .decoder import CausalModel, EncoderDecoder, fill, fresh
from .distributed import gather_rows, parallel, syncing, wait_for_all, whole, world
from .gemma_folder import GemmaFolder, causal_shapes, encoder_config, open_gemma, write_gemma
from .loop import Stage, alone, conclude, fingerprint, finished, train
from .raw_text import RawText, TextSettings
from .vocabulary import train_tokenizer

MEASURED = 4096  # tokens that go through the model together when measuring


# ------------------------------------------------------------------------------------------------------------ settings
@dataclass(frozen=True)
class Fresh:
    """[fresh]: a decoder from nothing, and its tokenizer.

    vocabulary   tokens, of which 776 are special, unused (UL2's) or bytes
    tokenizer    a folder whose tokenizer is taken; one is trained on the raw text where none is named
    sample       paragraphs of the file with the highest rate that it is trained on; of the others by rate
    every        each so many-th layer is full, the others sliding
    window       tokens that a sliding layer sees, itself included: an encoder made of it reaches half to either side
    precision, checkpointing, compiling   as in [model]
    """

    vocabulary: int = 4096
    tokenizer: Path | None = None
    sample: int = 20_000
    width: int = 128
    mlp: int = 192
    layers: int = 6
    every: int = 6
    heads: int = 3
    key_heads: int = 1
    head: int = 64
    window: int = 512
    context: int = 2048
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool = False
    compiling: bool = False

    def __post_init__(self) -> None:
        at_least(self, sample=1, width=1, mlp=1, layers=1, every=1, heads=1, key_heads=1, head=2, window=2, context=8)
        if self.heads % self.key_heads or self.head % 2 or self.window % 2:
            raise ValueError("heads is a multiple of key_heads, and head and window are even")

    @property
    def config(self) -> Config:
        return Config(
            vocabulary=self.vocabulary,
            width=self.width,
            mlp=self.mlp,
            heads=self.heads,
            key_heads=self.key_heads,
            head=self.head,
            dense=4 * self.width,
            dimensions=self.width,
            layer_kinds=tuple(SLIDING if (index + 1) % self.every else FULL for index in range(self.layers)),
            reach=self.window // 2,
            context=self.context,
            query_scalar=float(self.head),
        )


@dataclass(frozen=True)
class PretrainSettings:
    """stage = "pretrain". model: the decoder's folder to go on from, or fresh: what to begin; one of the two."""

    run: Run
    optimizer: Optimizer
    text: TextSettings
    model: Model | None = None
    fresh: Fresh | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.fresh is None):
            raise ValueError("needs one of the tables [model], a folder to go on from, and [fresh], a new one")


@dataclass(frozen=True)
class AdaptSettings:
    """stage = "adapt". model: the decoder's folder.

    denoisers        how often each of UL2's seven; a text has one
    initialisation   encoder-decoder: trained as said. For comparison, both without a step: decoder, the decoder's
                     weights in an encoder; random, none of them
    dense, dimensions   of the encoder's dense matrices; 0: 4 times the width, and the width, as released
    context          of the encoder, in tokens
    """

    run: Run
    optimizer: Optimizer
    text: TextSettings
    model: Model
    denoisers: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DENOISERS, 1.0))
    initialisation: Literal["encoder-decoder", "decoder", "random"] = "encoder-decoder"
    dense: int = 0
    dimensions: int = 0
    context: int = 2048

    def __post_init__(self) -> None:
        at_least(self, dense=0, dimensions=0, context=3)
        unknown = sorted(self.denoisers.keys() - DENOISERS.keys())
        if (
            unknown
            or not all(0 <= rate < np.inf for rate in self.denoisers.values())
            or not any(self.denoisers.values())
        ):
            raise ValueError(f"denoisers gives rates, one of them above 0, of {', '.join(DENOISERS)}")


def run_pretrain(table: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """A stage's table, from a TOML file, to its result; see loop.train."""
    settings = read(PretrainSettings, table, file)
    with alone(settings.run.out):  # before the stage writes its tokenizer there
        return finished(settings.run.out, fingerprint(settings)) or train(Pretrain(settings), settings)


def run_adapt(table: Mapping[str, Any], file: Path) -> dict[str, Any]:
    settings = read(AdaptSettings, table, file)
    mark = fingerprint(settings)
    with alone(settings.run.out):
        if done := finished(settings.run.out, mark):
            return done
        if settings.initialisation == "encoder-decoder":
            return train(Adapt(settings), settings)
        result = {"steps": 0, "seconds": 0.0, "held_out": {}, "fingerprint": mark, "settings": plain(settings)}
        return conclude(cast(Stage, Untrained(settings)), settings, result)


# --------------------------------------------------------------------------------------------------------------- stages
class Row(NamedTuple):
    """One sequence of a step. columns: what the module takes of it, id arrays; targets: tokens that are predicted."""

    columns: tuple[IntArray, ...]
    targets: int


class LanguageStage(ABC):
    """What both stages share: raw text to the gradient of the mean cross-entropy of all target tokens of a step."""

    def __init__(self, module: Trained, tokenizer: Tokenizer, text: TextSettings, run: Run) -> None:
        if text.context > module.config.context:
            raise RefembedError(
                "train-config", f"text.context is {text.context}, the model has positions for {module.config.context}"
            )
        self.whole_config, self.config = module.config, replace(module.config, context=text.context)
        self.module: nn.Module = module.to(world().device)
        self.tokenizer, self.seed, self.parts = tokenizer, run.seed, text.parts
        self.called = parallel(self.module, run.parallel)
        self.texts = RawText(text, run.seed)
        self.measured = self.rows(self.texts.held_out(), "held out")

    @abstractmethod
    def rows_of(self, ids: IntArray, *place: int | str) -> list[Row]:
        """A paragraph's rows. ids: without BOS and EOS; place: of its chance."""

    def rows(self, texts: Sequence[str], *place: int | str) -> list[Row]:
        """All rows of these paragraphs. One that spells a token without a vector is left out with a warning."""
        rows = []
        for index, (text, ids) in enumerate(zip(texts, self.tokenizer(texts), strict=True)):
            if isinstance(ids, RefembedError):
                warnings.warn(f"a paragraph {ids.reason}; it is left out: {text[:60]!r}", stacklevel=2)
            else:
                rows += self.rows_of(ids[1:-1], *place, index)
        if not rows:
            raise RefembedError(
                "train-data", f"none of {len(texts)} paragraphs has two tokens; give more, or more a batch"
            )
        return rows

    def step(self, index: int) -> dict[str, Any]:
        rows, here = self.rows(self.texts.take(index), "step", index), world()
        total = sum(row.targets for row in rows)
        found = torch.zeros(1, dtype=torch.float64)
        for part in range(self.parts):
            own = rows[part * here.size + here.rank :: self.parts * here.size]
            weight = here.size / total if own else 0.0  # gradients are averaged, and this is a part of a sum
            with syncing(self.called, part + 1 == self.parts), exact_products():
                loss = self.summed(own or rows[:1])  # every process calls the model as often
                (loss * weight).backward()
            found += float(loss.detach()) if own else 0.0
        sums = gather_rows(found.to(here.device)).sum()
        return {"loss": float(sums) / total, "tokens": total}

    def summed(self, rows: Sequence[Row]) -> Tensor:
        """The sum of the cross-entropies of all targets."""
        loss: Tensor = self.called(*map(list, zip(*(row.columns for row in rows), strict=True)))
        return loss

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The mean of the held-out targets' cross-entropies, in nats. Every process finds the same."""
        lengths = [sum(map(len, row.columns)) for row in self.measured]
        with exact_products():
            parts = [float(self.summed([self.measured[i] for i in some])) for some in passes(lengths, MEASURED)]
        return {"loss": sum(parts) / sum(row.targets for row in self.measured)}

    def positions(self) -> dict[str, int]:
        return self.texts.positions()

    def seek(self, positions: Mapping[str, int]) -> None:
        self.texts.seek(positions)

    def complete(self, names: Mapping[str, Any]) -> dict[str, Tensor]:
        """These parameters in main memory; all processes ask at once."""
        return {name: whole(tensor) for name, tensor in self.module.named_parameters() if name in names}


class Pretrain(LanguageStage):
    """A causal language model on raw text. A paragraph longer than the context goes on in a sequence of its own."""

    def __init__(self, settings: PretrainSettings) -> None:
        if settings.model:
            start = open_gemma(settings.model.folder)
            self.folder, options = start.folder, options_of(settings.model)
            module = CausalModel(start.config, **options)
            fill(module, start.load)
        else:
            assert settings.fresh is not None
            config, seed = settings.fresh.config, settings.run.seed
            self.folder = settings.fresh.tokenizer or own_tokenizer(settings)
            module = CausalModel(config, **options_of(settings.fresh))
            shapes = causal_shapes(config)
            fill(module, lambda name: fresh(name, shapes[name], seed))
        super().__init__(module, Tokenizer(self.folder / TOKENIZER, module.config), settings.text, settings.run)

    def rows_of(self, ids: IntArray, *place: int | str) -> list[Row]:
        text, most = np.append(ids, self.config.eos), self.config.context - 1
        cut = [text[start : start + most] for start in range(0, len(text), most)]
        return [Row((np.insert(piece, 0, self.config.bos),), len(piece)) for piece in cut if len(piece) > 1]

    def finish(self, folder: Path) -> None:
        tensors = self.complete(causal_shapes(self.config))
        if world().rank == 0:
            write_gemma(folder, self.whole_config, tensors, self.folder)
        wait_for_all()


def options_of(settings: Model | Fresh) -> dict[str, Any]:
    return {
        "precision": settings.precision,
        "checkpointing": settings.checkpointing,
        "compiling": settings.compiling,
    }


def own_tokenizer(settings: PretrainSettings) -> Path:
    """The folder of a tokenizer that is trained on a sample of the text. The same in every process and run."""
    assert settings.fresh is not None
    folder = settings.run.out / "tokenizer"
    if world().rank == 0:
        sample = RawText(settings.text, settings.run.seed).sample(settings.fresh.sample)
        made = train_tokenizer(sample, settings.fresh.vocabulary)
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / TOKENIZER) as handle:
            handle.write(made.to_str().encode())
    wait_for_all()
    return folder


class Adapt(LanguageStage):
    """UL2: the encoder reads a corrupted paragraph, the decoder writes what was removed."""

    def __init__(self, settings: AdaptSettings) -> None:
        self.settings, self.start = settings, open_gemma(settings.model.folder)
        config = self.start.config
        tokenizer = Tokenizer(self.start.folder / TOKENIZER, config)
        self.modes, self.sentinels = ul2_tokens(tokenizer, replace(config, context=settings.text.context))
        module = EncoderDecoder(config, **options_of(settings.model))
        sources = origins(config)
        fill(module, lambda name: self.start.load(sources[name]))
        super().__init__(module, tokenizer, settings.text, settings.run)

    def rows_of(self, ids: IntArray, *place: int | str) -> list[Row]:
        chance = generator(self.seed, "ul2", *place)
        found = []
        for piece in pieces(ids, self.config):
            name = choose(chance.random(), self.settings.denoisers)
            made = denoise(piece, name, self.modes, self.sentinels, self.config, chance)
            found.append(Row((made.inputs, made.targets), len(made.targets)))
        return found

    def finish(self, folder: Path) -> None:
        encoder = self.complete(causal_shapes(self.config))
        if world().rank == 0:
            write_encoder(folder, self.start, encoder, self.settings)
        wait_for_all()


def ul2_tokens(tokenizer: Tokenizer, config: Config) -> tuple[dict[str, int], IntArray]:
    """The ids of the mode tokens by mode, and of the sentinels.

    Raises RefembedError where the tokenizer has fewer than the context may need.
    """
    library, length = tokenizer.library, config.context - 3
    modes = {mode: id for mode, name in MODES.items() if (id := library.token_to_id(name)) is not None}
    sentinels = [id for name in SENTINELS if (id := library.token_to_id(name)) is not None]
    needed = max(span_counts(max(length, 2), denoiser)[1] for denoiser in DENOISERS.values())
    largest = max([*sentinels, *modes.values()], default=0)
    if len(modes) < len(MODES) or len(sentinels) < needed or largest >= config.vocabulary:
        raise RefembedError(
            "tokenizer-special",
            f"{tokenizer.file} has {len(sentinels)} of the tokens {SENTINELS[0]} to {SENTINELS[-1]}; UL2 needs "
            f"{needed} for {config.context} tokens of context, and {', '.join(MODES.values())}",
        )
    return modes, np.array(sentinels, np.int64)


class Untrained:
    """The encoders that the trained one is compared with: the decoder's weights as they are, or random ones."""

    def __init__(self, settings: AdaptSettings) -> None:
        self.settings, self.start = settings, open_gemma(settings.model.folder)

    def finish(self, folder: Path) -> None:
        shapes, seed = causal_shapes(self.start.config), self.settings.run.seed
        random = self.settings.initialisation == "random"
        if world().rank == 0:
            tensors = {name: fresh(name, shapes[name], seed) if random else self.start.load(name) for name in shapes}
            write_encoder(folder, self.start, tensors, self.settings)
        wait_for_all()


def write_encoder(folder: Path, start: GemmaFolder, encoder: Mapping[str, Tensor], settings: AdaptSettings) -> None:
    """A checkpoint folder of these weights, fresh dense matrices, and the decoder's tokenizer."""
    config = encoder_config(start.config, settings.dense, settings.dimensions, settings.context)
    dense = fresh_dense(config, generator(settings.run.seed, "dense"))
    tensors = {name: storable(name, tensor, "float32") for name, tensor in encoder.items()}
    tensors |= {name: matrix.astype(np.float32) for name, matrix in dense.items()}
    write_checkpoint(folder, config, tensors, start.folder)
