"""The command line: refembed COMMAND. Exit status 0 done, 1 some inputs failed, 2 wrong use or unreadable input."""

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType

from .. import __version__
from ..errors import RefembedError, printable, shortened
from ..plugins import plugins
from . import bench, doctor, embed, evaluate, golden, index, inspect, quantize, search, similarity, verify

COMMANDS = (embed, similarity, search, index, inspect, verify, golden, evaluate, quantize, bench, doctor)
GROUP = "refembed.commands"  # the entry points by which packages above this one add theirs


def all_commands() -> dict[str, ModuleType]:
    """Our own commands and those of entry points, which a broken package must not take away from us."""
    found = {module.__name__.rpartition(".")[2]: module for module in COMMANDS}
    for entry in plugins(GROUP):
        with suppress(ImportError, AttributeError):
            found.setdefault(entry.name, entry.load())
    return found


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refembed",
        description="EmbeddingGemma that you can read, check and run.",
        epilog="Exit status: 0 done, 1 some inputs failed, 2 wrong use or unreadable input.",
    )
    parser.add_argument("--version", action="version", version=f"refembed {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in all_commands().items():
        summary = str(module.__doc__).strip()
        raw = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(
            name,
            help=summary.splitlines()[0],
            description=summary,
            formatter_class=raw,
        )
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run)
    return parser


def say_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"refembed: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = build_parser()
    given, left = parser.parse_known_args(arguments)
    if left and (not hasattr(given, "texts") or any(text.startswith("-") for text in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)} (a text that starts with - comes after --)")
    if left:
        given.texts += left  # texts after an option, which argparse alone does not take
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = say_warning
        with suppress(AttributeError):  # a terminal that has no such character shows its number
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            status = int(given.run(given))
            sys.stdout.flush()  # what cannot be written fails here, not after the end
            return status
        except RefembedError as error:
            return fail(given, f"{error} [{error.id}]")
        except KeyboardInterrupt:
            print("refembed: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of our output has gone: not an error of ours
            drop_output()
            return 0
        except Exception as error:  # a fault of ours, or of the machine
            if full := drop_output():
                return fail(given, f"standard output: {full.strerror or full} [output-unwritable]")
            return fail(given, f"{type(error).__name__}: {error} (--debug shows where)")


def fail(given: argparse.Namespace, reason: str) -> int:
    """Say it in one line, and where it happened if asked."""
    if given.debug:
        traceback.print_exc()
    print(f"refembed: {shortened(printable(reason))}", file=sys.stderr)
    return 2


def drop_output() -> OSError | None:
    """Where standard output can take no more, send the rest nowhere, or Python fails again at its end. Returns why."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
