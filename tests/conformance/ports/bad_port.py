"""A port as a program that goes wrong, of the standard library only: bad_port.py ANSWERS [HOW].

ANSWERS is a JSON file, text -> vector.
"""

import json
import os
import signal
import sys
import time

LATE = 5  # the call of embed at which it goes wrong


def say(answer):
    sys.stdout.write((answer if isinstance(answer, str) else json.dumps(answer)) + "\n")
    sys.stdout.flush()


def wait():
    time.sleep(60)


def crash():
    sys.stderr.write("segmentation fault, as it were\n")
    sys.stderr.flush()
    os._exit(3)


def stop_in_the_middle():
    sys.stdout.write('{"vectors": [[1.0')
    sys.stdout.flush()
    os._exit(0)


def close():
    os.close(1)
    wait()


MISBEHAVIOURS = {
    "hang": wait,
    "crash": crash,
    "exit": lambda: os._exit(0),
    "not-json": lambda: say("Segmentation fault (core dumped)"),
    "half-a-line": stop_in_the_middle,
    "a-list": lambda: say([1, 2]),
    "no-vectors": lambda: say({"embeddings": []}),
    "error": lambda: say({"error": "out of memory \u0000\u001b[31m\ud800"}),
    "killed": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "null": lambda: say({"vectors": None}),
    "words": lambda: say({"vectors": [["a", "b"]]}),
    "deep": lambda: say("[" * 100_000),
    "huge-line": lambda: say('{"vectors": "' + "x" * 3_000_000 + '"}'),
    "huge-number": lambda: say('{"vectors": [[1' + "0" * 400 + ", 2]]}"),
    "two-lines": lambda: say('{"vectors": [[1.0]]}\n{"vectors": [[1.0]]}'),
    "closed": close,
}

with open(sys.argv[1]) as file:
    answers = json.load(file)
how = sys.argv[2] if len(sys.argv) > 2 else ""
if how == "exit-at-start":
    sys.exit("no such model")
if how == "banner":
    say("Loading the model, please wait")
if how == "silent-at-start":
    wait()
if how == "only-once":
    if os.path.exists("started"):
        sys.exit("only once")
    open("started", "w").close()
count = 0
for line in sys.stdin:
    asked = json.loads(line)
    if asked["call"] == "start":
        say({"name": "bad port", "can": "everything" if how == "can-a-word" else ["embed", 5, "fly"]})
    elif asked["call"] == "embed":
        count += 1
        if how == "always-exits":
            sys.exit(1)
        if how == "always-not-json":
            say("ready")
            continue
        if how == "only-once" and count == LATE:
            crash()
        if how in MISBEHAVIOURS and count == LATE:
            MISBEHAVIOURS[how]()
        else:
            say({"vectors": [answers[text] for text in asked["texts"]]})
    else:
        break
