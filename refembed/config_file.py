"""From a model folder's JSON files to the reference's Config, refusing what is not EmbeddingGemma."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from .errors import RefembedError
from .reference import FULL, SLIDING, Config, reach_of_window
from .reference.quantize import FORMS

LARGEST_JSON = 16 * 2**20
LARGEST_COUNT = 2**24  # no width, count or vocabulary of a real model comes near; keeps absurd sizes from taking memory
MOST_LAYERS = 1024
RELEASED_ODD_WINDOW = 257  # the released 512, rewritten once: the reach is still the released one

# config.json's key -> the only value EmbeddingGemma has; an absent key means the same
FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "rope_scaling": None,
}
# ours -> config.json's
SIZES = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "mlp": "intermediate_size",
    "heads": "num_attention_heads",
    "key_heads": "num_key_value_heads",
    "head": "head_dim",
    "context": "max_position_embeddings",
}
SMALLEST = {"context": 3}  # BOS, a token, EOS
TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id"}
POOLERS = {"mean": "mean", "cls": "first", "lasttoken": "last"}  # sentence-transformers' word -> ours
OLD_POOLING_KEYS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
MODULES = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]


def read_json(file: Path, kind: type = dict, required: bool = True) -> Any:
    """A JSON file's content, or an empty one of its kind where it is not there and need not be."""
    if not file.exists():
        if required:
            raise RefembedError("file-missing", f"{file} is not there; a checkpoint folder needs it")
        return kind()
    try:
        if file.stat().st_size > LARGEST_JSON:
            raise RefembedError(
                "file-too-large", f"{file} has {file.stat().st_size} bytes, at most {LARGEST_JSON} needed"
            )
        content = json.loads(file.read_bytes().decode())
    except OSError as error:
        raise RefembedError("file-unreadable", f"{file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, RefembedError):
            raise
        raise RefembedError("json-invalid", f"{file} is not JSON: {error}") from error
    if not isinstance(content, kind):
        raise RefembedError("json-not-object", f"{file} holds {type(content).__name__}, {kind.__name__} needed")
    return content


class Reader:
    """config.json's values by key, each checked as it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.values: dict[str, Any] = read_json(file)

    def refuse(self, id: str, key: str, found: object, needed: str) -> RefembedError:
        return RefembedError(id, f"{self.file}: {key} is {found!r}, {needed}")

    def get(self, key: str) -> Any:
        if key not in self.values:
            raise RefembedError("config-missing", f"{self.file}: {key} is missing")
        return self.values[key]

    def whole(self, key: str, least: int = 1, most: int = LARGEST_COUNT) -> int:
        value = self.get(key)
        if type(value) is not int:
            raise self.refuse("config-type", key, value, "a whole number is needed")
        if not least <= value <= most:
            raise self.refuse("config-range", key, value, f"at least {least} and at most {most} is needed")
        return value

    def positive(self, key: str, value: object) -> float:
        if type(value) not in (int, float):
            raise self.refuse("config-type", key, value, "a number is needed")
        assert isinstance(value, int | float)
        if not 0 < value <= sys.float_info.max:  # a whole number in JSON may be beyond any float
            raise self.refuse("config-range", key, value, "a finite number above 0 is needed")
        return float(value)


def read_config(folder: Path, dense: int, dimensions: int) -> Config:
    """The Config of a checkpoint folder.

    dense, dimensions   from the shapes of the two dense matrices

    Raises RefembedError, one line that names the file, the key, the value found and the one needed.
    """
    reader = Reader(folder / "config.json")
    check_kind(reader)
    sizes = {ours: reader.whole(key, SMALLEST.get(ours, 1)) for ours, key in SIZES.items()}
    if sizes["heads"] % sizes["key_heads"]:
        raise reader.refuse(
            "config-heads",
            "num_attention_heads",
            sizes["heads"],
            f"a multiple of {sizes['key_heads']} is needed",
        )
    if sizes["head"] % 2:
        raise reader.refuse("config-heads", "head_dim", sizes["head"], "an even number is needed to rotate pairs")
    sizes["context"] = min(sizes["context"], context_limit(folder))
    tokens = {ours: reader.whole(key, 0, sizes["vocabulary"] - 1) for ours, key in TOKENS.items()}
    sliding_base, full_base = read_bases(reader)
    return Config(
        **sizes,
        **tokens,
        dense=dense,
        dimensions=dimensions,
        layer_kinds=read_layer_kinds(reader),
        reach=read_reach(reader),
        sliding_base=sliding_base,
        full_base=full_base,
        query_scalar=reader.positive("query_pre_attn_scalar", reader.get("query_pre_attn_scalar")),
        epsilon=reader.positive("rms_norm_eps", reader.get("rms_norm_eps")),
        pooler=read_pooler(folder),
    )


def check_kind(reader: Reader) -> None:
    """Only the bidirectional Gemma 3 text model, with nothing added (CFG-4)."""
    kind = reader.get("model_type")
    if kind != "gemma3_text":
        raise reader.refuse("config-model-type", "model_type", kind, "only 'gemma3_text' (EmbeddingGemma) is supported")
    if reader.values.get("use_bidirectional_attention") is not True:
        raise reader.refuse(
            "config-causal",
            "use_bidirectional_attention",
            reader.values.get("use_bidirectional_attention"),
            "true is needed: this is a causal Gemma 3, whose vectors would mean nothing",
        )
    for key, needed in FIXED.items():
        if reader.values.get(key, needed) != needed:
            raise reader.refuse("config-unsupported", key, reader.values[key], f"EmbeddingGemma has {needed!r}")


def read_layer_kinds(reader: Reader) -> tuple[str, ...]:
    """layer_types in full, or every n-th layer full by the older pattern key (CFG-2)."""
    count = reader.whole("num_hidden_layers", 1, MOST_LAYERS)
    if "layer_types" not in reader.values:
        pattern = {"sliding_window_pattern", "_sliding_window_pattern"} & reader.values.keys()
        every = reader.whole(min(pattern) if pattern else "layer_types")
        return tuple(SLIDING if (index + 1) % every else FULL for index in range(count))
    kinds = reader.values["layer_types"]
    if not isinstance(kinds, list) or len(kinds) != count or not {SLIDING, FULL}.issuperset(map(str, kinds)):
        found = kinds if not isinstance(kinds, list) else f"{len(kinds)} entries, {sorted(set(map(str, kinds)))}"
        raise reader.refuse("config-layer-types", "layer_types", found, f"{count} of {SLIDING!r} or {FULL!r} needed")
    return tuple(kinds)


def read_reach(reader: Reader, key: str = "sliding_window") -> int:
    """The reach of a sliding layer, with a warning where repeated saving seems to have shrunk it (CFG-3)."""
    window = reader.whole(key, 2)
    reach = reach_of_window(window)
    if window % 2 and window != RELEASED_ODD_WINDOW:
        warnings.warn(
            f"{reader.file}: {key} is {window}, so layers reach {reach} tokens; an odd one was rewritten "
            f"by a library on saving, perhaps twice or more; if the model was trained with another, set its even width",
            stacklevel=2,
        )
    return reach


def read_bases(reader: Reader) -> tuple[float, float]:
    """The rotary bases of sliding and full layers: transformers 4's keys, or 5's rope_parameters (CFG-1)."""
    if "rope_parameters" not in reader.values:
        keys = "rope_local_base_freq", "rope_theta"
        return reader.positive(keys[0], reader.get(keys[0])), reader.positive(keys[1], reader.get(keys[1]))
    bases = []
    for kind in (SLIDING, FULL):
        key = f"rope_parameters.{kind}"
        table = reader.values["rope_parameters"]
        entry = table.get(kind) if isinstance(table, dict) else None
        if not isinstance(entry, dict) or "rope_theta" not in entry:
            raise reader.refuse("config-missing", key, entry, "its rope_theta is needed")
        if entry.get("rope_type", "default") != "default":
            raise reader.refuse("config-unsupported", f"{key}.rope_type", entry["rope_type"], "'default' is needed")
        bases.append(reader.positive(f"{key}.rope_theta", entry["rope_theta"]))
    return bases[0], bases[1]


def context_limit(folder: Path) -> int:
    """The longest text the folder's own sentence-transformers or tokenizer settings allow, where they say."""
    limits = [
        read_json(folder / "sentence_bert_config.json", required=False).get("max_seq_length"),
        read_json(folder / "tokenizer_config.json", required=False).get("model_max_length"),
    ]
    return min(
        [limit for limit in limits if type(limit) is int and limit >= SMALLEST["context"]], default=LARGEST_COUNT
    )


def read_pooler(folder: Path) -> str:
    """Which pooler 1_Pooling/config.json names; the mean where the file is not there (POOL-5)."""
    file = folder / "1_Pooling" / "config.json"
    settings = read_json(file, required=False)
    old = [mode for key, mode in OLD_POOLING_KEYS.items() if settings.get(key)]
    said = any(key.startswith("pooling_mode") for key in settings)  # where nothing is said, it is the mean
    named = settings.get("pooling_mode", old if said else "mean")
    modes = named if isinstance(named, list) else [named]
    if len(modes) != 1 or modes[0] not in list(POOLERS) or settings.get("include_prompt", True) is not True:
        raise RefembedError(
            "pooling-unsupported",
            f"{file}: pooling {modes}, include_prompt {settings.get('include_prompt', True)}; "
            f"one of {sorted(POOLERS)} over every token, prompt included, is needed",
        )
    return POOLERS[modes[0]]


def read_form(folder: Path) -> str | None:
    """The quantised form that config.json says the matrices are stored in; None for floats (QNT-7)."""
    file = folder / "config.json"
    settings = read_json(file).get("quantization_config")
    if settings is None:
        return None
    found = settings if isinstance(settings, dict) else {}
    if found.get("quant_method") != "refembed" or found.get("form") not in FORMS or found.get("version") != 1:
        raise RefembedError(
            "config-quantization",
            f"{file}: quantization_config is {settings!r}; quant_method 'refembed', version 1 and a form of "
            f"{', '.join(FORMS)} are read: make it from the float checkpoint with refembed quantize",
        )
    return str(found["form"])


def check_modules(folder: Path) -> None:
    """modules.json, where there is one, must be the released pipeline; both dense modules plain matrices."""
    file = folder / "modules.json"
    modules = read_json(file, list, required=False)
    kinds = [str(entry.get("type") if isinstance(entry, dict) else entry).rpartition(".")[2] for entry in modules]
    if file.exists() and kinds != MODULES:
        raise RefembedError("modules-unsupported", f"{file} lists {kinds}, {MODULES} needed")
    for name in ("2_Dense", "3_Dense"):
        file = folder / name / "config.json"
        settings = read_json(file, required=False)
        activation = str(settings.get("activation_function", "Identity"))
        if settings.get("bias", False) is not False or not activation.endswith("Identity"):
            raise RefembedError(
                "dense-unsupported", f"{file}: bias {settings.get('bias')}, activation {activation}; neither is wanted"
            )


def read_prompts(folder: Path) -> dict[str, str]:
    """The prompts the checkpoint itself names, by name."""
    file = folder / "config_sentence_transformers.json"
    prompts = read_json(file, required=False).get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise RefembedError("prompts-invalid", f"{file}: prompts must be an object of names and texts")
    return prompts
