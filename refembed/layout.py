"""A checkpoint folder in the released layout, as refembed.checkpoint reads it and sentence-transformers opens it.

Nothing here imports PyTorch.
"""

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import DENSE, TOKENIZER, WEIGHTS
from .config_file import FIXED, MODULES, SIZES, TOKENS
from .config_file import POOLERS as POOLING_MODES
from .errors import RefembedError
from .prompts import ALIASES, PROMPTS
from .reference import Config
from .tokenizer import Tokenizer

# what a tokenizer may have beside tokenizer.json
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
)
PATHS = ("", "1_Pooling", *DENSE, "4_Normalize")  # of MODULES, in their order
BFLOAT16 = np.uint16  # whose values are float32's upper halves
KINDS = {
    np.dtype(kind): word
    for kind, word in ((np.float32, "F32"), (BFLOAT16, "BF16"), (np.float16, "F16"), (np.int8, "I8"), (np.uint8, "U8"))
}


def write_checkpoint(
    folder: Path,
    config: Config,
    tensors: Mapping[str, NDArray[Any]],
    tokenizer: Path,
    prompts: Mapping[str, str] | None = None,
) -> None:
    """A new folder, which appears whole or not at all.

    folder      not there yet, or empty
    tensors     every parameter by the checkpoint's name: float32, or uint16 that holds bfloat16
    tokenizer   a folder whose tokenizer files are copied
    prompts     by name; refembed's own where none are given

    Raises RefembedError where the folder cannot be made, sentence-transformers has no word for the pooler, or the
    tokenizer is none of this model's.
    """
    kinds = {tensor.dtype for tensor in tensors.values()}
    files = {
        "config.json": config_json(config, "bfloat16" if kinds == {np.dtype(BFLOAT16)} else "float32"),
        "modules.json": modules_json(),
        "1_Pooling/config.json": pooling_json(config),
        **{f"{name}/config.json": dense_json(tensors[f"{name}.linear.weight"].shape) for name in DENSE},
        "config_sentence_transformers.json": {
            "prompts": dict(prompts or PROMPTS | {alias: PROMPTS[task] for alias, task in ALIASES.items()}),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {"max_seq_length": config.context, "do_lower_case": False},
        "tokenizer_config.json": {"tokenizer_class": "GemmaTokenizer", "model_max_length": config.context},
    }
    Tokenizer(tokenizer / TOKENIZER, config)  # refuses one whose BOS, EOS or number of pieces is not this model's
    dense = {f"{name}.linear.weight": name for name in DENSE}
    with whole_folder(folder) as place:
        for name in ("1_Pooling", *DENSE):
            (place / name).mkdir()
        for name, content in files.items():
            (place / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (tokenizer / name).exists():
                shutil.copyfile(tokenizer / name, place / name)
        write_tensors(place / WEIGHTS, {name: tensor for name, tensor in tensors.items() if name not in dense})
        for name, where in dense.items():
            write_tensors(place / where / WEIGHTS, {"linear.weight": tensors[name]})


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, beside `folder` until it is complete, then in its place; on any error nothing is left."""
    folder = Path(os.path.abspath(folder))
    place = folder.parent / f".refembed-{secrets.token_hex(8)}"
    try:
        refuse_occupied(folder)
        place.mkdir()
        yield place
        for file in filter(Path.is_file, place.rglob("*")):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if folder.exists():
            folder.rmdir()
        place.rename(folder)
    except OSError as error:
        raise RefembedError("output-unwritable", f"{folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def refuse_occupied(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(None, "is there already; a checkpoint needs a new folder")


def check_new(folder: Path) -> None:
    """Raise now what whole_folder would raise after all the computing."""
    try:
        refuse_occupied(folder)
        with tempfile.TemporaryDirectory(dir=Path(os.path.abspath(folder)).parent, prefix=".refembed-"):
            pass
    except OSError as error:
        raise RefembedError("output-unwritable", f"{folder}: {error.strerror or error}") from error


def write_tensors(file: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """A safetensors file: the header's length, the header, and the numbers, which start at a multiple of 8 bytes.

    By hand, because the library's NumPy interface knows no bfloat16. Raises RefembedError for a type that is not read.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in KINDS:
            raise RefembedError(
                "tensor-dtype",
                f"{name} is {tensor.dtype}; float32, uint16 that holds bfloat16, float16, int8 or uint8 needed",
            )
    ends = list(accumulate(tensor.nbytes for tensor in tensors.values()))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for (name, tensor), end in zip(tensors.items(), ends, strict=True):
        header[name] = {"dtype": KINDS[tensor.dtype], "shape": tensor.shape, "data_offsets": [end - tensor.nbytes, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            handle.write(np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).data)


def config_json(config: Config, dtype: str) -> dict[str, Any]:
    """The released model's form: both rotary bases by their older keys, and a window of both sides together.

    transformers 5 writes other keys and half the window; both old and new libraries read these.
    """
    whole = config.query_scalar.is_integer()
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3TextModel"],
        "use_bidirectional_attention": True,
        "dtype": dtype,
        **{key: getattr(config, ours) for ours, key in (SIZES | TOKENS).items()},
        "pad_token_id": 0,
        "num_hidden_layers": len(config.layer_kinds),
        "layer_types": list(config.layer_kinds),
        "sliding_window": 2 * config.reach,
        "rope_theta": config.full_base,
        "rope_local_base_freq": config.sliding_base,
        "query_pre_attn_scalar": int(config.query_scalar) if whole else config.query_scalar,
        "rms_norm_eps": config.epsilon,
        "attention_dropout": 0.0,
        **FIXED,
    }


def modules_json() -> list[dict[str, Any]]:
    return [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(zip(PATHS, MODULES, strict=True))
    ]


def pooling_json(config: Config) -> dict[str, Any]:
    modes = {ours: mode for mode, ours in POOLING_MODES.items()}
    if config.pooler not in modes:
        raise RefembedError(
            "pooling-unsupported",
            f"pooler {config.pooler!r}: a checkpoint folder has a word for {', '.join(modes)} only; keep the module's "
            "state_dict() instead",
        )
    found = modes[config.pooler]
    flags = {f"pooling_mode_{key}": mode == found for key, mode in POOLING_KEYS.items()}
    return {"word_embedding_dimension": config.width, **flags, "include_prompt": True}


POOLING_KEYS = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "lasttoken"}


def dense_json(shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "in_features": shape[1],
        "out_features": shape[0],
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
