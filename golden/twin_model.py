"""The twin: a synthetic model of the real one's code path at toy size, written as a checkpoint folder.

Window, layer kinds, three heads on one, prompts, special tokens, byte fallback: everything a port must do for the real
model it must do here, in milliseconds and without weights that need a licence. Sizes keep the real one's ratios where a
known mistake turns on them: width / heads = head, width = dimensions, context = 8 x reach.
"""

import json
from pathlib import Path

import numpy as np
from inputs import PROMPTED, UNRELATED, WORDS, WRITTEN
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from refembed.prompts import ALIASES, PROMPTS
from refembed.reference import FULL, SLIDING, Config, parameter_shapes

SEED = 300_000_000
CONFIG = Config(
    vocabulary=768,
    width=48,
    mlp=72,
    heads=3,
    key_heads=1,
    head=16,
    dense=96,
    dimensions=48,
    layer_kinds=(SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL),
    reach=8,
    context=64,
    query_scalar=16.0,
)
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
ADDED = ["<mask>", "[multimodal]", "<unused0>", "<start_of_turn>", "<end_of_turn>", "<b>", "</b>"]
RUNS = ["▁" * count for count in range(2, 9)] + ["\n" * count for count in range(2, 5)] + ["\t\t"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def make_tokenizer() -> Tokenizer:
    """Gemma's form: byte-pair encoding with byte fallback, '▁' for spaces, runs of white space as added tokens."""
    first = [*SPECIAL, *ADDED, *RUNS, *BYTES]
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    text = [*PROMPTS.values(), " " + " ".join(WORDS)] * 40 + [
        " " + sentence for sentence in (*PROMPTED.values(), *UNRELATED)
    ]
    plain = [sentence for name, sentence in WRITTEN.items() if sentence.isascii() and not name.startswith("special")]
    trained.train_from_iterator(
        [*text, *plain],
        trainers.BpeTrainer(
            vocab_size=CONFIG.vocabulary, special_tokens=first, initial_alphabet=[chr(c) for c in range(33, 127)]
        ),
    )
    model = json.loads(trained.to_str())["model"]
    runs = [(run[:-1], run[-1]) for run in RUNS]  # merged before anything else, as in the real tokenizer
    tokenizer = Tokenizer(
        models.BPE(
            model["vocab"],
            [*runs, *(tuple(pair) for pair in model["merges"])],
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ADDED])
    return tokenizer


def make_parameters() -> dict[str, np.ndarray]:
    """Random weights, in which every part matters: norm weights well away from zero, updates as large as the stream."""
    rng = np.random.default_rng(SEED)
    parameters = {}
    for name, shape in parameter_shapes(CONFIG).items():
        spread = 0.4 if len(shape) == 1 else shape[1] ** -0.5
        parameters[name] = (spread * rng.standard_normal(shape)).astype(np.float32)
    return parameters


def config_json() -> dict[str, object]:
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3TextModel"],
        "use_bidirectional_attention": True,
        "dtype": "float32",
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
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "pad_token_id": 0,
        "eos_token_id": CONFIG.eos,
        "bos_token_id": CONFIG.bos,
    }


def write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_twin(folder: Path) -> None:
    """The checkpoint folder, in the released model's layout."""
    write(folder / "config.json", config_json())
    make_tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    parameters = make_parameters()
    for dense in ("2_Dense", "3_Dense"):
        matrix = parameters.pop(f"{dense}.linear.weight")
        sizes = {"in_features": matrix.shape[1], "out_features": matrix.shape[0], "bias": False}
        write(folder / dense / "config.json", sizes | {"activation_function": "torch.nn.modules.linear.Identity"})
        save_file({"linear.weight": matrix}, folder / dense / "model.safetensors", {"format": "pt"})
    save_file(parameters, folder / "model.safetensors", {"format": "pt"})
    kinds = {
        "": "Transformer",
        "1_Pooling": "Pooling",
        "2_Dense": "Dense",
        "3_Dense": "Dense",
        "4_Normalize": "Normalize",
    }
    write(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(kinds.items())
        ],
    )
    write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": CONFIG.width, "pooling_mode_mean_tokens": True, "include_prompt": True},
    )
    prompts = PROMPTS | {alias: PROMPTS[task] for alias, task in ALIASES.items()}
    write(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    write(folder / "sentence_bert_config.json", {"max_seq_length": CONFIG.context, "do_lower_case": False})
    write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer", "model_max_length": CONFIG.context, "padding_side": "right",
            "add_bos_token": True, "add_eos_token": True,  # what older libraries go by
            "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
        },
    )  # fmt: skip
