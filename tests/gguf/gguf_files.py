"""GGUF files for tests, in order and damaged: a serialiser that writes whatever it is told, lies included.

That it writes the form is proved by the gguf library, which reads its files, and by llama.cpp, which made two of them
into the files beside this one.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from support import random_parameters

from refembed.gguf.checkpoint import ARCHITECTURE, NAMES
from refembed.reference import FULL, SLIDING, Config

U8, I32, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10
FORMS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q", 11: "<q", 12: "<d"}
KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "BF16": 30}
ALIGNMENT = 32

# Whole blocks of 32, both kinds of layer, and the dimensions the width, as llama.cpp needs them
SMALL = Config(
    vocabulary=352,
    width=64,
    mlp=96,
    heads=2,
    key_heads=1,
    head=32,
    dense=96,
    dimensions=64,
    layer_kinds=(SLIDING, SLIDING, FULL),
    reach=4,
    context=64,
    query_scalar=32.0,
)
WORDS = ["the", "in", "on", "a", "he", "planet", "red", "is", "of", "ing", "er", "an", "at", "th", "re", "et", "pl"]


class Value(NamedTuple):
    """A value of the metadata; `kind` of an array is that of its items, and `count` may lie."""

    kind: int
    value: Any
    array: bool = False
    count: int | None = None


class Tensor(NamedTuple):
    """A tensor's entry and bytes; dims innermost first, as in the file. `offset` may lie."""

    name: str
    dims: tuple[int, ...]
    kind: int
    data: bytes
    offset: int | None = None


def text(value: str | bytes, size: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if size is None else size) + raw


def item(kind: int, value: Any) -> bytes:
    return text(value) if kind == STRING else struct.pack(FORMS[kind], value)


def value_bytes(value: Value | bytes) -> bytes:
    """Type and value; bytes are written as they are."""
    if isinstance(value, bytes):
        return value
    if not value.array:
        return struct.pack("<I", value.kind) + item(value.kind, value.value)
    head = struct.pack("<IIQ", ARRAY, value.kind, len(value.value) if value.count is None else value.count)
    if isinstance(value.value, np.ndarray):
        return head + value.value.tobytes()
    return head + b"".join(item(value.kind, one) for one in value.value)


def pack(
    values: list[tuple[str | bytes, Value | bytes]],
    tensors: list[Tensor],
    magic: bytes = b"GGUF",
    version: bytes = struct.pack("<I", 3),
    counts: tuple[int, int] | None = None,
    alignment: int = ALIGNMENT,
) -> bytes:
    """A file, byte for byte as told."""
    parts = [magic, version, struct.pack("<QQ", *(counts or (len(tensors), len(values))))]
    parts += [text(key) + value_bytes(value) for key, value in values]
    offset, data = 0, b""
    for tensor in tensors:
        place = offset if tensor.offset is None else tensor.offset
        form = struct.pack(f"<I{len(tensor.dims)}QIQ", len(tensor.dims), *tensor.dims, tensor.kind, place)
        parts.append(text(tensor.name) + form)
        data += tensor.data + bytes(-len(tensor.data) % alignment)
        offset = len(data)
    header = b"".join(parts)
    return header + bytes(-len(header) % alignment) + data


def pieces_of(config: Config) -> list[tuple[str, float, int]]:
    """Piece, score and type, in the form llama.cpp's converter gives Gemma's: -1000 and spaces for what is added."""
    found = [(name, -1000.0, 3) for name in ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_image>")]
    found += [(run, -1000.0, 4) for run in ("\n", "\n\n", "  ", "   ")]
    found += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    letters = [*"▁etaoinshrdlcumwfgypbvk,.", "é", "日"]
    ordinary = [*WORDS, *(f"▁{word}" for word in WORDS), *letters]
    ordinary += [f"filler{number}" for number in range(config.vocabulary)]
    ranked = enumerate(dict.fromkeys(ordinary))
    return [*found, *((piece, -float(rank), 1) for rank, piece in ranked)][: config.vocabulary]


def values_of(config: Config) -> dict[str, Value | bytes]:
    """The metadata of this config, as llama.cpp's converter writes it."""
    pieces = pieces_of(config)
    own = {
        "block_count": Value(U32, len(config.layer_kinds)),
        "context_length": Value(U32, config.context),
        "embedding_length": Value(U32, config.width),
        "feed_forward_length": Value(U32, config.mlp),
        "attention.head_count": Value(U32, config.heads),
        "attention.head_count_kv": Value(U32, config.key_heads),
        "attention.key_length": Value(U32, config.head),
        "attention.value_length": Value(U32, config.head),
        "attention.layer_norm_rms_epsilon": Value(F32, config.epsilon),
        "attention.sliding_window": Value(U32, 2 * config.reach),
        "attention.sliding_window_pattern": Value(U32, config.layer_kinds.index(FULL) + 1),
        "rope.freq_base": Value(F32, config.full_base),
        "rope.freq_base_swa": Value(F32, config.sliding_base),
        "dense_2_feat_in": Value(U32, config.width),
        "dense_2_feat_out": Value(U32, config.dense),
        "dense_3_feat_in": Value(U32, config.dense),
        "dense_3_feat_out": Value(U32, config.dimensions),
        "pooling_type": Value(U32, 1),
    }
    return {
        "general.architecture": Value(STRING, ARCHITECTURE),
        "general.type": Value(STRING, "model"),
        **{f"{ARCHITECTURE}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": Value(STRING, "llama"),
        "tokenizer.ggml.pre": Value(STRING, "default"),
        "tokenizer.ggml.tokens": Value(STRING, [piece for piece, *_ in pieces], array=True),
        "tokenizer.ggml.scores": Value(F32, [score for _, score, _ in pieces], array=True),
        "tokenizer.ggml.token_type": Value(I32, [type for *_, type in pieces], array=True),
        "tokenizer.ggml.bos_token_id": Value(U32, config.bos),
        "tokenizer.ggml.eos_token_id": Value(U32, config.eos),
        "tokenizer.ggml.unknown_token_id": Value(U32, 3),
        "tokenizer.ggml.padding_token_id": Value(U32, 0),
        "tokenizer.ggml.add_bos_token": Value(BOOL, True),
        "tokenizer.ggml.add_eos_token": Value(BOOL, True),
        "tokenizer.ggml.add_space_prefix": Value(BOOL, False),
        "general.quantization_version": Value(U32, 2),
    }


def their_name(name: str) -> str:
    """llama.cpp's name of a tensor of the checkpoint."""
    parts = name.removesuffix(".weight").split(".")
    layer = parts[1] if parts[0] == "layers" else ""
    general = ".".join(["layers", "N", *parts[2:]] if layer else parts)
    (found,) = [theirs for theirs, ours in NAMES.items() if ours == general]
    return f"{found.replace('N', layer, 1)}.weight"


def stored(values: NDArray[Any], kind: str) -> bytes:
    """Numbers in one of the types, by the gguf library."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(values, GGMLQuantizationType[kind]).tobytes()


def tensors_of(config: Config, kind: str = "F32", parameters: Mapping[str, Any] | None = None) -> list[Tensor]:
    """Every tensor: matrices in `kind`, norm weights in F32 with their one added."""
    found = []
    for name, values in (parameters or random_parameters(config, dtype=np.float32)).items():
        norm = name.endswith("norm.weight")
        data = (values + np.float32(1)).tobytes() if norm else stored(values, kind)
        found.append(Tensor(their_name(name), values.shape[::-1], KINDS["F32" if norm else kind], data))
    return found


def write_gguf(file: Path, config: Config = SMALL, kind: str = "F32") -> Path:
    """A file in order."""
    file.write_bytes(pack(list(values_of(config).items()), tensors_of(config, kind)))
    return file
