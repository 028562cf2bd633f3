"""Decoder-only Gemma 3 folders that transformers itself has made, and raw text of a few words."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from refembed_torch.train.vocabulary import train_tokenizer

from refembed.reference import FULL, SLIDING

WINDOW = 6  # shorter than most texts, and no multiple of anything else
KINDS = (SLIDING, SLIDING, FULL)
WORDS = ["the", "window", "of", "a", "layer", "is", "wider", "than", "one", "token", "so", "this", "text", "longer"]


def gemma_config(**changes: Any) -> Any:
    from transformers import Gemma3TextConfig

    sizes: dict[str, Any] = {
        "vocab_size": 900, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": len(KINDS),
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "layer_types": list(KINDS),
        "sliding_window": WINDOW, "max_position_embeddings": 64, "query_pre_attn_scalar": 11,
    }  # fmt: skip
    return Gemma3TextConfig(**sizes | changes)


def gemma_model(seed: int = 0, **changes: Any) -> Any:
    """Every part matters: norms well away from where they start, matrices that keep a row's size."""
    from transformers import Gemma3ForCausalLM

    model = Gemma3ForCausalLM(gemma_config(**changes))
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
            parameter.normal_(std=spread, generator=chance)
    return model.eval()


def write_gemma_folder(folder: Path, seed: int = 0, tokenizer: bool = True, **options: Any) -> Any:
    model = gemma_model(seed)
    model.save_pretrained(folder, **options)
    if tokenizer:
        (folder / "tokenizer.json").write_text(train_tokenizer(sentences(200), 900).to_str())
    return model


def sentences(count: int, seed: int = 0) -> list[str]:
    chance = np.random.default_rng(seed)
    return [" ".join(chance.choice(WORDS, chance.integers(5, 30))) for _ in range(count)]


def write_text(file: Path, count: int, seed: int = 0) -> Path:
    with gzip.open(file, "wt") as handle:
        handle.writelines(f"made\t{text}\n" for text in sentences(count, seed))
    return file


def texts_of(lengths: list[int], vocabulary: int = 900) -> list[NDArray[np.int64]]:
    """BOS, random tokens."""
    chance = np.random.default_rng(len(lengths))
    return [np.insert(chance.integers(4, vocabulary, length - 1), 0, 2) for length in lengths]
