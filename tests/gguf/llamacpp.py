"""What llama.cpp makes of a small model: small-q8_0.gguf and small-q4_0.gguf; in llamacpp.json tokens and vectors.

python tests/gguf/llamacpp.py BIN

BIN holds llama-quantize and llama-server, made as spec/reports/README.md says.
"""

import json
import math
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from gguf_files import write_gguf  # noqa: E402

TEXTS = [
    "the planet is red",
    "",
    "a",
    "title: none | text: he is in the planet",
    "on an er  in   the",
    "one\ntwo\n\nthree",
    "an 日本 é ü 🙂",
    "tabs\tand <mask>.",
    "the planet the planet the planet the planet the red planet",
    "never red, ever on, at a planet. " * 3,
]
SERVER = "http://127.0.0.1:18089"
OPTIONS = [
    "--embedding",
    "--pooling",
    "mean",
    "-c",
    "128",
    "-b",
    "128",
    "-ub",
    "128",
    "-np",
    "1",
    "-t",
    "1",
    "--port",
    "18089",
]


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(SERVER + path, data)) as reply:
        return json.load(reply)


def answers(binaries, file):
    """Tokens and unit vectors of TEXTS."""
    server = subprocess.Popen([binaries / "llama-server", "-m", file, *OPTIONS], stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                about = ask("/props")
                break
            except OSError:
                time.sleep(0.2)
        ids = [ask("/tokenize", {"content": t, "add_special": True, "parse_special": True})["tokens"] for t in TEXTS]
        vectors = []
        for text in ids:
            (vector,) = ask("/embedding", {"content": text})[0]["embedding"]
            vectors.append([round(number / math.hypot(*vector), 7) for number in vector])
        return {"llama.cpp": about["build_info"], "ids": ids, "vectors": vectors}
    finally:
        server.terminate()
        server.wait()


def main(binaries):
    with TemporaryDirectory() as folder:
        whole = write_gguf(Path(folder) / "small-f32.gguf")
        for kind in ("Q8_0", "Q4_0"):
            table = ["--token-embedding-type", "q8_0"]
            made = HERE / f"small-{kind.lower()}.gguf"
            subprocess.run([binaries / "llama-quantize", *table, whole, made, kind], check=True, capture_output=True)
        files = {"F32": whole} | {kind: HERE / f"small-{kind.lower()}.gguf" for kind in ("Q8_0", "Q4_0")}
        found = {"texts": TEXTS} | {kind: answers(binaries, file) for kind, file in files.items()}
    (HERE / "llamacpp.json").write_text(json.dumps(found, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
