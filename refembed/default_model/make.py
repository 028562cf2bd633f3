"""Write the small model that stands in this folder: python refembed/default_model/make.py (needs torch, for bfloat16)

A stand-in: the architecture and the file layout of the real model, a tokenizer of Gemma's form trained on the
docstrings of Python's standard library, and random weights (seed below), weak enough in the layers that texts which
share words come out near each other. Nothing in it is trained but the tokenizer, and nothing comes from Gemma.
"""

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from refembed.prompts import ALIASES, PROMPTS
from refembed.reference import FULL, SLIDING, Config, parameter_shapes

FOLDER = Path(__file__).parent
SEED = 20_250_924
CONFIG = Config(
    vocabulary=4096,
    width=64,
    mlp=96,
    heads=3,
    key_heads=1,
    head=32,
    dense=128,
    dimensions=256,
    layer_kinds=(SLIDING, SLIDING, FULL),
    query_scalar=32.0,
)
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
UPDATE = -0.9  # stored less one: each layer adds a tenth of a normed row to the stream


def docstrings() -> Iterator[str]:
    """English prose that every Python carries."""
    for name in sorted(sys.stdlib_module_names - {"antigravity", "this", "idlelib", "turtledemo"}):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        classes = [value for _, value in inspect.getmembers(module, inspect.isclass)]
        methods = [value for owner in classes for _, value in inspect.getmembers(owner, inspect.isroutine)]
        members = [module, *(value for _, value in inspect.getmembers(module)), *methods]
        yield from sorted({text for member in members if isinstance(text := getattr(member, "__doc__", None), str)})


def make_tokenizer() -> Tokenizer:
    """Byte-pair encoding with byte fallback and '▁' for spaces, special tokens at Gemma's ids."""
    first = [*SPECIAL, "<mask>", *BYTES]
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True)]
    )
    texts = [*docstrings(), *PROMPTS.values()]
    alphabet = [chr(code) for code in range(32, 127)]
    trained.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=CONFIG.vocabulary, special_tokens=first, initial_alphabet=alphabet, limit_alphabet=200
        ),
    )
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    return tokenizer


def make_parameters() -> dict[str, np.ndarray]:
    """Random matrices that keep a row's size; layers that add little to the stream."""
    rng = np.random.default_rng(SEED)
    parameters = {}
    for name, shape in parameter_shapes(CONFIG).items():
        if len(shape) == 1:
            value = UPDATE if name.split(".")[-2] in ("post_attention_layernorm", "post_feedforward_layernorm") else 0.0
            parameters[name] = np.full(shape, value, np.float32)
        else:
            spread = 1 if name == "embed_tokens.weight" else shape[1] ** -0.5
            parameters[name] = (spread * rng.standard_normal(shape)).astype(np.float32)
    return parameters


def save_bfloat16(tensors: dict[str, np.ndarray], file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    rounded = {name: torch.from_numpy(tensor).bfloat16() for name, tensor in tensors.items()}
    save_file(rounded, file, metadata={"format": "pt"})


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    make_tokenizer().save(str(FOLDER / "tokenizer.json"), pretty=False)
    parameters = make_parameters()
    for dense in ("2_Dense", "3_Dense"):
        matrix = parameters.pop(f"{dense}.linear.weight")
        save_bfloat16({"linear.weight": matrix}, FOLDER / dense / "model.safetensors")
        write_json(
            FOLDER / dense / "config.json",
            {
                "in_features": matrix.shape[1],
                "out_features": matrix.shape[0],
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
        )
    save_bfloat16(parameters, FOLDER / "model.safetensors")
    write_json(
        FOLDER / "config.json",
        {
            "model_type": "gemma3_text",
            "architectures": ["Gemma3TextModel"],
            "use_bidirectional_attention": True,
            "dtype": "bfloat16",
            "vocab_size": CONFIG.vocabulary,
            "hidden_size": CONFIG.width,
            "intermediate_size": CONFIG.mlp,
            "num_hidden_layers": len(CONFIG.layer_kinds),
            "num_attention_heads": CONFIG.heads,
            "num_key_value_heads": CONFIG.key_heads,
            "head_dim": CONFIG.head,
            "layer_types": list(CONFIG.layer_kinds),
            "sliding_window": 2 * CONFIG.reach,
            "max_position_embeddings": CONFIG.context,
            "rope_theta": CONFIG.full_base,
            "rope_local_base_freq": CONFIG.sliding_base,
            "rope_scaling": None,
            "query_pre_attn_scalar": int(CONFIG.query_scalar),
            "rms_norm_eps": CONFIG.epsilon,
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "pad_token_id": 0,
            "eos_token_id": CONFIG.eos,
            "bos_token_id": CONFIG.bos,
        },
    )
    modules = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    paths = ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]
    write_json(
        FOLDER / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (kind, path) in enumerate(zip(modules, paths, strict=True))
        ],
    )
    write_json(
        FOLDER / "1_Pooling" / "config.json",
        {"word_embedding_dimension": CONFIG.width, "pooling_mode_mean_tokens": True, "include_prompt": True},
    )
    write_json(
        FOLDER / "config_sentence_transformers.json",
        {
            "prompts": PROMPTS | {alias: PROMPTS[task] for alias, task in ALIASES.items()},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    write_json(
        FOLDER / "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", "model_max_length": CONFIG.context}
    )


if __name__ == "__main__":
    main()
