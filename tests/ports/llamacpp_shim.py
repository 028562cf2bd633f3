"""llama.cpp's server, answering `refembed verify --command`: what --url does, and what the server leaves to others.

llama-server -m MODEL.gguf --embedding --pooling mean -c 2048 -b 2048 -ub 2048 -np 1
python llamacpp_shim.py http://127.0.0.1:8080

A text longer than the context is refused there, so it is cut here; and vectors are shortened here.
"""

import json
import math
import os
import sys
import urllib.request


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(sys.argv[1] + path, data)) as reply:
        return json.load(reply)


server = ask("/props")
context = server["default_generation_settings"]["n_ctx"]


def tokenize(text):
    """Ids with BOS and EOS; of a long text the first ones, and EOS."""
    ids = ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    return ids if len(ids) <= context else [*ids[: context - 1], ids[-1]]


def shortened(vector, dimensions):
    length = math.hypot(*vector[:dimensions])
    return [number / length for number in vector[:dimensions]]


def answer(request):
    match request["call"]:
        case "start":
            name = f"llama.cpp {server['build_info']}, {os.path.basename(server['model_alias'])}"
            return {"name": name, "can": ["embed", "tokenize"]}
        case "tokenize":
            return {"ids": [tokenize(text) for text in request["texts"]]}
        case "embed":
            entries = ask("/embedding", {"content": [tokenize(text) for text in request["texts"]]})
            vectors = [entry["embedding"][0] for entry in sorted(entries, key=lambda entry: entry["index"])]
            return {"vectors": [shortened(vector, request["dimensions"]) for vector in vectors]}


for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    if request["call"] == "stop":
        break
    try:
        print(json.dumps(answer(request)), flush=True)
    except Exception as error:
        print(json.dumps({"error": repr(error)}), flush=True)
