"""transformers' encoder exported to ONNX, run by ONNX Runtime, answering `refembed verify --command`.

python onnxruntime_shim.py ENCODER.onnx FOLDER    (FOLDER is the checkpoint, for tokenizer and dense head)

The file takes input_ids and attention_mask and gives last_hidden_state; in the folder golden this makes one:
python -c "from pathlib import Path; from oracle import export_onnx; export_onnx(Path(FOLDER), Path('encoder.onnx'))"
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file
from tokenizers import Tokenizer

folder = Path(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(json.loads((folder / "config.json").read_text())["max_position_embeddings"])
DENSE = [load_file(folder / name / "model.safetensors")["linear.weight"] for name in ("2_Dense", "3_Dense")]


def encode(texts):
    """The last stages of texts padded to one length; final_norm without its padding."""
    rows = [one.ids for one in tokenizer.encode_batch(texts)]
    mask = np.array([[1] * len(row) + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    ids = np.zeros_like(mask)
    ids[mask == 1] = np.concatenate(rows)
    (states,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    up = pooled.astype(np.float32) @ DENSE[0].T
    stages = {"pooled": pooled, "projected_up": up, "projected": up @ DENSE[1].T}
    return stages | {"final_norm": [state[: len(row)] for state, row in zip(states, rows, strict=True)]}


def answer(request):
    match request["call"]:
        case "start":
            return {"name": f"onnxruntime {onnxruntime.__version__}", "can": ["embed", "tokenize", "trace"]}
        case "tokenize":
            return {"ids": [one.ids for one in tokenizer.encode_batch(request["texts"])]}
        case "embed":
            vectors = encode(request["texts"])["projected"][:, : request["dimensions"]]
            return {"vectors": (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).tolist()}
        case "trace":
            stages = encode([request["text"]])
            return {"stages": {stage: stages[stage][0].tolist() for stage in request["stages"] if stage in stages}}


for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    if request["call"] == "stop":
        break
    try:
        print(json.dumps(answer(request)), flush=True)
    except Exception as error:
        print(json.dumps({"error": repr(error)}), flush=True)
