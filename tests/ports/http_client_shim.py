"""A server with OpenAI's interface, answering `refembed verify --command`: what --url does, for a dialect of one's own.

python http_client_shim.py http://127.0.0.1:8080/v1/embeddings
"""

import json
import sys
import urllib.request


def answer(request):
    if request["call"] == "start":
        return {"name": sys.argv[1], "can": ["embed"]}
    body = json.dumps({"model": "embeddinggemma", "input": request["texts"], "dimensions": request["dimensions"]})
    post = urllib.request.Request(sys.argv[1], body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(post) as reply:
        return {"vectors": [entry["embedding"] for entry in json.load(reply)["data"]]}


for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    if request["call"] == "stop":
        break
    print(json.dumps(answer(request)), flush=True)
