"""Bad inputs, one table: every kind of malformed checkpoint, text, file and option is refused by its own id.

A row that fails means that refembed took something wrong for something right, or answered it with a traceback, with
several lines, without naming what is at fault, slowly, by taking memory, or left a file behind.
"""

import ast
import gzip
import json
import os
import resource
import shutil
import signal
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from safetensors.numpy import load_file, save_file
from support import SMALL, config_json, tokenizer_json, write_checkpoint

import refembed
from refembed import textfiles
from refembed.cli import main
from refembed.errors import ERRORS, RefembedError
from refembed.quantization.folder import quantize_folder

SECONDS, MEBIBYTES = 10, 256  # far above what any refusal here needs, far below what the absurd sizes would take
LONGEST_MESSAGE = 1000
LINUX = sys.platform == "linux"
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
WEIGHTS, UP, DOWN = "model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors"
LAYER = "layers.1.mlp.up_proj.weight"
Spoil = Callable[[Path], object]
GONE = object()


@dataclass(frozen=True)
class Bad:
    """One kind of bad input.

    slug     its name, never reused
    id       the error id it must give; says: what the message must name
    spoil    breaks a fresh small checkpoint, in place
    call     what is then done with the folder in Python; to load it and embed a text where not given
    argv     or the command line, in a folder that holds `files`; {model} stands for the checkpoint
    line     or a line among good ones of `file`, which alone must be left out
    plain_user   as somebody else than the administrator, who may read and write everything
    """

    slug: str
    id: str
    says: tuple[str, ...]
    spoil: Spoil | None = None
    call: Callable[[Path], object] | None = None
    argv: tuple[str, ...] = ()
    files: tuple[tuple[str, bytes | None], ...] = ()
    line: bytes | None = None
    file: str = "in.jsonl"
    skip: str = ""
    plain_user: bool = False


# ------------------------------------------------------------------------------------------------ how to break a folder
def edit(name: str, **changes: object) -> Spoil:
    """Other values for keys of a JSON file, which is made where it is not there; GONE removes a key."""

    def spoil(folder: Path) -> None:
        file = folder / name
        values = json.loads(file.read_text()) if file.exists() else {}
        values = {key: value for key, value in (values | changes).items() if value is not GONE}
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(values))

    return spoil


def config(**changes: object) -> Spoil:
    return edit("config.json", **changes)


def write(name: str, content: str | bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def change(name: str, how: Callable[[bytes], bytes]) -> Spoil:
    return lambda folder: (folder / name).write_bytes(how((folder / name).read_bytes()))


def sparse(name: str, size: int) -> Spoil:
    """A file of that size that takes no room on the disk."""

    def spoil(folder: Path) -> None:
        with (folder / name).open("wb") as handle:
            handle.truncate(size)

    return spoil


def remove(*names: str) -> Spoil:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def folder_instead(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir(parents=True)

    return spoil


def link_instead(name: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


def tensors(name: str, how: Callable[[dict[str, np.ndarray]], object]) -> Spoil:
    """Other tensors in a safetensors file that is itself in order."""

    def spoil(folder: Path) -> None:
        content = dict(load_file(folder / name))
        how(content)
        save_file({key: np.ascontiguousarray(tensor) for key, tensor in content.items()}, folder / name)

    return spoil


def quantised(folder: Path) -> None:
    """The same checkpoint in the form mixed-channel."""
    quantize_folder(folder, folder.parent / "quantised", "mixed-channel")
    shutil.rmtree(folder)
    (folder.parent / "quantised").rename(folder)


def put(tensor: str, place: tuple[int, ...] | int, value: float) -> Callable[[dict[str, np.ndarray]], object]:
    def how(content: dict[str, np.ndarray]) -> None:
        content[tensor][place] = value

    return how


def cast(tensor: str, dtype: type) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda content: content.update({tensor: content[tensor].astype(dtype)})


def pack(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file by hand: length, header, data, whether or not they fit each other."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def empty_tensors(count: int, name: str = WEIGHTS) -> Spoil:
    """A file of tensors without a number, each 57 bytes of header and ten times that in memory."""

    def spoil(folder: Path) -> None:
        entries = (b'"%06d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % index for index in range(count))
        (folder / name).write_bytes(pack(b"{" + b",".join(entries) + b"}"))

    return spoil


def unpack(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def entry(tensor: str, **changes: object) -> Spoil:
    """Other values in one tensor's entry of the weights' header."""

    def how(content: bytes) -> bytes:
        header, data = unpack(content)
        header[tensor] |= changes
        return pack(header, data)

    return change(WEIGHTS, how)


def overlapping(content: bytes) -> bytes:
    """Two entries of one size that both point at the first one's bytes."""
    header, data = unpack(content)
    header["layers.1.mlp.up_proj.weight"]["data_offsets"] = header["layers.0.mlp.up_proj.weight"]["data_offsets"]
    return pack(header, data)


def bfloat16(content: bytes) -> bytes:
    """The same weights stored as bfloat16, with a NaN in the last norm."""
    header, data = unpack(content)
    parts, end = [], 0
    for name in (name for name in header if name != "__metadata__"):
        start, stop = header[name]["data_offsets"]
        upper = np.frombuffer(data[start:stop], "<u4") >> 16
        if name == "norm.weight":
            upper[3] = 0x7FC0
        parts.append(upper.astype("<u2").tobytes())
        header[name] |= {"dtype": "BF16", "data_offsets": [end, end + len(parts[-1])]}
        end += len(parts[-1])
    return pack(header, b"".join(parts))


def tokenizer(how: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        how(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return spoil


def rename_piece(old: str, new: str) -> Callable[[dict[str, Any]], object]:
    def how(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary[new] = vocabulary.pop(old)
        content["added_tokens"] = [one for one in content["added_tokens"] if one["content"] != old]

    return how


def swap_ends(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["<bos>"], vocabulary["<eos>"] = vocabulary["<eos>"], vocabulary["<bos>"]
    content["added_tokens"] = []
    content["post_processor"] = None


def unknown_unknown(content: dict[str, Any]) -> None:
    """A tokenizer that opens, and fails at the first character it does not know."""
    content["model"] |= {"unk_token": "<nowhere>", "byte_fallback": False}


def words_only(content: dict[str, Any]) -> None:
    content["model"] = {"type": "WordLevel", "vocab": content["model"]["vocab"], "unk_token": "<nowhere>"}


def added_beyond(content: dict[str, Any]) -> None:
    """Gemma's own case: a token for images, beyond the embedding table."""
    content["added_tokens"].append(dict(content["added_tokens"][0], id=SMALL.vocabulary, content="<image>"))


def modules(*kinds: str) -> str:
    return json.dumps([{"idx": i, "name": str(i), "path": "", "type": f"st.models.{k}"} for i, k in enumerate(kinds)])


def pooling(**values: object) -> Spoil:
    return write("1_Pooling/config.json", json.dumps(values))


def both(*spoils: Spoil) -> Spoil:
    return lambda folder: [spoil(folder) for spoil in spoils]


def load(folder: Path) -> refembed.Embedder:
    return refembed.load(folder, backend="numpy")


def encode(*positional: Any, **options: Any) -> Callable[[Path], object]:
    return lambda folder: load(folder).encode(*positional, **options)


def open_with(**options: Any) -> Callable[[Path], object]:
    return lambda folder: refembed.load(folder, **options)


def similarity(first: object, second: object) -> Callable[[Path], object]:
    return lambda folder: refembed.similarity(first, second)


# -------------------------------------------------------------------------------------------------------- kinds of rows
def folder(slug: str, id: str, says: str | tuple[str, ...], *spoils: Spoil, **more: Any) -> Bad:
    """A checkpoint that is refused by refembed.load and by the command line alike."""
    return Bad(slug, id, (says,) if isinstance(says, str) else says, spoil=both(*spoils), **more)


def python(slug: str, id: str, says: str | tuple[str, ...], call: Callable[[Path], object], *spoils: Spoil) -> Bad:
    return Bad(slug, id, (says,) if isinstance(says, str) else says, spoil=both(*spoils), call=call)


def command(
    slug: str,
    id: str,
    says: str | tuple[str, ...],
    *argv: str,
    skip: str = "",
    plain_user: bool = False,
    spoil: Spoil | None = None,
    **files: bytes | None,
) -> Bad:
    """A command that is refused as a whole. files: name with _ for its dot -> content, None for a folder."""
    named = tuple((name.replace("_", ".", 1).replace("_", "."), content) for name, content in files.items())
    says = (says,) if isinstance(says, str) else says
    return Bad(slug, id, says, argv=argv, files=named, skip=skip, plain_user=plain_user, spoil=spoil)


def line(slug: str, id: str, content: bytes, *argv: str, file: str = "in.jsonl", spoil: Spoil | None = None) -> Bad:
    """A line that is left out, alone."""
    return Bad(slug, id, (f"{file}:2: ",), line=content, file=file, argv=argv, spoil=spoil)


NEEDED_KEYS = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "layer_types", "sliding_window", "max_position_embeddings", "rope_theta"),
    *("rope_local_base_freq", "query_pre_attn_scalar", "rms_norm_eps", "bos_token_id", "eos_token_id"),
)
GARBAGE = bytes(range(255, -1, -1)) * 20
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1211486072\n"
NOT_LINUX = "" if LINUX else "needs Linux's /proc, where even the administrator cannot read or write"
GZIPPED = gzip.compress(b"one\ntwo\nthree\n" * 100)  # one chunk: of a larger file what can be read is embedded first

FOLDERS = [
    # files missing, or something else in their place
    folder("weights-absent", "file-missing", WEIGHTS, remove(WEIGHTS)),
    folder("weights-link-to-nowhere", "file-missing", WEIGHTS, link_instead(WEIGHTS, "../blobs/0123")),
    folder("weights-sharded", "weights-sharded", WEIGHTS, remove(WEIGHTS), write(f"{WEIGHTS}.index.json", "{}")),
    folder("weights-pickled", "weights-pickle", "pytorch_model.bin", remove(WEIGHTS),
           write("pytorch_model.bin", b"\x80")),
    folder("config-absent", "file-missing", "config.json", remove("config.json")),
    folder("tokenizer-absent", "file-missing", "tokenizer.json", remove("tokenizer.json")),
    folder("tokenizer-sentencepiece-only", "file-missing", "tokenizer.json", remove("tokenizer.json"),
           write("tokenizer.model", GARBAGE)),
    folder("weights-a-folder", "file-unreadable", WEIGHTS, folder_instead(WEIGHTS)),
    folder("dense-a-folder", "file-unreadable", UP, folder_instead(UP)),
    folder("config-a-folder", "file-unreadable", "config.json", folder_instead("config.json")),
    folder("tokenizer-a-folder", "file-unreadable", "tokenizer.json", folder_instead("tokenizer.json")),
    folder("modules-a-folder", "file-unreadable", "modules.json", folder_instead("modules.json")),
    folder("config-unreadable", "file-unreadable", "config.json", link_instead("config.json", "/proc/self/mem"),
           skip=NOT_LINUX),
    folder("tokenizer-unreadable", "file-unreadable", "tokenizer.json",
           link_instead("tokenizer.json", "/proc/self/mem"), skip=NOT_LINUX),
    folder("config-forbidden", "file-unreadable", "config.json", lambda f: (f / "config.json").chmod(0),
           plain_user=True),
    folder("weights-forbidden", "file-unreadable", (WEIGHTS, "Permission"), lambda f: (f / WEIGHTS).chmod(0),
           plain_user=True),
    folder("tokenizer-forbidden", "file-unreadable", "tokenizer.json", lambda f: (f / "tokenizer.json").chmod(0),
           plain_user=True),
    # JSON
    folder("config-empty", "json-invalid", "config.json", write("config.json", "")),
    folder("config-garbage", "json-invalid", "config.json", write("config.json", GARBAGE)),
    folder("config-cut", "json-invalid", "config.json", change("config.json", lambda content: content[:-20])),
    folder("config-utf-16", "json-invalid", "config.json",
           change("config.json", lambda c: c.decode().encode("utf-16"))),
    folder("config-nested-deep", "json-invalid", "config.json", write("config.json", "[" * 10**6)),
    folder("config-number-of-5000-digits", "json-invalid", "config.json",
           write("config.json", '{"a": ' + "7" * 5000 + "}")),
    folder("config-a-list", "json-not-object", ("config.json", "list"), write("config.json", "[]")),
    folder("config-null", "json-not-object", "config.json", write("config.json", "null")),
    folder("config-a-terabyte", "file-too-large", "config.json", sparse("config.json", 2**40)),
    folder("modules-a-terabyte", "file-too-large", "modules.json", sparse("modules.json", 2**40)),
    folder("modules-an-object", "json-not-object", ("modules.json", "dict"), write("modules.json", "{}")),
    folder("pooling-a-list", "json-not-object", "1_Pooling", write("1_Pooling/config.json", "[1]")),
    folder("dense-config-garbage", "json-invalid", "3_Dense", write("3_Dense/config.json", GARBAGE)),
    folder("prompts-file-cut", "json-invalid", "config_sentence_transformers.json",
           write("config_sentence_transformers.json", '{"prompts": {')),
    folder("length-file-garbage", "json-invalid", "sentence_bert_config.json",
           write("sentence_bert_config.json", "{,}")),
    folder("tokenizer-config-garbage", "json-invalid", "tokenizer_config.json",
           write("tokenizer_config.json", "{'a': 1}")),
    # config.json: what kind of model
    *(folder(f"config-without-{key}", "config-missing", ("config.json", key),
      config(**{key: GONE})) for key in NEEDED_KEYS),
    folder("model-bert", "config-model-type", "bert", config(model_type="bert")),
    folder("model-gemma3-with-images", "config-model-type", "gemma3", config(model_type="gemma3")),
    folder("model-embeddinggemma-2", "config-model-type", "gemma4_text", config(model_type="gemma4_text")),
    folder("model-type-a-list", "config-model-type", "model_type", config(model_type=["gemma3_text"])),
    folder("model-type-endless", "config-model-type", "model_type", config(model_type="x" * 10**6)),
    folder("causal-flag-absent", "config-causal", "use_bidirectional_attention",
           config(use_bidirectional_attention=GONE)),
    folder("causal-flag-false", "config-causal", "use_bidirectional_attention",
           config(use_bidirectional_attention=False)),
    folder("causal-flag-a-word", "config-causal", "use_bidirectional_attention",
           config(use_bidirectional_attention="true")),
    folder("rope-scaled", "config-unsupported", "rope_scaling",
           config(rope_scaling={"factor": 8.0, "rope_type": "linear"})),
    folder("scores-soft-capped", "config-unsupported", "attn_logit_softcapping", config(attn_logit_softcapping=50.0)),
    folder("gelu-exact", "config-unsupported", "hidden_activation", config(hidden_activation="gelu")),
    folder("attention-bias", "config-unsupported", "attention_bias", config(attention_bias=True)),
    folder("rope-parameters-scaled", "config-unsupported", "rope_parameters.full_attention", config(rope_parameters={
        "sliding_attention": {"rope_theta": 1e4}, "full_attention": {"rope_theta": 1e6, "rope_type": "yarn"}})),
    folder("rope-parameters-of-one-kind", "config-missing", "rope_parameters.full_attention",
           config(rope_parameters={"sliding_attention": {"rope_theta": 1e4}})),
    folder("rope-parameters-a-list", "config-missing", "rope_parameters", config(rope_parameters=[1e4, 1e6])),
    folder("rope-parameters-a-word", "config-type", "rope_theta", config(rope_parameters={
        "sliding_attention": {"rope_theta": "1e4"}, "full_attention": {"rope_theta": 1e6}})),
    # config.json: types and ranges
    folder("size-a-word", "config-type", ("hidden_size", "'48'"), config(hidden_size="48")),
    folder("size-a-truth-value", "config-type", ("num_key_value_heads", "True"), config(num_key_value_heads=True)),
    folder("size-a-fraction", "config-type", ("num_hidden_layers", "4.0"), config(num_hidden_layers=4.0)),
    folder("size-null", "config-type", ("intermediate_size", "None"), config(intermediate_size=None)),
    folder("size-a-list", "config-type", "vocab_size", config(vocab_size=[160])),
    folder("size-nan", "config-type", ("head_dim", "nan"), config(head_dim=float("nan"))),
    folder("window-null", "config-type", "sliding_window", config(sliding_window=None)),
    folder("base-a-word", "config-type", "rope_theta", config(rope_theta="1e6")),
    folder("epsilon-a-truth-value", "config-type", "rms_norm_eps", config(rms_norm_eps=True)),
    folder("bos-null", "config-type", "bos_token_id", config(bos_token_id=None)),
    folder("eos-several", "config-type", "eos_token_id", config(eos_token_id=[1, 106])),
    folder("size-zero", "config-range", ("hidden_size", "0"), config(hidden_size=0)),
    folder("size-negative", "config-range", ("intermediate_size", "-80"), config(intermediate_size=-80)),
    folder("key-heads-zero", "config-range", "num_key_value_heads", config(num_key_value_heads=0)),
    folder("layers-a-billion", "config-range", "num_hidden_layers", config(num_hidden_layers=10**9, layer_types=GONE,
                                                                        _sliding_window_pattern=6)),
    folder("vocabulary-a-trillion", "config-range", "vocab_size", config(vocab_size=10**12)),
    folder("vocabulary-16-million", "tensor-shape", "embed_tokens.weight", config(vocab_size=2**24)),
    folder("width-16-million", "tensor-shape", "embed_tokens.weight", config(hidden_size=2**24)),
    folder("context-2-to-63", "config-range", "max_position_embeddings", config(max_position_embeddings=2**63)),
    folder("window-zero", "config-range", "sliding_window", config(sliding_window=0)),
    folder("epsilon-nan", "config-range", ("rms_norm_eps", "nan"), config(rms_norm_eps=float("nan"))),
    folder("epsilon-zero", "config-range", "rms_norm_eps", config(rms_norm_eps=0.0)),
    folder("base-infinite", "config-range", ("rope_theta", "inf"), config(rope_theta=float("inf"))),
    folder("base-beyond-float", "config-range", "rope_theta", config(rope_theta=10**400)),
    folder("scalar-minus-infinite", "config-range", "query_pre_attn_scalar",
           config(query_pre_attn_scalar=-float("inf"))),
    folder("scalar-negative", "config-range", "query_pre_attn_scalar", config(query_pre_attn_scalar=-16)),
    folder("bos-beyond-vocabulary", "config-range", "bos_token_id", config(bos_token_id=160)),
    folder("eos-negative", "config-range", "eos_token_id", config(eos_token_id=-1)),
    folder("pattern-zero", "config-range", "sliding_window_pattern",
           config(layer_types=GONE, _sliding_window_pattern=0)),
    folder("pattern-a-word", "config-type", "sliding_window_pattern",
           config(layer_types=GONE, sliding_window_pattern="6")),
    folder("layer-types-too-few", "config-layer-types", "layer_types", config(layer_types=["full_attention"] * 3)),
    folder("layer-types-another-word", "config-layer-types", "linear_attention", config(
        layer_types=["full_attention", "sliding_attention", "linear_attention", "full_attention"])),
    folder("layer-types-a-word", "config-layer-types", "layer_types", config(layer_types="full")),
    folder("layer-types-numbers", "config-layer-types", "layer_types", config(layer_types=[0, 0, 1, 0])),
    folder("layer-types-nested", "config-layer-types", "layer_types", config(layer_types=[["full_attention"]] * 4)),
    folder("layer-types-endless", "config-layer-types", "layer_types",
           config(layer_types=[str(i) for i in range(10**5)])),
    folder("head-odd", "config-heads", ("head_dim", "15"), config(head_dim=15)),
    folder("heads-no-multiple", "config-heads", ("num_attention_heads", "3"), config(num_key_value_heads=2)),
    # the sentence-transformers files
    folder("pooling-max", "pooling-unsupported", ("1_Pooling", "max"), pooling(pooling_mode_max_tokens=True)),
    folder("pooling-unknown-word", "pooling-unsupported", "attention9", pooling(pooling_mode="attention9")),
    folder("pooling-two-modes", "pooling-unsupported", ("mean", "cls"),
           pooling(pooling_mode_mean_tokens=True, pooling_mode_cls_token=True)),
    folder("pooling-two-in-a-list", "pooling-unsupported", "1_Pooling", pooling(pooling_mode=["mean", "cls"])),
    folder("pooling-without-prompt", "pooling-unsupported", "include_prompt", pooling(
        pooling_mode_mean_tokens=True, include_prompt=False)),
    folder("pooling-a-number", "pooling-unsupported", "1_Pooling", pooling(pooling_mode=5)),
    folder("pooling-an-object", "pooling-unsupported", "1_Pooling", pooling(pooling_mode={"mean": True})),
    folder("pooling-of-no-kind", "pooling-unsupported", "1_Pooling", pooling(
        pooling_mode_mean_tokens=False, pooling_mode_attention=True)),
    folder("pooling-nested", "pooling-unsupported", "1_Pooling", pooling(pooling_mode=[["mean"]])),
    folder("modules-without-normalize", "modules-unsupported", ("modules.json", "Normalize"),
           write("modules.json", modules("Transformer", "Pooling", "Dense", "Dense"))),
    folder("modules-without-dense", "modules-unsupported", "modules.json",
           write("modules.json", modules("Transformer", "Pooling", "Normalize"))),
    folder("modules-reordered", "modules-unsupported", "modules.json",
           write("modules.json", modules("Transformer", "Pooling", "Normalize", "Dense", "Dense"))),
    folder("modules-none", "modules-unsupported", "modules.json", write("modules.json", "[]")),
    folder("modules-numbers", "modules-unsupported", "modules.json", write("modules.json", "[1, null, [], 2, 3]")),
    folder("prompts-numbers", "prompts-invalid", "config_sentence_transformers.json",
           edit("config_sentence_transformers.json", prompts={"query": 1})),
    folder("prompts-a-list", "prompts-invalid", "config_sentence_transformers.json",
           edit("config_sentence_transformers.json", prompts=["task: "])),
    # the dense matrices
    folder("dense-one-absent", "dense-missing", "3_Dense", remove(DOWN)),
    folder("dense-both-absent", "dense-missing", "2_Dense",
           lambda f: [shutil.rmtree(f / d) for d in ("2_Dense", "3_Dense")]),
    folder("dense-folder-a-file", "dense-missing", "2_Dense", lambda f: shutil.rmtree(f / "2_Dense"),
           write("2_Dense", "")),
    folder("dense-transposed", "tensor-shape", "2_Dense",
           tensors(UP, lambda content: content.update({"linear.weight": content["linear.weight"].T}))),
    folder("dense-biased", "dense-unsupported", ("2_Dense", "linear.bias"),
           tensors(UP, lambda content: content.update({"linear.bias": np.zeros(96, np.float32)}))),
    folder("dense-bias-in-config", "dense-unsupported", ("2_Dense", "bias"), edit("2_Dense/config.json", bias=True)),
    folder("dense-tanh", "dense-unsupported", ("3_Dense", "Tanh"),
           edit("3_Dense/config.json", activation_function="torch.nn.modules.activation.Tanh")),
    folder("dense-activation-of-two-lines", "dense-unsupported", "3_Dense",
           edit("3_Dense/config.json", activation_function="Tanh\nrefembed: all is well")),
    folder("dense-without-tensors", "dense-unsupported", "2_Dense", write(UP, pack({}))),
    folder("dense-a-vector", "dense-unsupported", "3_Dense",
           tensors(DOWN, lambda content: content.update({"linear.weight": content["linear.weight"][0]}))),
    folder("dense-of-no-rows", "dense-unsupported", "3_Dense",
           tensors(DOWN, lambda content: content.update({"linear.weight": content["linear.weight"][:0]}))),
    folder("dense-of-no-width", "dense-unsupported", "2_Dense",
           tensors(UP, lambda c: c.update({"linear.weight": c["linear.weight"][:0]})),
           tensors(DOWN, lambda c: c.update({"linear.weight": c["linear.weight"][:, :0]}))),
    # safetensors files that are damaged, or are none
    folder("weights-of-no-bytes", "tensors-invalid", WEIGHTS, write(WEIGHTS, b"")),
    folder("weights-of-five-bytes", "tensors-invalid", WEIGHTS, write(WEIGHTS, b"\5\0\0\0\0")),
    folder("weights-git-lfs-pointer", "tensors-invalid", WEIGHTS, write(WEIGHTS, POINTER)),
    folder("weights-a-web-page", "tensors-invalid", WEIGHTS,
           write(WEIGHTS, "<!doctype html><title>Sign in</title>" * 9)),
    folder("weights-a-pickle-renamed", "tensors-invalid", WEIGHTS, write(WEIGHTS, b"\x80\x04cos\nsystem\n(Vecho\ntR.")),
    folder("weights-header-cut", "tensors-invalid", WEIGHTS, change(WEIGHTS, lambda content: content[:200])),
    folder("weights-header-2-to-63", "tensors-invalid", WEIGHTS, write(WEIGHTS, pack(b"{}", length=2**63))),
    folder("weights-header-2-to-64", "tensors-invalid", WEIGHTS, write(WEIGHTS, pack(b"{}", length=2**64 - 1))),
    folder("weights-header-a-terabyte", "tensors-too-large", WEIGHTS, sparse(WEIGHTS, 2**40),
           lambda f: (f / WEIGHTS).open("r+b").write((2**39).to_bytes(8, "little"))),
    folder("weights-header-of-empty-tensors", "tensors-too-large", (WEIGHTS, "header"), empty_tensors(250_000)),
    folder("weights-of-a-tensor-too-many", "tensors-too-large", ("32769", WEIGHTS), empty_tensors(2**15 + 1)),
    folder("weights-as-many-tensors-as-may-be", "tensor-missing", WEIGHTS, empty_tensors(2**15)),
    folder("dense-header-of-empty-tensors", "tensors-too-large", UP, empty_tensors(80_000, UP)),
    folder("weights-header-a-list", "tensors-invalid", WEIGHTS, write(WEIGHTS, pack([]))),
    folder("weights-header-garbage", "tensors-invalid", WEIGHTS, write(WEIGHTS, pack(GARBAGE))),
    folder("weights-header-nested-deep", "tensors-invalid", WEIGHTS, write(WEIGHTS, pack(b'{"a":' * 10**5))),
    folder("weights-cut-by-one-byte", "tensors-truncated", WEIGHTS, change(WEIGHTS, lambda content: content[:-1])),
    folder("weights-cut-in-half", "tensors-truncated", WEIGHTS, change(WEIGHTS, lambda c: c[: len(c) // 2])),
    folder("weights-with-more-bytes", "tensors-truncated", WEIGHTS, change(WEIGHTS, lambda content: content + b"\0")),
    folder("dense-cut", "tensors-truncated", DOWN, change(DOWN, lambda content: content[:-4])),
    folder("offsets-overlap", "tensors-invalid", WEIGHTS, change(WEIGHTS, overlapping)),
    folder("offsets-outside", "tensors-invalid", WEIGHTS, entry("norm.weight", data_offsets=[2**60, 2**60 + 192])),
    folder("offsets-backwards", "tensors-invalid", WEIGHTS, entry("norm.weight", data_offsets=[192, 0])),
    folder("offsets-negative", "tensors-invalid", WEIGHTS, entry("norm.weight", data_offsets=[-192, 0])),
    folder("shape-huge", "tensors-invalid", WEIGHTS, entry("norm.weight", shape=[2**40, 2**40])),
    folder("shape-overflowing", "tensors-invalid", WEIGHTS, entry("norm.weight", shape=[2**62, 16])),
    folder("shape-negative", "tensors-invalid", WEIGHTS, entry("norm.weight", shape=[-48])),
    folder("shape-beside-its-bytes", "tensors-invalid", WEIGHTS, entry("norm.weight", shape=[49])),
    folder("dtype-nobody-knows", "tensors-invalid", WEIGHTS, entry("norm.weight", dtype="F33")),
    # tensors
    folder("dtype-float16", "tensor-dtype", (WEIGHTS, LAYER, "F16"), tensors(WEIGHTS, cast(LAYER, np.float16))),
    folder("dtype-float64", "tensor-dtype", (LAYER, "F64"), tensors(WEIGHTS, cast(LAYER, np.float64))),
    folder("dtype-int8", "tensor-dtype", (LAYER, "I8"), tensors(WEIGHTS, cast(LAYER, np.int8))),
    folder("dtype-float16-in-dense", "tensor-dtype", (UP, "F16"), tensors(UP, cast("linear.weight", np.float16))),
    folder("quantisation-of-others", "config-quantization", "bitsandbytes",
           config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})),
    folder("quantisation-of-a-later-version", "config-quantization", "'version': 2",
           config(quantization_config={"quant_method": "refembed", "form": "int8-block", "version": 2})),
    folder("quantisation-of-no-form", "config-quantization", "int3-block",
           config(quantization_config={"quant_method": "refembed", "form": "int3-block", "version": 1})),
    folder("quantisation-is-a-word", "config-quantization", "'int8'", config(quantization_config="int8")),
    folder("quantised-by-name-alone", "tensor-dtype", ("linear.weight", "F32", "U8"), config(
        quantization_config={"quant_method": "refembed", "form": "mixed-channel", "version": 1})),
    folder("quantised-without-scales", "tensor-missing", f"{LAYER}.scales",
           quantised, tensors(WEIGHTS, lambda content: content.pop(f"{LAYER}.scales"))),
    folder("quantised-scales-of-nothing", "tensor-unexpected", "layers.9.scales", quantised, tensors(
        WEIGHTS, lambda content: content.update({"layers.9.scales": content[f"{LAYER}.scales"]}))),
    folder("quantised-scales-of-another-shape", "tensor-shape", (f"{LAYER}.scales", "(80, 1)"), quantised, tensors(
        WEIGHTS, lambda content: content.update({f"{LAYER}.scales": content[f"{LAYER}.scales"][1:]}))),
    folder("quantised-scales-in-float32", "tensor-shape", (f"{LAYER}.scales", "F32"),
           quantised, tensors(WEIGHTS, cast(f"{LAYER}.scales", np.float32))),
    folder("quantised-scale-nan", "tensor-not-finite", f"{LAYER}.scales",
           quantised, tensors(WEIGHTS, put(f"{LAYER}.scales", (3, 0), float("nan")))),
    folder("quantised-scale-below-zero", "tensor-scale", (f"{LAYER}.scales", "at least 0 needed"),
           quantised, tensors(WEIGHTS, put(f"{LAYER}.scales", (3, 0), -0.5))),
    folder("quantised-level-beyond", "tensor-level", (LAYER, "-8", "-7"),
           quantised, tensors(WEIGHTS, put(LAYER, (3, 0), 0x18))),
    command("quantise-what-is-quantised", "config-quantization", "mixed-channel",
            "quantize", "{model}", "again", "--format", "int8-block", spoil=quantised),
    command("quantise-what-no-scale-reaches", "tensor-too-large", (LAYER, "1e+09", "7 * 65504"),
            "quantize", "{model}", "out", "--format", "mixed-channel",
            spoil=tensors(WEIGHTS, put(LAYER, (3, 0), 1e9))),
    command("quantise-other-blocks", "tensor-shape", ("rows of 48 numbers", "32"),
            "quantize", "{model}", "out", "--format", "int4-block"),
    command("quantise-over-a-folder", "output-unwritable", "is there already",
            "quantize", "{model}", "{model}", "--format", "mixed-channel"),
    folder("tensor-absent", "tensor-missing", (WEIGHTS, LAYER), tensors(WEIGHTS, lambda content: content.pop(LAYER))),
    folder("tensors-none", "tensor-missing", WEIGHTS, write(WEIGHTS, pack({}))),
    folder("tensors-prefixed", "tensor-missing", "embed_tokens.weight", tensors(
        WEIGHTS, lambda content: [content.update({f"model.{name}": content.pop(name)}) for name in list(content)])),
    folder("tensor-of-the-language-model", "tensor-unexpected", "lm_head.weight",
           tensors(WEIGHTS, lambda content: content.update({"lm_head.weight": content["embed_tokens.weight"]}))),
    folder("tensor-bias", "tensor-unexpected", "layers.0.self_attn.q_proj.bias", tensors(
        WEIGHTS, lambda content: content.update({"layers.0.self_attn.q_proj.bias": np.zeros(48, np.float32)}))),
    folder("tensor-named-over-two-lines", "tensor-unexpected", WEIGHTS, tensors(
        WEIGHTS, lambda content: content.update({"a\nb\x1b[2Jc": np.zeros(48, np.float32)}))),
    folder("tensor-of-one-more-layer", "tensor-unexpected", "layers.4", tensors(
        WEIGHTS, lambda content: content.update({"layers.4.mlp.up_proj.weight": content[LAYER]}))),
    folder("tensor-transposed", "tensor-shape", (LAYER, "(48, 80)", "(80, 48)"),
           tensors(WEIGHTS, lambda content: content.update({LAYER: content[LAYER].T}))),
    folder("tensor-one-row-short", "tensor-shape", ("embed_tokens.weight", "159", "160"), tensors(
        WEIGHTS, lambda content: content.update({"embed_tokens.weight": content["embed_tokens.weight"][:-1]}))),
    folder("tensor-a-single-number", "tensor-shape", "norm.weight", tensors(
        WEIGHTS, lambda content: content.update({"norm.weight": np.float32(1)}))),
    folder("tensors-all-empty", "tensor-shape", WEIGHTS, tensors(
        WEIGHTS, lambda content: content.update({name: content[name][:0] for name in content}))),
    folder("nan-in-a-layer", "tensor-not-finite", (WEIGHTS, LAYER), tensors(WEIGHTS, put(LAYER, (7, 3), np.nan))),
    folder("infinity-in-a-layer", "tensor-not-finite", LAYER, tensors(WEIGHTS, put(LAYER, (79, 47), np.inf))),
    folder("minus-infinity-in-a-norm", "tensor-not-finite", "norm.weight",
           tensors(WEIGHTS, put("norm.weight", 0, -np.inf))),
    folder("nan-in-dense", "tensor-not-finite", "2_Dense", tensors(UP, put("linear.weight", (0, 0), np.nan))),
    folder("nan-in-bfloat16", "tensor-not-finite", "norm.weight", change(WEIGHTS, bfloat16)),
    folder("nan-in-a-row-that-is-used", "tensor-not-finite", ("embed_tokens.weight", "row 33"),
           tensors(WEIGHTS, put("embed_tokens.weight", (33, 5), np.nan))),
    # tokenizer.json
    folder("tokenizer-empty", "tokenizer-invalid", "tokenizer.json", write("tokenizer.json", "")),
    folder("tokenizer-garbage", "tokenizer-invalid", "tokenizer.json", write("tokenizer.json", GARBAGE)),
    folder("tokenizer-git-lfs-pointer", "tokenizer-invalid", "tokenizer.json", write("tokenizer.json", POINTER)),
    folder("tokenizer-cut", "tokenizer-invalid", "tokenizer.json",
           change("tokenizer.json", lambda c: c[: len(c) // 2])),
    folder("tokenizer-other-json", "tokenizer-invalid", "tokenizer.json",
           write("tokenizer.json", json.dumps(config_json(SMALL)))),
    folder("tokenizer-a-list", "tokenizer-invalid", "tokenizer.json", write("tokenizer.json", "[1, 2]")),
    folder("tokenizer-nested-deep", "tokenizer-invalid", "tokenizer.json", write("tokenizer.json", "[" * 10**6)),
    folder("tokenizer-a-terabyte", "file-too-large", "tokenizer.json", sparse("tokenizer.json", 2**40)),
    folder("tokenizer-without-bos", "tokenizer-special", ("tokenizer.json", "<bos>"),
           tokenizer(rename_piece("<bos>", "<s>")),
           tokenizer(lambda content: content.update(post_processor=None))),
    folder("tokenizer-ends-swapped", "tokenizer-special", "<bos>", tokenizer(swap_ends)),
    folder("tokenizer-bos-elsewhere-in-config", "tokenizer-special", ("<bos>", "5"), config(bos_token_id=5)),
    folder("tokenizer-eos-elsewhere-in-config", "tokenizer-special", ("<eos>", "106"), config(eos_token_id=106)),
    folder("tokenizer-of-more-pieces", "tokenizer-vocabulary", ("tokenizer.json", "160"),
           write("tokenizer.json", tokenizer_json(200))),
    folder("tokenizer-that-the-library-panics-at", "tokenizer-invalid", "tokenizer.json", tokenizer(
        lambda content: content["model"].update(continuing_subword_prefix="xxxxxx"))),
    folder("tokenizer-failing-on-a-text", "tokenizer-invalid", "tokenizer.json", tokenizer(words_only)),
]  # fmt: skip

CALLS = [
    python("folder-absent", "folder-missing", "nowhere", lambda folder: load(folder / "nowhere")),
    python("folder-a-file", "folder-missing", "config.json", lambda folder: load(folder / "config.json")),
    # a model's name
    python("model-no-name-at-all", "hub-name", "''", lambda folder: refembed.load("")),
    python("model-a-number", "hub-name", "5", lambda folder: refembed.load(5)),  # type: ignore[arg-type]
    python("model-bytes", "hub-name", "google",
           lambda folder: refembed.load(b"google/embeddinggemma-300m")),  # type: ignore[arg-type]
    python("model-a-path-to-nothing", "hub-name", "/nowhere/at/all", lambda folder: refembed.load("/nowhere/at/all")),
    python("model-of-nobody", "hub-name", "~nobody9", lambda folder: refembed.load("~nobody9/model")),
    python("model-name-too-long", "hub-name", "xxx", lambda folder: refembed.load("x" * 300)),
    python("model-path-too-long", "folder-missing", "xxx", lambda folder: refembed.load(folder / ("x" * 300))),
    # texts
    python("text-a-number", "text-type", "int", encode(5)),
    python("text-none", "text-type", "NoneType", encode(None)),
    python("text-bytes", "text-type", "bytes", encode(b"abc")),
    python("text-a-mapping", "text-type", "dict", encode({"text": "abc"})),
    python("text-an-array-of-none", "text-type", "array", encode(np.array("abc"))),
    python("texts-with-a-number", "text-type", ("text 1", "float"), encode(["a", float("nan"), "b"])),
    python("texts-with-none", "text-type", ("text 2", "NoneType"), encode(["a", "b", None])),
    python("texts-with-bytes", "text-type", ("text 0", "bytes"), encode([b"a", "b"])),
    python("texts-with-texts", "text-type", ("text 0", "list"), encode([["a", "b"]])),
    python("text-half-a-character", "text-encoding", "text 0", encode("ab\ud800")),
    python("texts-with-half-a-character", "text-encoding", "text 1", encode(["a", "\udfff"])),
    python("prompt-half-a-character", "text-encoding", "text 0", encode(["a"], prompt="\ud800")),
    python("text-a-token-without-row", "text-token", ("text 1", "<image>"), encode(["a", "an <image>"]),
           tokenizer(added_beyond)),
    python("text-too-long", "text-too-long", ("text 1", "64"), encode(["a", "b" * 80], on_long="error")),
    python("text-that-the-tokenizer-fails-on", "tokenizer-invalid", "tokenizer.json", encode(["a", "Q"]),
           tokenizer(unknown_unknown)),
    # prompts and titles
    python("task-unknown", "option-task", "searching", encode("a", task="searching")),
    python("task-empty", "option-task", "''", encode("a", task="")),
    python("task-a-number", "option-task", "5", encode("a", task=5)),
    python("prompt-a-number", "option-prompt", ("prompt", "int"), encode("a", prompt=5)),
    python("titles-with-a-query", "option-prompt", "titles", encode(["a"], task="query", titles=["t"])),
    python("titles-with-a-prompt", "option-prompt", "titles", encode(["a"], prompt="p", titles=["t"])),
    python("titles-too-few", "titles-invalid", ("1", "2"), encode(["a", "b"], titles=["t"])),
    python("titles-with-a-number", "titles-invalid", ("text 1", "int"), encode(["a", "b"], titles=["t", 5])),
    python("titles-a-word", "titles-invalid", "titles", encode(["a", "b"], titles="tt")),
    python("titles-a-number", "titles-invalid", "int", encode(["a"], titles=5)),
    # options
    *(python(f"dimensions-{value!r}", "option-dimensions", (repr(value), "40"), encode("a", dimensions=value))
      for value in (0, -1, 41, True, 40.0, "40", float("nan"), 10**30)),
    python("on-long-mistyped", "option-on-long", "truncate", encode("a", on_long="truncate")),
    *(python(f"threads-{value!r}", "option-threads", repr(value), open_with(threads=value)) for value in (0, -1, True,
      1.5, "2")),
    python("backend-nobody-knows", "backend-unknown", ("'cuda9'", "numpy"), open_with(backend="cuda9")),
    python("backend-a-number", "backend-unknown", "5", open_with(backend=5)),
    python("precision-nobody-knows", "precision-unknown", ("float16", "float32"),
           open_with(backend="numpy", precision="float16")),
    python("precision-a-number", "precision-unknown", "32", open_with(backend="numpy", precision=32)),
    # tables of vectors
    python("vectors-of-two-lengths", "vectors-invalid", ("(1, 2)", "(1, 3)"), similarity([1.0, 2.0], [1.0, 2.0, 3.0])),
    python("vectors-of-whole-numbers", "vectors-invalid", "int", similarity([[1, 2]], [[1, 2]])),
    python("vectors-of-words", "vectors-invalid", "<U1", similarity([["a", "b"]], [[1.0, 2.0]])),
    python("vectors-in-a-cube", "vectors-invalid", "(1, 1, 1)", similarity([[[1.0]]], [[1.0]])),
    python("vectors-ragged", "vectors-invalid", "", similarity([[1.0, 2.0], [1.0]], [[1.0, 2.0]])),
]  # fmt: skip

MODEL = ("--model", "{model}")
COMMANDS = [
    # the texts
    command("cli-no-texts", "option-input", "-i", "embed", *MODEL),
    command("cli-texts-and-a-file", "option-input", "-i", "embed", "a", "-i", "in.txt", *MODEL, in_txt=b"b\n"),
    command("cli-ranking-nothing", "option-input", "-i", "similarity", "a", *MODEL),
    command("cli-corpus-from-a-pipe", "option-input", "CORPUS", "search", "-", "a", *MODEL),
    command("cli-input-absent", "input-missing", "in.txt", "embed", "-i", "in.txt", *MODEL),
    command("cli-input-a-folder", "input-missing", "in.txt", "embed", "-i", "in.txt", *MODEL, in_txt=None),
    command("cli-input-through-a-file", "input-missing", "in.txt/a.txt", "embed", "-i", "in.txt/a.txt", *MODEL,
            in_txt=b""),
    command("cli-input-unreadable", "input-missing", "in.txt", "embed", "-i", "in.txt", *MODEL, in_txt=b"<unreadable>",
            skip=NOT_LINUX),
    command("cli-title-field-misspelt", "title-field", ("in.jsonl", "titel"), "embed", "-i", "in.jsonl",
            "--title-field", "titel", *MODEL, in_jsonl=b'{"text": "a", "title": "b"}\n'),
    command("cli-input-of-another-kind", "input-format", (".csv", ".jsonl"), "embed", "-i", "in.csv", *MODEL,
            in_csv=b"a,b\n"),
    command("cli-input-without-ending", "input-format", "README", "embed", "-i", "README", *MODEL, README=b"a"),
    command("cli-field-of-plain-lines", "input-format", "in.txt", "embed", "-i", "in.txt", "--text-field", "text",
            *MODEL,
            in_txt=b"a\n"),
    command("cli-gzip-cut", "input-missing", "in.txt.gz", "embed", "-i", "in.txt.gz", *MODEL, in_txt_gz=GZIPPED[:-12]),
    command("cli-gzip-damaged", "input-missing", "in.txt.gz", "embed", "-i", "in.txt.gz", *MODEL,
            in_txt_gz=GZIPPED[:12] + b"\xff\xff\xff" + GZIPPED[15:]),
    command("cli-gzip-wrong-sum", "input-missing", "in.txt.gz", "embed", "-i", "in.txt.gz", *MODEL,
            in_txt_gz=GZIPPED[:-8] + bytes(8)),
    command("cli-gzip-that-is-none", "input-missing", "in.txt.gz", "embed", "-i", "in.txt.gz", *MODEL,
            in_txt_gz=b"a\nb\n"),
    command("cli-corpus-absent", "input-missing", "in.txt", "search", "in.txt", "a", *MODEL),
    command("cli-corpus-damaged", "input-missing", "in.txt.gz", "search", "in.txt.gz", "a", *MODEL,
            in_txt_gz=GZIPPED[:-12]),
    command("cli-query-half-a-character", "text-encoding", "", "search", "in.txt", "\udcff", *MODEL, in_txt=b"a\n"),
    command("cli-inspecting-half-a-character", "text-encoding", "", "inspect", "\udcff", *MODEL),
    command("cli-ranking-by-half-a-character", "text-encoding", "the query", "similarity", "\udcff", "a", *MODEL),
    # the output
    command("cli-output-folder-absent", "output-unwritable", "no/out.npy", "embed", "a", "-o", "no/out.npy", *MODEL),
    command("cli-output-a-folder", "output-unwritable", "out.npy", "embed", "a", "-o", "out.npy", *MODEL, out_npy=None),
    command("cli-output-through-a-file", "output-unwritable", "a.txt/out", "embed", "a", "-o", "a.txt/out", *MODEL,
            a_txt=b""),
    command("cli-output-name-too-long", "output-unwritable", "xxx", "embed", "a", "-o", "x" * 300, *MODEL),
    command("cli-output-where-nothing-can-be", "output-unwritable", "/proc/self", "embed", "a", "-o",
            "/proc/self/out.npy",
            *MODEL, skip=NOT_LINUX),
    command("cli-output-folder-read-only", "output-unwritable", "locked/out.npy", "embed", "a", "-o", "locked/out.npy",
            *MODEL,
            locked=None, plain_user=True),
    command("cli-npy-to-the-screen", "option-format", "npy", "embed", "a", "--format", "npy", *MODEL),
    command("cli-safetensors-to-a-pipe", "option-format", "safetensors", "embed", "a", "-o", "-", "--format",
            "safetensors",
            *MODEL),
    # the options
    command("cli-model-absent", "hub-name", "/nowhere/at/all", "embed", "a", "--model", "/nowhere/at/all"),
    command("cli-model-not-named", "hub-name", "''", "embed", "a", "--model", ""),
    command("cli-task-unknown", "option-task", ("passage", "query"), "embed", "a", "--task", "passage", *MODEL),
    command("cli-inspect-task-unknown", "option-task", "passage", "inspect", "a", "--task", "passage", *MODEL),
    command("cli-titles-with-a-query", "option-prompt", "titles", "embed", "-i", "in.jsonl", "--title-field", "t",
            "--task",
            "query", "-o", "out.npy", *MODEL, in_jsonl=b'{"text": "a", "t": "b"}\n'),
    command("cli-dimensions-zero", "option-dimensions", "0", "embed", "a", "--dimensions", "0", "-o", "out.npy",
            *MODEL),
    command("cli-dimensions-too-many", "option-dimensions", ("41", "40"), "similarity", "a", "b", "--dimensions", "41",
            *MODEL),
    command("cli-search-dimensions-negative", "option-dimensions", "-1", "search", "in.txt", "a", "--dimensions", "-1",
            *MODEL,
            in_txt=b"a\n"),
    command("cli-threads-zero", "option-threads", "0", "inspect", "a", "--threads", "0", *MODEL),
    command("cli-backend-unknown", "backend-unknown", "cuda9", "embed", "a", "--backend", "cuda9", *MODEL),
    command("cli-precision-unknown", "precision-unknown", "float8", "search", "in.txt", "a", "--precision", "float8",
            *MODEL,
            in_txt=b"a\n"),
    command("cli-no-results-wanted", "option-k", "0", "search", "in.txt", "a", "-k", "0", *MODEL, in_txt=b"a\n"),
    command("cli-negative-results-wanted", "option-k", "-3", "search", "in.txt", "a", "-k", "-3", *MODEL,
            in_txt=b"a\n"),
]  # fmt: skip

TITLES = ("--title-field", "title")
LINES = [
    line("line-of-no-json", "line-json", b"text: a"),
    line("line-json-cut", "line-json", b'{"text": "a'),
    line("line-json-twice", "line-json", b'{"text": "a"}{"text": "b"}'),
    line("line-json-nested-deep", "line-json", b'{"text": ' + b"[" * 10**5),
    line("line-json-number-of-5000-digits", "line-json", b'{"text": "a", "n": ' + b"7" * 5000 + b"}"),
    line("line-a-list", "line-json", b'["a"]'),
    line("line-a-text", "line-json", b'"a"'),
    line("line-null", "line-json", b"null"),
    line("line-without-field", "line-field", b'{"body": "a"}'),
    line("line-with-a-number", "line-field", b'{"text": 5}'),
    line("line-with-null", "line-field", b'{"text": null}'),
    line("line-with-nan", "line-field", b'{"text": NaN}'),
    line("line-with-a-list", "line-field", b'{"text": ["a"]}'),
    line("line-title-a-number", "line-field", b'{"text": "a", "title": 5}', *TITLES),
    line("line-of-latin-1", "line-encoding", b'{"text": "\xe9"}'),
    line("line-of-latin-1-in-plain-lines", "line-encoding", b"caf\xe9", file="in.txt"),
    line("line-half-a-character", "text-encoding", b'{"text": "\\ud800"}'),
    line("line-title-half-a-character", "text-encoding", b'{"text": "a", "title": "\\ud800"}', *TITLES),
    line("line-too-long", "line-too-long", b"a" * 5000, file="in.txt"),
    line("line-too-long-json", "line-too-long", b'{"text": "' + b"a" * 5000 + b'"}'),
    line("line-a-gzip-bomb", "line-too-long", b"a" * 2**25, file="in.txt.gz"),
    line("line-beyond-the-context", "text-too-long", b"b" * 80, "--on-long", "error", file="in.txt"),
    line("line-a-token-without-row", "text-token", b"an <image>", file="in.txt", spoil=tokenizer(added_beyond)),
]  # fmt: skip
ROWS = [*FOLDERS, *CALLS, *COMMANDS, *LINES]


# ------------------------------------------------------------------------------------------------------------ the tests
@contextmanager
def bounded() -> Iterator[None]:
    """Fail what takes too long or too much memory, and stop it where it would never end."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not refused within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEBIBYTES * 2**20
        unit = 1 if sys.platform == "darwin" else 1024
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) * unit < MEBIBYTES * 2**20
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def nobody() -> Iterator[None]:
    """As a user who is not the administrator, where the tests run as that one."""
    os.seteuid(65534)
    try:
        if not all(os.access(module.__file__, os.R_OK, effective_ids=True) for module in (refembed, np)):
            pytest.skip("run as root from a folder that only root can reach: nothing shows what others may not read")
        yield
    finally:
        os.seteuid(0)


@contextmanager
def open_to_all() -> Iterator[Path]:
    """A new folder that every user can use; pytest's own are the administrator's alone."""
    before = os.umask(0o022)
    try:
        with TemporaryDirectory() as place:
            Path(place).chmod(0o777)
            yield Path(place)
    finally:
        os.umask(before)


@contextmanager
def nothing_left_behind(place: Path) -> Iterator[None]:
    """Fail where a file has come, gone or changed."""
    before = listing(place)
    yield
    assert listing(place) == before


def listing(place: Path) -> list[tuple[str, int, int]]:
    found = [(path, path.lstat()) for path in sorted(place.rglob("*"))]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]


def check_message(message: str, row: Bad) -> None:
    """One line, of a length one reads, that names what is at fault."""
    assert message.isprintable(), "more than one line, or codes that a terminal obeys"
    assert len(message) < LONGEST_MESSAGE
    for part in row.says:
        assert part in message


def check_refusal(status: int, captured: tuple[str, str], row: Bad) -> None:
    """The command line's answer to a fault that leaves nothing to be done."""
    out, err = captured
    assert "Traceback" not in err
    said = [line for line in err.splitlines() if f"[{row.id}]" in line]
    assert (status, len(said), out) == (2, 1, ""), err
    check_message(said[0], row)


@pytest.mark.parametrize("row", [row for row in ROWS if row.line is None], ids=lambda row: row.slug)
def test_refused(row: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """This bad input is not refused by its id, in one line that names it, at once, leaving nothing behind."""
    if row.skip:
        pytest.skip(row.skip)
    as_root = row.plain_user and ROOT
    with open_to_all() if as_root else nullcontext(tmp_path) as place, monkeypatch.context() as patch:
        patch.chdir(place)
        try_row(row, place, nobody if as_root else nullcontext, capsys)


def try_row(
    row: Bad, place: Path, user: Callable[[], AbstractContextManager[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Break what the row breaks in this folder, which is the current one, and see what is said and left there."""
    model = write_checkpoint(place / "model")
    for file in model.rglob("*.safetensors"):
        file.chmod(0o644)  # the library writes them for the owner alone
    if row.plain_user:
        load(model).encode("the")  # what is imported late, is imported while the code can be reached
    if row.spoil:
        row.spoil(model)
    for name, content in row.files:
        if content is None:
            Path(name).mkdir(0o500 if name == "locked" else 0o700)
        elif content == b"<unreadable>":
            Path(name).symlink_to("/proc/self/mem")
        else:
            Path(name).write_bytes(content)
    if not row.argv:
        with nothing_left_behind(place), user(), bounded(), pytest.raises(RefembedError) as caught:
            row.call(model) if row.call else load(model).encode("the")
        assert caught.value.id == row.id
        check_message(str(caught.value), row)
    if not row.call:
        argv = row.argv or ("embed", "the", "-o", "out.jsonl", *MODEL)
        with nothing_left_behind(place), user(), bounded():
            status = main([part.format(model=model) for part in argv])
        check_refusal(status, capsys.readouterr(), row)


@pytest.mark.parametrize(
    ("row", "name"),
    [  # search cuts long texts, and has no option to refuse them
        pytest.param(row, name, id=f"{row.slug}-{name}")
        for row in LINES
        for name in ("embed", "similarity", "search")
        if name != "search" or "--on-long" not in row.argv
    ],
)
def test_left_out(
    row: Bad, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bad line sinks the file, is embedded, or is not named by its place; or the lines after it move up."""
    if row.id == "line-too-long":
        monkeypatch.setattr(textfiles, "LONGEST_LINE", 4000)
    monkeypatch.chdir(tmp_path)
    model = write_checkpoint(tmp_path / "model")
    if row.spoil:
        row.spoil(model)
    good = [b"good", b"well"] if ".txt" in row.file else [b'{"text": "good", "title": "t"}', b'{"text": "well"}']
    content = b"\n".join([good[0], row.line or b"", good[1]]) + b"\n"
    (tmp_path / row.file).write_bytes(gzip.compress(content, 1) if row.file.endswith(".gz") else content)
    argv = {"embed": ["embed", "-i", row.file], "similarity": ["similarity", "good", "-i", row.file]}
    with bounded():
        status = main([*argv.get(name, ["search", row.file, "good"]), *row.argv, "--model", str(model)])
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if f"[{row.id}]" in line]
    assert (status, len(said)) == (1, 1), err
    check_message(said[0], row)
    if name == "embed":
        assert [json.loads(one)["index"] for one in out.splitlines()] == [0, 2]
    else:
        assert sorted(one.split("\t")[-1] for one in out.splitlines()) == ["good", "well"]


PLAIN = [row for row in FOLDERS if not (row.argv or row.skip or row.plain_user)]
FIRST = {row.id: row.slug for row in reversed(PLAIN)}  # of each kind
READ_ANEW = ("tokenizer-", "tensor-not-finite", "tensor-level")  # by the backend itself


@pytest.fixture(scope="module")
def numba_ready(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the rows need is compiled, which takes time and memory of its own."""
    pytest.importorskip("numba")
    for number, spoil in enumerate((lambda folder: None, quantised)):
        model = write_checkpoint(tmp_path_factory.mktemp("whole") / str(number))
        spoil(model)
        refembed.load(model, backend="numba").encode("the")


@pytest.mark.parametrize(
    "row",
    [row for row in PLAIN if row.id.startswith(READ_ANEW) or row.slug == FIRST[row.id]],
    ids=lambda row: row.slug,
)
@pytest.mark.usefixtures("numba_ready")
def test_refused_by_numba(row: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend that reads tokenizer and tensors by itself takes what NumPy's refuses, or refuses it otherwise."""
    monkeypatch.setenv("REFEMBED_CACHE", str(tmp_path / "cache"))  # where it keeps the tokenizers it could read
    (tmp_path / "place").mkdir()
    model = write_checkpoint(tmp_path / "place" / "model")
    assert row.spoil
    row.spoil(model)
    with nothing_left_behind(tmp_path / "place"), bounded(), pytest.raises(RefembedError) as caught:
        refembed.load(model, backend="numba").encode("the")
    assert caught.value.id == row.id
    check_message(str(caught.value), row)


@pytest.mark.parametrize("backend", ["numpy", "numba", "torch"])
def test_a_context_that_no_text_fills_takes_nothing(backend: str, tmp_path: Path) -> None:
    """A folder of some kilobytes takes gigabytes, because its config allows texts of 16 million tokens."""
    pytest.importorskip(backend)
    model = write_checkpoint(tmp_path / "model")
    needed = refembed.load(model, backend=backend).encode(["the", "b" * 30])
    config(max_position_embeddings=2**24)(model)
    with bounded():
        found = refembed.load(model, backend=backend).encode(["the", "b" * 30])
    np.testing.assert_array_equal(found, needed)


def test_a_bad_row_that_is_not_used_is_no_fault(tmp_path: Path) -> None:
    """The whole table is read for a text that uses five rows of it: 805 MB for a query."""
    model = write_checkpoint(tmp_path)
    tensors(WEIGHTS, put("embed_tokens.weight", (33, 5), np.nan))(model)
    assert np.isfinite(load(model).encode(["a", "in"], task=None)).all()
    with pytest.raises(RefembedError, match="row 33"):
        load(model).encode(["a", "the"], task=None)


# --------------------------------------------------------------------------------------------- the table against itself
def test_table_is_large_and_its_names_are_its_own() -> None:
    """A row is run under another's name, or the table has shrunk below what was promised."""
    slugs = [row.slug for row in ROWS]
    assert len(slugs) == len(set(slugs)) >= 60
    assert len({row.id for row in ROWS}) >= 40
    assert {row.id for row in ROWS} <= set(ERRORS)


def test_every_error_id_is_tested() -> None:
    """A way to say no that no test has ever seen said."""
    others = "".join(file.read_text() for file in Path(__file__).parent.rglob("test_*.py") if file != Path(__file__))
    untested = [id for id in ERRORS if id not in {row.id for row in ROWS} and f'"{id}"' not in others]
    assert not untested


def constants(node: ast.AST) -> Iterable[str]:
    return (one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str))


def test_ids_in_the_source_are_those_in_the_table_of_errors() -> None:
    """An id is raised that the table of errors does not explain, or explained and never raised."""
    packages = [Path(refembed.__file__).parent, Path(refembed.__file__).parents[1] / "backends"]
    files = [file for package in packages for file in package.rglob("*.py") if file.name != "errors.py"]
    trees = [ast.parse(file.read_text()) for file in files]
    places = {"RefembedError": 0, "refuse": 0, "bad": 1}
    raised = set()
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        place = places.get(name)
        if place is not None and len(node.args) > place and isinstance(node.args[place], ast.Constant):
            raised.add(ast.literal_eval(node.args[place]))
    written = {text for tree in trees for text in constants(tree)}
    assert raised - set(ERRORS) == set()
    assert set(ERRORS) - written == set()


# ------------------------------------------------------------------------------------------------------------ at random
FUZZED = {
    "config.json": None,
    "tokenizer.json": None,
    "modules.json": None,
    "1_Pooling/config.json": None,
    "config_sentence_transformers.json": None,
    WEIGHTS: 6000,  # the header of the small checkpoint, and some numbers behind it
    UP: 200,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with every optional file, to be spoilt and restored; each file's right content beside it."""
    folder = write_checkpoint(tmp_path_factory.mktemp("fuzzed"))
    write("modules.json", modules("Transformer", "Pooling", "Dense", "Dense", "Normalize"))(folder)
    pooling(pooling_mode_mean_tokens=True, include_prompt=True)(folder)
    edit("config_sentence_transformers.json", prompts={"query": "q: ", "document": "title: none | text: "})(folder)
    for name in FUZZED:
        (folder / f"{name}.right").write_bytes((folder / name).read_bytes())
    return folder


def right(folder: Path, name: str) -> bytes:
    return (folder / f"{name}.right").read_bytes()


def tried_with(folder: Path, name: str, content: bytes) -> None:
    """Load with this file's content, and embed: that works, or says in one line why not."""
    started, said = time.monotonic(), ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            (folder / name).write_bytes(content)
            assert load(folder).encode(["the in", "Q!"]).shape[0] == 2
        except RefembedError as error:
            said = str(error)
        finally:
            (folder / name).write_bytes(right(folder, name))
    assert said.isprintable()
    assert len(said) < LONGEST_MESSAGE
    assert time.monotonic() - started < SECONDS


PIECES = ["", "0", "-1", "1e999", "null", "{}", "[]", '""', "\0", "9" * 400, "true", "NaN", '"\\ud800"', "\xff", "é"]


@pytest.mark.parametrize("name", FUZZED)
@settings(max_examples=60, deadline=None)
@given(data=some.data())
def test_damaged_at_random(name: str, whole: Path, data: some.DataObject) -> None:
    """Some damage ends in another exception than ours, in no answer at all, or in a message of several lines."""
    content = right(whole, name)
    length = min(len(content), FUZZED[name] or len(content))
    places = sorted(data.draw(some.lists(some.integers(0, length - 1), min_size=1, max_size=4, unique=True)))
    kind = data.draw(some.sampled_from(["flip", "cut", "insert", "replace"]))
    if kind == "cut":
        content = content[: places[0]]
    elif kind == "flip":
        damaged = bytearray(content)
        for place in places:
            damaged[place] ^= 1 << data.draw(some.integers(0, 7))
        content = bytes(damaged)
    else:
        piece = data.draw(some.sampled_from(PIECES))
        content = (
            content[: places[0]] + piece.encode("latin-1") + content[places[-1] if kind == "replace" else places[0] :]
        )
    tried_with(whole, name, content)


VALUES = """0 1 -1 2 3 15 160 1000000000 9223372036854775808 1e400 0.0 1e-300 1e300 NaN Infinity true false null
"" "x" "4" "\\ud800" "a\\nb" [] {} [1] ["mean"] [["a"]] {"a":1}"""


@pytest.mark.parametrize("name", [name for name in FUZZED if name.endswith(".json")])
@settings(max_examples=60, deadline=None)
@given(data=some.data())
def test_other_values_at_random(name: str, whole: Path, data: some.DataObject) -> None:
    """A value of another type or size, anywhere in a JSON file, ends in another exception than ours."""
    content = json.loads(right(whole, name))
    for _ in range(data.draw(some.integers(1, 2))):
        inside = content
        while isinstance(inside, dict | list) and inside:
            outside = inside
            key = data.draw(some.sampled_from(list(inside) if isinstance(inside, dict) else range(len(inside))))
            inside = outside[key]
            if data.draw(some.booleans()):
                break
        outside[key] = json.loads(data.draw(some.sampled_from(VALUES.split())))
    tried_with(whole, name, json.dumps(content).encode())
