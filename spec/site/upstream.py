"""Threads of other projects, which pages name as "transformers #40694", as links to them.

A project that is not in the table, and is not written as owner/repository, stays without a link.
"""

import re
from collections.abc import Callable

from book import FENCE

REPOSITORIES = {
    "candle": "huggingface/candle",
    "mlx-swift-lm": "ml-explore/mlx-swift-lm",
    "mlxcel": "lablup/mlxcel",
    "plur": "plur-ai/plur",
    "sentence-transformers": "huggingface/sentence-transformers",
    "text-embeddings-inference": "huggingface/text-embeddings-inference",
    "transformers": "huggingface/transformers",
    "vllm": "vllm-project/vllm",
}
NUMBER = re.compile(r"#(\d+)")
THREADS = re.compile(  # a project, and the numbers of its threads up to the next word
    rf"(?<![\w/.-])({'|'.join(map(re.escape, REPOSITORIES))}|[A-Za-z][\w-]*/[A-Za-z][\w.-]*)"
    r"((?:,?\s+(?:and|fixed\s+in)?\s*(?:PR\s+)?#\d+)+)"
)


def linked(text: str, link: Callable[[str, str], str]) -> str:
    """A text with link(what it says, address) for each thread. GitHub leads from issues/N to a pull request N."""

    def threads(found: re.Match[str]) -> str:
        at = f"https://github.com/{REPOSITORIES.get(found[1], found[1])}/issues"
        return found[1] + NUMBER.sub(lambda number: link(number[0], f"{at}/{number[1]}"), found[2])

    return THREADS.sub(threads, text)


def in_markdown(text: str) -> str:
    """A page's Markdown, threads in its prose as links."""
    parts, start = [], 0
    for fence in FENCE.finditer(text):
        parts += [linked(text[start : fence.start()], "[{}]({})".format), fence[0]]
        start = fence.end()
    return "".join([*parts, linked(text[start:], "[{}]({})".format)])


def in_html(text: str) -> str:
    return linked(text, '<a href="{1}">{0}</a>'.format)
