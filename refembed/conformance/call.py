"""A Python function as a program that speaks JSON lines: what `refembed verify --call` runs, in a process of its own.

python call.py MODULE:FUNCTION

A function that exits or crashes ends this process, not the run. Only the standard library is imported here, so that it
starts at once and the function finds the machine as its author left it.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any


class CallError(Exception):
    """What is wrong with a function or its answer, in words that go on after "the port"."""


def plain(found: Any) -> Any:
    """Anything like an array as lists of numbers, whichever library it is of; what is none of that as it is."""
    if isinstance(found, float | int | str | None):
        return found
    if isinstance(found, dict):
        raise TypeError(f"a dict of {[str(key) for key in found][:5]}")
    if hasattr(found, "detach"):  # torch gives NumPy no tensor with a gradient, on a device, or in bfloat16
        found = found.detach().cpu()
        found = found.double() if found.is_floating_point() else found
    if not hasattr(found, "tolist") and hasattr(found, "__array__"):
        found = found.__array__()
    if hasattr(found, "tolist"):
        return found.tolist()
    return [plain(one) for one in found] if isinstance(found, list | tuple) else found


def number(found: Any) -> float:
    """What JSON has no word for as a number, such as the scalars of other libraries."""
    if not hasattr(found, "__float__"):
        raise TypeError(type(found).__name__)
    return float(found)


def find_function(name: str) -> Callable[[Any], Any]:
    """MODULE:FUNCTION; `embed` where no function is named."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function or "embed")
    except (Exception, SystemExit) as error:  # whatever the module does as it is imported
        raise CallError(f"cannot be imported: {type(error).__name__} {error}") from error
    if not callable(found):
        raise CallError(f"is {type(found).__name__}, a function needed")
    return found


def ask(function: Callable[[Any], Any], request: dict[str, Any]) -> str:
    """The function's answer as a line of the protocol: vectors of texts, or what it answers to a whole question."""
    whole = request["call"] in ("loss", "gradients")
    try:
        found = function(request if whole else request["texts"])
    except (Exception, SystemExit) as error:
        raise CallError(f"raised {type(error).__name__}: {error}") from error
    try:
        return json.dumps(members(found) if whole else {"vectors": plain(found)}, default=number)
    except Exception as error:  # from another library's arrays anything may come
        raise CallError(f"gave something else than numbers: {error}") from error


def members(found: Any) -> Any:
    """A dict of anything, dicts within it too, as plain as its numbers can be."""
    if isinstance(found, dict):
        return {str(key): members(one) for key, one in found.items()}
    return plain(found)


def main(name: str) -> None:
    """Answer until told to stop. The function's own input and output are kept apart from the protocol's."""
    asked, said = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    function: Callable[[Any], Any] | None = None
    for line in asked:
        request = json.loads(line)
        if request["call"] == "stop":
            break
        try:
            if function is None:
                function = find_function(name)
            answer = json.dumps({"name": name}) if request["call"] == "start" else ask(function, request)
        except CallError as error:
            answer = json.dumps({"error": str(error)})
        said.write(answer + "\n")
        said.flush()


if __name__ == "__main__":
    if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]  # whose port.py and report.py are not the ones that a user's module means
    sys.path.insert(0, os.getcwd())
    main(sys.argv[1])
