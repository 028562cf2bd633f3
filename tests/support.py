"""What tests share: small models of random parameters and their folders, and what a machine may lack."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as some
from numpy.typing import NDArray
from safetensors.numpy import save_file

from refembed.checkpoint import Checkpoint
from refembed.reference import FULL, SLIDING, Config, parameter_shapes
from refembed.reference.quantize import grid_of, pack_int4, quantize
from refembed.stored import QuantizedTensor, StoredTensor

WANTS = ("weights", "data", "device", "browser", "compiler", "java", "ray", "spark")
REQUIRED = set(filter(None, os.environ.get("REFEMBED_REQUIRE", "").split(",")))

# Both kinds of layer, every size different from every other, and a window shorter than most texts.
SMALL = Config(
    vocabulary=160,
    width=48,
    mlp=80,
    heads=3,
    key_heads=1,
    head=16,
    dense=96,
    dimensions=40,
    layer_kinds=(SLIDING, SLIDING, FULL, SLIDING),
    reach=4,
    context=64,
    query_scalar=16.0,
)


def sampled(cases: Iterable[Any], every: int = 3) -> list[Any]:
    """Cases that ask the same code for other things: one in `every` runs always, the rest with pytest -m long."""
    return [pytest.param(case, marks=[pytest.mark.long] * (place % every > 0)) for place, case in enumerate(cases)]


def random_parameters(config: Config, seed: int = 0, dtype: type = np.float64) -> dict[str, NDArray[Any]]:
    """Parameters whose every part matters: matrices that keep a row's size, norm weights well away from zero."""
    rng = np.random.default_rng(seed)
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        spread = 0.3 if len(shape) == 1 else 1.0 if name.startswith("embed") else shape[1] ** -0.5
        parameters[name] = (spread * rng.standard_normal(shape)).astype(dtype)
    return parameters


def random_ids(config: Config, tokens: int, seed: int = 0) -> NDArray[np.int64]:
    """BOS, random ordinary tokens, EOS; with fewer than two tokens, as many of these as fit."""
    middle = np.random.default_rng(seed).integers(4, config.vocabulary, max(tokens - 2, 0))
    return np.concatenate([[config.bos], middle, [config.eos]])[:tokens].astype(np.int64)


@some.composite
def configs(draw: some.DrawFn, key_heads: int = 2, head: int = 40, size: int = 90, step: int = 1) -> Config:
    """Any small model up to these sizes, which are no multiple of a tile, a panel or a block; but of step."""
    shared, sizes, width = (
        draw(some.integers(1, key_heads)),
        some.integers(-(-8 // step), size // step).map(lambda times: times * step),
        max(2, step) * draw(some.integers(1, head // max(2, step))),
    )
    return Config(
        vocabulary=160,
        width=draw(sizes),
        mlp=draw(sizes),
        heads=shared * draw(some.integers(1, 3)),
        key_heads=shared,
        head=width,
        dense=draw(sizes),
        dimensions=draw(sizes),
        layer_kinds=tuple(draw(some.lists(some.sampled_from([SLIDING, FULL]), min_size=1, max_size=3))),
        reach=draw(some.integers(1, 40)),
        context=64,
        sliding_base=draw(some.sampled_from([10.0, 10_000.0])),
        full_base=1_000_000.0,
        query_scalar=draw(some.floats(0.5, 4.0)) * width,
        epsilon=draw(some.sampled_from([1e-6, 1e-3])),
    )


LENGTHS = some.lists(some.integers(1, 60), min_size=1, max_size=6)  # of a batch's texts


def checkpoint_of(config: Config, seed: int = 0) -> Checkpoint:
    """A checkpoint in memory."""
    parameters = random_parameters(config, seed, np.float32)
    return Checkpoint(Path(), config, {name: StoredTensor(name, Path(), p) for name, p in parameters.items()}, {})


def quantised(checkpoint: Checkpoint, form: str) -> Checkpoint:
    """The same in one of the reference's forms, in memory; rows must be whole blocks."""
    tensors = dict(checkpoint.tensors)
    for name, tensor in tensors.items():
        if grid := grid_of(form, name):
            levels, scales = quantize(tensor.load(np.float32), grid)
            stored = levels if grid.bits == 8 else pack_int4(levels)
            tensors[name] = QuantizedTensor(name, Path(), stored, scales, grid)
    return replace(checkpoint, tensors=tensors, form=form)


def widened(checkpoint: Checkpoint, dtype: type) -> dict[str, NDArray[Any]]:
    return {name: tensor.load(dtype) for name, tensor in checkpoint.tensors.items()}


def texts_of(config: Config, lengths: list[int]) -> list[NDArray[np.int64]]:
    return [random_ids(config, tokens, seed) for seed, tokens in enumerate(lengths)]


def config_json(config: Config) -> dict[str, Any]:
    """The config.json of the released model's form for this config."""
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3TextModel"],
        "use_bidirectional_attention": True,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": len(config.layer_kinds),
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head,
        "layer_types": list(config.layer_kinds),
        "sliding_window": 2 * config.reach,
        "max_position_embeddings": config.context,
        "rope_theta": config.full_base,
        "rope_local_base_freq": config.sliding_base,
        "rope_scaling": None,
        "query_pre_attn_scalar": int(config.query_scalar),
        "rms_norm_eps": config.epsilon,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "bos_token_id": config.bos,
        "eos_token_id": config.eos,
        "pad_token_id": 0,
    }


def tokenizer_json(vocabulary: int) -> str:
    """A tokenizer of Gemma's form: special tokens, <mask>, lower-case letters, space, and bytes as far as they fit."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz", "th", "the", "in", "▁a"]
    pieces += [f"<0x{byte:02X}>" for byte in range(max(0, min(256, vocabulary - len(pieces))))]
    library = Tokenizer(
        models.BPE(
            vocab={piece: id for id, piece in enumerate(pieces)},
            merges=[("t", "h"), ("th", "e"), ("i", "n"), ("▁", "a")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    library.normalizer = normalizers.Replace(" ", "▁")
    library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    library.add_special_tokens([AddedToken(name, normalized=False) for name in ("<pad>", "<eos>", "<bos>", "<unk>")])
    return library.to_str()


def write_checkpoint(
    folder: Path, config: Config = SMALL, parameters: Mapping[str, NDArray[Any]] | None = None
) -> Path:
    """A model folder in the released layout, float32."""
    parameters = random_parameters(config) if parameters is None else parameters
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(config)))
    (folder / "tokenizer.json").write_text(tokenizer_json(config.vocabulary))
    single = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in parameters.items()}
    for dense in ("2_Dense", "3_Dense"):
        (folder / dense).mkdir(exist_ok=True)
        save_file({"linear.weight": single.pop(f"{dense}.linear.weight")}, folder / dense / "model.safetensors")
    save_file(single, folder / "model.safetensors")
    return folder


def accessibility_faults(page: Any) -> list[str]:
    """What axe finds wrong with an open page."""
    from axe_playwright_python.sync_playwright import Axe

    unread = {"preload": False}  # else it asks for style sheets anew, which a page of a file must not
    found = Axe().run(page, options=unread).response["violations"]
    return [f"{fault['id']}: {node['html']}" for fault in found for node in fault["nodes"]]


def missing(what: str, how: str) -> None:
    """Skip this test for want of something, or fail it where REFEMBED_REQUIRE names that thing."""
    assert what in WANTS
    if what in REQUIRED:
        pytest.fail(f"REFEMBED_REQUIRE={what}, and there is none: {how}", pytrace=False)
    pytest.skip(f"no {what}: {how}")
