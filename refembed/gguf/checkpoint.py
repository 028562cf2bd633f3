"""A GGUF file of EmbeddingGemma as a checkpoint: its keys as the reference's Config, its tensors still in the file."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import DENSE, TABLE, Checkpoint, check_shapes
from ..config_file import MOST_LAYERS, SMALLEST, Reader, read_reach
from ..errors import RefembedError
from ..reference import FULL, SLIDING, Config
from ..reference.quantize import BLOCK, INT4_BLOCK, INT8_BLOCK, Grid, Quantized
from ..stored import QuantizedTensor, StoredTensor, Tensor, not_finite, widen
from .header import Entry, Header, read_header, round_up
from .tokenizer import Vocabulary, read_vocabulary, tokenizer_file

ARCHITECTURE = "gemma-embedding"
OWN = f"{ARCHITECTURE}."  # before every key that is the architecture's: without it a key is another's, and says nothing
SIZES = {  # ours -> the file's key
    "width": f"{OWN}embedding_length",
    "mlp": f"{OWN}feed_forward_length",
    "heads": f"{OWN}attention.head_count",
    "key_heads": f"{OWN}attention.head_count_kv",
    "head": f"{OWN}attention.key_length",
    "context": f"{OWN}context_length",
}
TOKENS = {"bos": "tokenizer.ggml.bos_token_id", "eos": "tokenizer.ggml.eos_token_id"}
# key -> the only value EmbeddingGemma has; an absent key means the same
FIXED = {
    f"{OWN}attn_logit_softcapping": 0.0,
    f"{OWN}rope.scale_linear": 1.0,
    f"{OWN}rope.scaling.type": "none",
    f"{OWN}rope.scaling.factor": 1.0,
}
# What llama.cpp takes where the key is absent; its converter did not write them, or does not
SLIDING_BASE, PATTERN = 10_000.0, 6
SLIDING_KEY, FULL_KEY, EPSILON_KEY = (
    f"{OWN}{key}" for key in ("rope.freq_base_swa", "rope.freq_base", "attention.layer_norm_rms_epsilon")
)
CAUSAL = "a causal Gemma 3's vectors would mean nothing"
POOLERS = {1: "mean", 2: "first", 3: "last"}  # llama.cpp's pooling_type -> ours
NAMES = {  # the file's name without .weight -> the checkpoint's; N is the layer
    "token_embd": "embed_tokens",
    "blk.N.attn_norm": "layers.N.input_layernorm",
    "blk.N.attn_q": "layers.N.self_attn.q_proj",
    "blk.N.attn_k": "layers.N.self_attn.k_proj",
    "blk.N.attn_v": "layers.N.self_attn.v_proj",
    "blk.N.attn_output": "layers.N.self_attn.o_proj",
    "blk.N.attn_q_norm": "layers.N.self_attn.q_norm",
    "blk.N.attn_k_norm": "layers.N.self_attn.k_norm",
    "blk.N.post_attention_norm": "layers.N.post_attention_layernorm",
    "blk.N.ffn_norm": "layers.N.pre_feedforward_layernorm",
    "blk.N.ffn_gate": "layers.N.mlp.gate_proj",
    "blk.N.ffn_up": "layers.N.mlp.up_proj",
    "blk.N.ffn_down": "layers.N.mlp.down_proj",
    "blk.N.post_ffw_norm": "layers.N.post_feedforward_layernorm",
    "output_norm": "norm",
    "dense_2": f"{DENSE[0]}.linear",
    "dense_3": f"{DENSE[1]}.linear",
}


class Kind(NamedTuple):
    """A type a tensor may be stored in.

    stored   of one number, or of a block of 32 with its scale before it
    grid     of blocks; None for floats
    """

    name: str
    stored: np.dtype[Any]
    grid: Grid | None = None


def blocks_of(levels: tuple[str, int]) -> np.dtype[Any]:
    return np.dtype([("scale", "<f2"), ("levels", *levels)])


KINDS = {  # by ggml's number
    0: Kind("F32", np.dtype("<f4")),
    1: Kind("F16", np.dtype("<f2")),
    30: Kind("BF16", np.dtype("<u2")),
    8: Kind("Q8_0", blocks_of(("i1", BLOCK)), INT8_BLOCK),
    2: Kind("Q4_0", blocks_of(("u1", BLOCK // 2)), INT4_BLOCK),
}
OTHER_KINDS = {
    3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    20: "IQ4_NL", 23: "IQ4_XS",
}  # fmt: skip


@dataclass(frozen=True)
class BlockTensor(QuantizedTensor):
    """A matrix whose blocks have their scale before them, still packed.

    stored   (rows, columns/32) of `scale` and `levels`: 32 int8; or 16 bytes, number n in the low half of byte n and
             number n + 16 in the high half, 8 added
    scales   (rows, columns/32) float16, a view of the same; below zero where the block's largest number is above it
    """

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[0], self.stored.shape[1] * BLOCK

    @property
    def mapped(self) -> tuple[NDArray[Any], ...]:
        return (self.stored,)

    def quantized(self, rows: slice | NDArray[Any] = slice(None)) -> Quantized:
        """Levels (rows, columns) int8, all from -128 or -8 on, and scales; raises where a scale is not finite."""
        blocks = self.stored[rows]  # (rows, blocks)
        scales = np.ascontiguousarray(blocks["scale"])
        if not np.isfinite(scales).all():
            raise not_finite(f"the scales of {self.name}", self.file)
        levels = blocks["levels"]  # (rows, blocks, 32 or 16)
        if self.grid.bits == 4:
            levels = np.concatenate([levels & 0x0F, levels >> 4], axis=-1).astype(np.int8) - np.int8(8)
        return Quantized(levels.reshape(len(blocks), -1), scales)


@dataclass(frozen=True)
class GgufCheckpoint(Checkpoint):
    """An opened file; `folder` is the file itself."""

    vocabulary: Vocabulary = field(kw_only=True)

    @cached_property
    def tokenizer(self) -> Path:
        return tokenizer_file(self.folder, self.vocabulary)

    @property
    def stamp(self) -> str:
        stat = self.folder.stat()
        return f"{self.folder.resolve()}:{stat.st_size}@{stat.st_mtime_ns}#{stat.st_ino}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 that names the model: its config's meaning, and the file."""
        with self.folder.open("rb") as handle:
            whole = hashlib.file_digest(handle, "sha256").hexdigest()
        return hashlib.sha256(f"{json.dumps(asdict(self.config), sort_keys=True)}\n{whole}".encode()).hexdigest()


def open_gguf(file: Path) -> GgufCheckpoint:
    """Open and check a file.

    Raises RefembedError with one line that names the file, the key or tensor, what was found and what is needed.
    """
    header = read_header(file)
    metadata = Metadata(file, header.values)
    check_kind(metadata)
    tensors = open_tensors(file, header)
    config = read_config(metadata, tensors)
    check_shapes(file, tensors, config)
    tensors = {name: norm_of(tensor) if name.endswith("norm.weight") else tensor for name, tensor in tensors.items()}
    vocabulary = read_vocabulary(file, header.values, config.bos, config.eos)
    if len(vocabulary.texts) != config.vocabulary:
        raise RefembedError(
            "tokenizer-vocabulary",
            f"{file} has {len(vocabulary.texts)} tokens, the embedding table {config.vocabulary} rows",
        )
    for id, needed in ((config.bos, b"<bos>"), (config.eos, b"<eos>")):
        if vocabulary.texts[id] != needed:
            found = vocabulary.texts[id].decode(errors="replace")
            raise RefembedError("tokenizer-special", f"{file}: token {id} is {found!r}, {needed.decode()!r} needed")
    return GgufCheckpoint(file, config, tensors, {}, vocabulary=vocabulary)


# ------------------------------------------------------------------------------------------------------------- metadata
class Metadata(Reader):
    """A file's values by key, each checked as it is read."""

    def __init__(self, file: Path, values: dict[str, Any]) -> None:
        self.file, self.values = file, values

    def fixed(self, key: str, needed: object, id: str, why: str) -> None:
        """Refuse another value than this one; an absent key means it."""
        value = self.values.get(key, needed)
        if type(value) is not type(needed) or value != needed:
            raise self.refuse(id, key, value, f"{needed!r} is needed: {why}")


def check_kind(metadata: Metadata) -> None:
    """Only EmbeddingGemma, whole."""
    parts = metadata.values.get("split.count", 0)
    if type(parts) is not int or parts > 1:  # 0 in a file put together again; later parts say nothing else
        raise metadata.refuse("weights-sharded", "split.count", parts, "one file is needed: llama-gguf-split --merge")
    found = str(metadata.get("general.architecture"))
    if found in ("gemma3", "gemma3n"):
        raise metadata.refuse("config-causal", "general.architecture", found, f"{ARCHITECTURE!r} is needed: {CAUSAL}")
    if found != ARCHITECTURE:
        raise metadata.refuse("config-model-type", "general.architecture", found, f"only {ARCHITECTURE!r} is supported")
    metadata.fixed(f"{OWN}attention.causal", False, "config-causal", CAUSAL)
    metadata.fixed("general.quantization_version", 2, "config-quantization", "convert the model again")
    for key, needed in FIXED.items():
        metadata.fixed(key, needed, "config-unsupported", "EmbeddingGemma has no other")


def read_config(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    """The Config of a file, whose vocabulary and dense sizes are those of its tensors."""
    up, down = (tensors[f"{name}.linear.weight"].shape for name in DENSE)
    if TABLE not in tensors:
        raise RefembedError("tensor-missing", f"{metadata.file}: token_embd.weight is missing")
    vocabulary = tensors[TABLE].shape[0]
    sizes = {ours: metadata.whole(key, SMALLEST.get(ours, 1)) for ours, key in SIZES.items()}
    head = sizes["head"]
    if sizes["heads"] % sizes["key_heads"]:
        raise metadata.refuse(
            "config-heads", SIZES["heads"], sizes["heads"], f"a multiple of {sizes['key_heads']} is needed"
        )
    if head % 2:
        raise metadata.refuse("config-heads", SIZES["head"], head, "an even number is needed to rotate pairs")
    same = {f"{OWN}attention.value_length": head, f"{OWN}rope.dimension_count": head}
    same |= {
        f"{OWN}dense_2_feat_in": up[-1],
        f"{OWN}dense_2_feat_out": up[0],
        f"{OWN}dense_3_feat_in": down[-1],
        f"{OWN}dense_3_feat_out": down[0],
    }
    for key, needed in same.items():
        metadata.fixed(key, needed, "config-unsupported", "the rest of the file says so")
    pooling = metadata.values.get(f"{OWN}pooling_type", 1)
    if type(pooling) is not int or pooling not in POOLERS:
        raise metadata.refuse(
            "pooling-unsupported", f"{OWN}pooling_type", pooling, f"one of {POOLERS} over every token is needed"
        )
    return Config(
        **sizes,
        **{ours: metadata.whole(key, 0, vocabulary - 1) for ours, key in TOKENS.items()},
        vocabulary=vocabulary,
        dense=up[0],
        dimensions=down[0],
        layer_kinds=read_layer_kinds(metadata),
        reach=read_reach(metadata, f"{OWN}attention.sliding_window"),
        sliding_base=metadata.positive(SLIDING_KEY, metadata.values.get(SLIDING_KEY, SLIDING_BASE)),
        full_base=metadata.positive(FULL_KEY, metadata.get(FULL_KEY)),
        query_scalar=float(head),
        epsilon=metadata.positive(EPSILON_KEY, metadata.get(EPSILON_KEY)),
        pooler=POOLERS[pooling],
    )


def read_layer_kinds(metadata: Metadata) -> tuple[str, ...]:
    """Every n-th layer full, or a list of which ones slide; every sixth where the file says nothing, as llama.cpp."""
    count = metadata.whole(f"{OWN}block_count", 1, MOST_LAYERS)
    key = f"{OWN}attention.sliding_window_pattern"
    if not isinstance(pattern := metadata.values.get(key), np.ndarray):
        every = metadata.whole(key) if key in metadata.values else PATTERN
        return tuple(SLIDING if (index + 1) % every else FULL for index in range(count))
    if pattern.dtype != np.bool_ or len(pattern) != count:
        found = f"{len(pattern)} of {pattern.dtype}"
        raise metadata.refuse("config-layer-types", key, found, f"{count} of true or false needed")
    return tuple(SLIDING if slides else FULL for slides in pattern)


# -------------------------------------------------------------------------------------------------------------- tensors
def open_tensors(file: Path, header: Header) -> dict[str, Tensor]:
    """Every tensor by the checkpoint's name, mapped."""
    missing = [name for name in ("dense_2", "dense_3") if f"{name}.weight" not in header.tensors]
    if missing:
        raise RefembedError(
            "dense-missing",
            f"{file} has no {' and no '.join(missing)}; every vector needs both dense matrices: take a file that has "
            f"them, or make one by convert_hf_to_gguf.py --sentence-transformers-dense-modules",
        )
    tensors: dict[str, Tensor] = {}
    offset = 0
    for name, entry in header.tensors.items():
        tensor, size = open_tensor(file, header, name, entry, offset)
        tensors[tensor.name] = tensor
        offset += round_up(size, header.alignment)
    return tensors


def open_tensor(file: Path, header: Header, name: str, entry: Entry, offset: int) -> tuple[Tensor, int]:
    """One tensor, which must begin where the one before it ends, and its size in bytes."""
    kind = KINDS.get(entry.kind)
    if kind is None:
        raise RefembedError(
            "tensor-dtype",
            f"{file}: {name} is stored as {OTHER_KINDS.get(entry.kind, f'type {entry.kind}')}; "
            f"{', '.join(one.name for one in KINDS.values())} are read: make the file again with llama-quantize "
            f"--token-embedding-type q8_0 and one of these types",
        )
    ours = our_name(file, name)
    columns = entry.shape[-1]
    per_block = BLOCK if kind.grid else 1
    if 0 in entry.shape or columns % per_block or (kind.grid and len(entry.shape) != 2):
        raise RefembedError("tensor-shape", f"{file}: {name} has shape {entry.shape}, which {kind.name} cannot have")
    size = math.prod(entry.shape) // per_block * kind.stored.itemsize
    start = header.start + offset
    if entry.offset != offset:
        raise RefembedError(
            "gguf-tensor", f"{file}: {name} is said to begin at {entry.offset}, {offset} needed; the file is damaged"
        )
    if start + size > len(header.data):
        raise RefembedError(
            "gguf-truncated",
            f"{file}: {name} goes on to byte {start + size}, the file to {len(header.data)}; fetch the file again",
        )
    stored = header.data[start : start + size].view(kind.stored).reshape(*entry.shape[:-1], columns // per_block)
    if kind.grid:
        return BlockTensor(ours, file, stored, stored["scale"], kind.grid), size
    return StoredTensor(ours, file, stored), size


def our_name(file: Path, name: str) -> str:
    """The checkpoint's name of a tensor."""
    layer = re.match(r"blk\.(0|[1-9]\d{0,3})\.", name)
    general = f"blk.N.{name[layer.end() :]}" if layer else name
    ours = NAMES.get(general.removesuffix(".weight"))
    if ours is None or not name.endswith(".weight") or ("N" in general) != bool(layer):
        raise RefembedError("tensor-unexpected", f"{file}: {name} is not part of EmbeddingGemma")
    return f"{ours.replace('N', layer[1], 1) if layer else ours}.weight"


def norm_of(tensor: Tensor) -> Tensor:
    """A norm weight as the checkpoint has it: llama.cpp's files have the one added that the norm adds.

    Of a tensor whose shape is known to be right, since this one is copied. float32 does not hold every weight plus one:
    of the released model's weights 16 % come back half a step of the sum beside the checkpoint's (relative 6e-8), and
    the sum, which is what a norm multiplies by, is the same for all.
    """
    assert isinstance(tensor, StoredTensor)  # blocks are of matrices
    return replace(tensor, stored=(widen(tensor.stored, np.float64) - 1).astype(np.float32))
