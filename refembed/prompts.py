"""The model was trained with a task before every text. This table is the one place that says which (TOK-2, 3)."""

import re
from collections.abc import Mapping, Sequence

from .errors import RefembedError

UNTITLED = "none"
DOCUMENT = "title: {title} | text: "

# task -> what stands before the text (model card)
PROMPTS = {
    "query": "task: search result | query: ",
    "document": DOCUMENT.format(title=UNTITLED),
    "question answering": "task: question answering | query: ",
    "fact checking": "task: fact checking | query: ",
    "classification": "task: classification | query: ",
    "clustering": "task: clustering | query: ",
    "sentence similarity": "task: sentence similarity | query: ",
    "code retrieval": "task: code retrieval | query: ",
    "summarization": "task: summarization | query: ",
}
# other names for the same tasks: the words in the prompts, and MTEB's task types as the checkpoint maps them
ALIASES = {
    "search result": "query",
    "Retrieval-query": "query",
    "Retrieval": "query",
    "Reranking": "query",
    "BitextMining": "query",
    "Retrieval-document": "document",
    "InstructionRetrieval": "code retrieval",
    "PairClassification": "sentence similarity",
    "STS": "sentence similarity",
    "MultilabelClassification": "classification",
}


def plain(name: str) -> str:
    """A task's name without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]", "", name).lower()


def prompt_of(task: str, own: Mapping[str, str]) -> str:
    """The prompt of a task by any of its names.

    own      the checkpoint's own prompts by name: they come before this table's, for their aliases too
    """
    known = PROMPTS | dict(own)
    found = {plain(name): prompt for name, prompt in known.items()}
    aliases = {plain(alias): plain(name) for alias, name in ALIASES.items()}
    name = plain(task) if isinstance(task, str) else ""
    name = name if name in found else aliases.get(name, "")
    if name not in found:
        raise RefembedError("option-task", f"no task {task!r}; the tasks are {', '.join(PROMPTS)}")
    return found[name]


def prefixes(
    count: int,
    task: str | None,
    prompt: str | None,
    titles: Sequence[str | None] | None,
    own: Mapping[str, str],
) -> list[str]:
    """What to put before each of `count` texts. Without titles it is the same for all.

    titles   one for each text; None or "" is a document without a title
    """
    if prompt is not None and not isinstance(prompt, str):
        raise RefembedError("option-prompt", f"prompt is {type(prompt).__name__}, a text is needed")
    before = prompt if prompt is not None else "" if task is None else prompt_of(task, own)
    if titles is None:
        return [before] * count
    if before != PROMPTS["document"]:
        raise RefembedError("option-prompt", f"titles go with the document prompt only, not with {before!r}")
    if isinstance(titles, str) or not hasattr(titles, "__len__"):
        raise RefembedError(
            "titles-invalid", f"titles is {type(titles).__name__}; give a list of one title for each text"
        )
    if len(titles) != count:
        raise RefembedError("titles-invalid", f"{len(titles)} titles for {count} texts; give one each, or None")
    for index, title in enumerate(titles):
        if not isinstance(title, str | None):
            raise RefembedError("titles-invalid", f"its title is {type(title).__name__}, not a text", index)
    return [DOCUMENT.format(title=title or UNTITLED) for title in titles]
