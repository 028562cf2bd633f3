"""A port as a program: JSON lines on standard input and output, answered by refembed's NumPy backend on the twin."""

import json
import sys
import warnings

import refembed
from refembed.conformance.suite import golden_folder

warnings.simplefilter("ignore")  # of texts that are meant to be too long
model = refembed.load(golden_folder("twin") / "checkpoint", backend="numpy")


def vectors(asked):
    size = asked["dimensions"]
    if "texts" in asked:
        return model.encode(asked["texts"], task=None, dimensions=size).tolist()
    return [
        model.encode(one["text"], task=one["task"], titles=one["title"], dimensions=size).tolist()
        for one in asked["plain"]
    ]


def stages(text, wanted):
    (ids,) = model.prepare([text], task=None)
    return {name: tensor.tolist() for name, tensor in model.encoder.trace(ids).items() if name in wanted}


for line in sys.stdin:
    asked = json.loads(line)
    if asked["call"] == "start":
        answer = {"name": "twin port", "can": ["tokenize", "embed", "trace", "prompts"]}
    elif asked["call"] == "tokenize":
        answer = {"ids": [ids.tolist() for ids in model.prepare(asked["texts"], task=None)]}
    elif asked["call"] == "embed":
        answer = {"vectors": vectors(asked)}
    elif asked["call"] == "trace":
        answer = {"stages": stages(asked["text"], asked["stages"])}
    else:
        break
    print(json.dumps(answer), flush=True)
