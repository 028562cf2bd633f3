"""Any sentence-transformers model folder, answering `refembed verify --command`.

python sentence_transformers_shim.py FOLDER
Vectors, tokens, prompts, and the stages that stand in modules of their own; spec/tensors.md has the modules' names.
"""

import importlib.metadata
import json
import sys
from functools import partial

from sentence_transformers import SentenceTransformer

NAME = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("sentence-transformers", "transformers"))
model = SentenceTransformer(sys.argv[1], device="cpu")
encoder = model[0].auto_model
STAGES = {"embedded": encoder.embed_tokens, "final_norm": encoder.norm}
STAGES |= {f"layer.{index:02d}.out": layer for index, layer in enumerate(encoder.layers)}
STAGES |= dict(zip(("pooled", "projected_up", "projected", "embedding"), list(model)[1:], strict=True))
kept = {}  # stage -> what its module gave for the last text


def keep(stage, module, given, result):
    """A hook. Layers of older transformers give a tuple; from the pooling on modules give features by name."""
    result = result[0] if isinstance(result, tuple) else result
    rows = (result["sentence_embedding"] if hasattr(result, "keys") else result)[0]
    kept[stage] = rows[[0, -1]] if rows.ndim == 2 and len(rows) > 64 else rows  # 2,048 rows are 20 MB as JSON


def prompted(item):
    """A text with its task's prompt before it; the folder has no name for some tasks of the model card."""
    prompt = model.prompts.get(item["task"], f"task: {item['task']} | query: ") if item["task"] else ""
    return (prompt.replace("none", item["title"]) if item["title"] else prompt) + item["text"]


def answer(request):
    match request["call"]:
        case "start":
            return {"name": NAME, "can": ["embed", "tokenize", "trace", "prompts"]}
        case "tokenize":
            return {"ids": model.tokenizer(request["texts"], truncation=True)["input_ids"]}
        case "embed":
            texts = request["texts"] if "texts" in request else [prompted(item) for item in request["plain"]]
            vectors = model.encode(texts, truncate_dim=request["dimensions"], normalize_embeddings=True)
            return {"vectors": vectors.tolist()}
        case "trace":
            model.encode([request["text"]])
            return {"stages": {stage: kept[stage].tolist() for stage in request["stages"] if stage in kept}}


for stage, module in STAGES.items():
    module.register_forward_hook(partial(keep, stage))
for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    if request["call"] == "stop":
        break
    try:
        print(json.dumps(answer(request)), flush=True)
    except Exception as error:
        print(json.dumps({"error": repr(error)}), flush=True)
