"""Any sentence-transformers model folder, answering `refembed verify --command`.

python sentence_transformers_shim.py FOLDER

Vectors, tokens, prompts, and the stages that stand in modules of their own; spec/tensors.md has the modules' names. A
Python function that takes a list of texts needs no such program: `refembed verify --call module:function`.
"""

import json
import sys
from functools import partial

from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], device="cpu")
encoder = model[0].model
STAGES = {encoder.embed_tokens: "embedded", encoder.norm: "final_norm"}
STAGES |= {layer: f"layer.{index:02d}.out" for index, layer in enumerate(encoder.layers)}
STAGES |= dict(zip(list(model)[1:], ("pooled", "projected_up", "projected", "embedding"), strict=True))


def keep(stages, stage, module, given, result):
    """A hook: what a module gave for the first and only text. From the pooling on it gives features by name."""
    stages[stage] = (result["sentence_embedding"] if hasattr(result, "keys") else result)[0].tolist()


def prompted(item):
    """A text with its task's prompt before it."""
    prompt = model.prompts[item["task"]] if item["task"] else ""
    return (prompt.replace("none", item["title"]) if item["title"] else prompt) + item["text"]


def answer(request):
    match request["call"]:
        case "start":
            return {"name": f"sentence-transformers {sys.argv[1]}", "can": ["embed", "tokenize", "trace", "prompts"]}
        case "tokenize":
            longest = model.max_seq_length
            return {"ids": model.tokenizer(request["texts"], truncation=True, max_length=longest)["input_ids"]}
        case "embed":
            texts = request["texts"] if "texts" in request else [prompted(item) for item in request["plain"]]
            vectors = model.encode(texts, truncate_dim=request["dimensions"], normalize_embeddings=True)
            return {"vectors": vectors.tolist()}
        case "trace":
            stages = {}
            hooks = [module.register_forward_hook(partial(keep, stages, stage)) for module, stage in STAGES.items()]
            model.encode([request["text"]])
            for hook in hooks:
                hook.remove()
            return {"stages": stages}


for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    if request["call"] == "stop":
        break
    try:
        print(json.dumps(answer(request)), flush=True)
    except Exception as error:
        print(json.dumps({"error": repr(error)}), flush=True)
