"""A decoder-only Gemma 3's folder, as transformers writes it: read into refembed's Config and names, and written.

Of the released ones it reads the text models without stretched positions (270M, 1B). Nothing is unpickled.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from refembed.checkpoint import TABLE, WEIGHTS, refuse_other_weights
from refembed.config_file import (
    FIXED,
    MOST_LAYERS,
    SIZES,
    SMALLEST,
    TOKENS,
    Reader,
    context_limit,
    read_bases,
    read_json,
    read_layer_kinds,
)
from refembed.errors import RefembedError
from refembed.layout import TOKENIZER_FILES, config_json, whole_folder, write_tensors
from refembed.reference import Config, parameter_shapes
from refembed.stored import StoredTensor, open_tensors

from ..saving import storable

INDEX = f"{WEIGHTS}.index.json"
MODEL, HEAD = (
    "model.",
    "lm_head.weight",
)  # what transformers puts before a name; the output's matrix, which is the table


@dataclass(frozen=True)
class GemmaFolder:
    """An opened folder. No weight is in memory until load() is used.

    config    the reference's; dense and dimensions are those of an encoder that is made of it, in the released ratios
    tensors   refembed's names -> tensors still on disk
    """

    folder: Path
    config: Config
    tensors: Mapping[str, StoredTensor]

    def load(self, name: str) -> Tensor:
        """A parameter in float32. Raises RefembedError where a number is not finite."""
        return torch.from_numpy(np.array(self.tensors[name].load(np.float32)))


def causal_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every parameter of a decoder-only model, which are the encoder's without the dense head: name -> shape."""
    return {name: shape for name, shape in parameter_shapes(config).items() if "_Dense." not in name}


def open_gemma(folder: Path) -> GemmaFolder:
    """Open and check a folder with a Gemma3ForCausalLM.

    Raises RefembedError with one line that names the file, key or tensor, what was found and what is needed.
    """
    if not folder.is_dir():
        raise RefembedError("folder-missing", f"{folder} is not a folder; give that of a decoder-only Gemma 3")
    config = read_gemma_config(folder)
    return GemmaFolder(folder, config, check_tensors(folder, stored_tensors(folder), config))


# -------------------------------------------------------------------------------------------------------------- config
def read_gemma_config(folder: Path) -> Config:
    """config.json of a causal Gemma 3 text model."""
    reader = Reader(folder / "config.json")
    check_causal(reader)
    sizes = {ours: reader.whole(key, SMALLEST.get(ours, 1)) for ours, key in SIZES.items()}
    if sizes["heads"] % sizes["key_heads"] or sizes["head"] % 2:
        found = f"{sizes['heads']} heads on {sizes['key_heads']}, of {sizes['head']}"
        raise RefembedError("config-heads", f"{reader.file}: {found}; a multiple, and an even size are needed")
    reader.whole("num_hidden_layers", 1, MOST_LAYERS)
    window = reader.whole("sliding_window", 2)
    if window % 2:
        raise reader.refuse("config-range", "sliding_window", window, "an even one is needed: an encoder reaches half")
    eos = reader.get("eos_token_id")
    if isinstance(eos, list) and eos:  # tuned ones list what else ends a turn, after <eos>
        reader.values["eos_token_id"] = eos[0]
    tokens = {ours: reader.whole(key, 0, sizes["vocabulary"] - 1) for ours, key in TOKENS.items()}
    sliding_base, full_base = read_bases(reader)
    return Config(
        **sizes | {"context": min(sizes["context"], context_limit(folder))},
        **tokens,
        dense=4 * sizes["width"],
        dimensions=sizes["width"],
        layer_kinds=read_layer_kinds(reader),
        reach=window // 2,
        sliding_base=sliding_base,
        full_base=full_base,
        query_scalar=reader.positive("query_pre_attn_scalar", reader.get("query_pre_attn_scalar")),
        epsilon=reader.positive("rms_norm_eps", reader.get("rms_norm_eps")),
        pooler="mean",
    )


ALONE = {"use_bidirectional_attention": False, "final_logit_softcapping": None, "tie_word_embeddings": True}


def check_causal(reader: Reader) -> None:
    kind = reader.get("model_type")
    if kind != "gemma3_text":
        raise reader.refuse("config-model-type", "model_type", kind, "only the text model 'gemma3_text' is supported")
    for key, needed in (FIXED | ALONE).items():
        if (reader.values.get(key) or None) != (needed or None) and key in reader.values:
            raise reader.refuse("config-unsupported", key, reader.values[key], f"a Gemma 3 decoder has {needed!r}")


# ------------------------------------------------------------------------------------------------------------- tensors
def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors by the names in the file, or in the shards that an index lists."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        refuse_other_weights(folder)
        return open_tensors(folder / WEIGHTS)
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(map(is_shard, places.values())):
        raise RefembedError(
            "json-not-object",
            f"{folder / INDEX}: weight_map must give a .safetensors file of the folder for each tensor",
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(places.values())):
        if not (folder / shard).exists():
            raise RefembedError("file-missing", f"{folder / shard} is not there; {INDEX} names it")
        found = open_tensors(folder / shard)
        wanted = {name for name, place in places.items() if place == shard}
        if found.keys() != wanted:
            name = min(found.keys() ^ wanted)
            id = "tensor-missing" if name in wanted else "tensor-unexpected"
            raise RefembedError(id, f"{folder / shard}: {name} is in one of the file and {INDEX}, both are needed")
        tensors |= found
    return tensors


def is_shard(name: object) -> bool:
    """Whether this names a file of the folder itself: an index must not lead elsewhere."""
    return isinstance(name, str) and name.endswith(".safetensors") and PurePath(name).name == name and "\\" not in name


def check_tensors(folder: Path, tensors: Mapping[str, StoredTensor], config: Config) -> dict[str, StoredTensor]:
    """By refembed's names: exactly the parameters the config calls for, each of its shape. Reads no weights, unless
    the output's matrix is stored beside the table, whose copy it has to be.
    """
    named = {name.removeprefix(MODEL): tensor for name, tensor in tensors.items()}
    head = named.pop(HEAD, None)
    needed = causal_shapes(config)
    for name, shape in needed.items():
        if name not in named:
            raise RefembedError("tensor-missing", f"{folder}: {MODEL}{name} is missing, shape {shape} needed")
        if named[name].stored.shape != shape:
            found = named[name].stored.shape
            raise RefembedError("tensor-shape", f"{named[name].file}: {name} has shape {found}, {shape} needed")
    if extra := sorted(named.keys() - needed.keys()):
        raise RefembedError(
            "tensor-unexpected", f"{folder}: {extra[0]} is not part of a Gemma 3 decoder ({len(extra)} such tensors)"
        )
    if head is not None and not np.array_equal(head.stored, named[TABLE].stored):
        raise RefembedError("tensor-unexpected", f"{head.file}: {HEAD} is not the table; only a tied head is supported")
    return named


# ------------------------------------------------------------------------------------------------------------- writing
def write_gemma(
    folder: Path, config: Config, tensors: Mapping[str, Tensor], tokenizer: Path, precision: str = "float32"
) -> None:
    """A new folder that transformers opens as a Gemma3ForCausalLM, whole or not at all.

    folder      not there yet, or empty
    tensors     every parameter by refembed's name, complete
    tokenizer   a folder whose tokenizer files are copied
    precision   what the numbers are stored in: float32 or bfloat16

    Raises RefembedError; where a number is not finite nothing is written.
    """
    stored = {f"{MODEL}{name}": storable(name, tensors[name], precision) for name in causal_shapes(config)}
    files = {
        "config.json": config_json(config, precision) | ALONE | {"architectures": ["Gemma3ForCausalLM"]},
        "tokenizer_config.json": {
            "tokenizer_class": "GemmaTokenizer",
            "model_max_length": config.context,
            "add_bos_token": True,
            "add_eos_token": False,  # as for every decoder: what it is given, it goes on writing
        },
    }
    with whole_folder(folder) as place:
        for name, content in files.items():
            (place / name).write_text(json.dumps(content, indent=2) + "\n")
        for name in TOKENIZER_FILES:
            if (tokenizer / name).exists():
                shutil.copyfile(tokenizer / name, place / name)
        write_tensors(place / WEIGHTS, stored)


def encoder_config(config: Config, dense: int, dimensions: int, context: int) -> Config:
    """Of the encoder made of a decoder: its own head's sizes, 0 for the released ratios, and at most this context."""
    return replace(
        config,
        dense=dense or config.dense,
        dimensions=dimensions or config.dimensions,
        context=min(context, config.context),
    )
