"""Check a lesson: what is right, what is wrong and how to see it, what is still to do.

  python spec/lessons/check.py 3                                  lesson 3, in spec/lessons/exercises
  python spec/lessons/check.py                                    every lesson
  python spec/lessons/check.py 3 --folder spec/lessons/solutions  somebody else's

Exit status: 0 all right, 1 something is wrong or to do, 2 wrong use.
"""

import argparse
import importlib
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from checks import CHAPTERS, EXERCISES, LESSONS, Wrong

HERE = Path(__file__).resolve().parent
RIGHT, WRONG, TO_DO, WAITS, CRASHED = "right", "WRONG", "to do", "waits", "CRASHED"


class Outcome(NamedTuple):
    """What one exercise came to, and what there is to say of it."""

    exercise: str
    verdict: str
    words: str = ""


def learner(folder: Path) -> types.ModuleType:
    """The folder as a package, read anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "learner"]:
        del sys.modules[name]
    package = types.ModuleType("learner")
    package.__path__ = [str(folder)]
    sys.modules["learner"] = package
    importlib.invalidate_caches()
    return package


def outcomes(lesson: int, folder: Path) -> Iterator[Outcome]:
    """Every exercise of a lesson, each by itself: one that fails stops no other."""
    learner(folder)
    try:
        module: Any = importlib.import_module(f"learner.{LESSONS[lesson]}")
    except Exception as error:
        yield Outcome(LESSONS[lesson], CRASHED, f"cannot be read: {told(error, folder)}")
        return
    for exercise, check in EXERCISES[lesson].items():
        verdict, words = judged(exercise, check, module, folder)
        if verdict == WRONG and (earlier := faulty(lesson, folder)):
            words += f"\nbegin with {earlier}: it may be the reason"
        yield Outcome(exercise, verdict, words)


def faulty(lesson: int, folder: Path) -> str:
    """The first wrong exercise of the earlier lessons that this one imports. What is to do makes itself heard."""
    for before in range(1, lesson):
        module = sys.modules.get(f"learner.{LESSONS[before]}")
        for exercise, check in EXERCISES[before].items() if module else ():
            verdict, _ = judged(exercise, check, module, folder)
            if verdict in (WRONG, CRASHED):
                return f"{exercise} of lesson {before}, which is {verdict}"
    return ""


def judged(exercise: str, check: Any, module: Any, folder: Path) -> tuple[str, str]:
    """The verdict on one exercise, and what there is to say of it."""
    if not callable(getattr(module, exercise, None)):
        return WRONG, f"{Path(module.__file__).name} has no function of this name"
    try:
        check(module)
    except Wrong as wrong:
        return WRONG, str(wrong)
    except NotImplementedError as error:
        at = traceback.extract_tb(error.__traceback__)[-1].name
        return (TO_DO, "yours to write") if at == exercise else (WAITS, f"for {at}, which is to do")
    except Exception as error:
        return CRASHED, told(error, folder)
    return RIGHT, ""


def told(error: Exception, folder: Path) -> str:
    """An error in the learner's words: what, and the last of the learner's own lines it passed."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({Path(error.filename or '').name}, line {error.lineno})"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == folder]
    where = f"\n{Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line}" if own else ""
    hint = ""
    if "read-only" in str(error):
        hint = "\nWhat a function is given is not its own to change: make a new array, x = x + y in place of x += y."
    return f"{type(error).__name__}: {error}{where}{hint}"


def shown(outcome: Outcome) -> str:
    """An outcome, further lines below the first."""
    first, *more = outcome.words.splitlines() or [""]
    return "\n".join(
        [f"  {outcome.exercise:24}{outcome.verdict:9}{first}".rstrip(), *(f"      {line}" for line in more)]
    )


def run(lessons: list[int], folder: Path) -> bool:
    """Print every lesson's outcomes; whether all are right."""
    verdicts = []
    for lesson in lessons:
        print(f"lesson {lesson}: {LESSONS[lesson]}.py")
        found = list(outcomes(lesson, folder))
        print("\n".join(map(shown, found)))
        done = sum(outcome.verdict == RIGHT for outcome in found)
        print(
            f"  {done} of {len(EXERCISES[lesson])} right" + ("" if done == len(EXERCISES[lesson]) else further(lesson))
        )
        verdicts.append(done == len(EXERCISES[lesson]))
    return all(verdicts)


def further(lesson: int) -> str:
    return f"; read the docstrings, and spec/{CHAPTERS[lesson]}"


def number(word: str) -> int:
    """A lesson's number; argparse's own choices refuse an empty list."""
    if word not in map(str, LESSONS):
        raise argparse.ArgumentTypeError(f"there is no lesson {word!r}; there are 1 to {max(LESSONS)}")
    return int(word)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="*", type=number, metavar="LESSON", help="1 to 6 (all)")
    parser.add_argument("--folder", type=Path, default=HERE / "exercises", help="where the lessons' files are")
    given = parser.parse_args(arguments)
    if not given.folder.is_dir():
        parser.error(f"{given.folder} is no folder")
    return 0 if run(given.lessons or list(LESSONS), given.folder.resolve()) else 1


if __name__ == "__main__":
    sys.exit(main())
