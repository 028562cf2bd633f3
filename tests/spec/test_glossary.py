"""spec/glossary.md defines the words, each where it says, and no page or docstring says it otherwise."""

import ast
import re
from collections.abc import Mapping

import pytest
from test_chapters import CODE, PAGES, ROOT, SPEC, prose, texts

PAGE = SPEC / "glossary.md"
TERM = re.compile(r"^\| ([^|]+?) \| [^|]+ \| \[[^\]]+\]\(([\w-]+\.md)\) \|$", re.MULTILINE)
RULE = re.compile(r"^\| ([^|\[]+?) \| ([^|\[]+?) \|$", re.MULTILINE)
NOT_PROSE = re.compile(r"```.*?```|`[^`\n]*`|\]\([^)\s]*\)|https?://\S+|\"[^\"\n]*\"", re.DOTALL)


def terms() -> dict[str, str]:
    """Term -> the page that defines it."""
    return dict(TERM.findall(PAGE.read_text()))


def rules() -> dict[str, str]:
    """What is not said -> what is said in its place."""
    table = PAGE.read_text().partition("## Say this, not that")[2]
    pairs = [(say, no) for say, no in RULE.findall(table) if say not in ("say", "---")]
    return {word: say for say, no in pairs for word in no.split(", ")}


def docstrings(source: str) -> str:
    """Those of refembed's own words: a file's docstrings, one after another."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    return "\n\n".join(ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))


def misuses(name: str, text: str, words: Mapping[str, str]) -> list[str]:
    """name: what is said, and what to say, for each word that the glossary does not say."""
    plain = re.sub(r"\s+", " ", NOT_PROSE.sub(" ", text))
    found = {
        word for word in words if re.search(rf"(?<![\w.-]){re.escape(word)}s?(?![\w-]|\.\w)", plain, re.IGNORECASE)
    }
    return [f"{name}: {word}, say {words[word]}" for word in sorted(found)]


def test_every_term_is_used_on_the_page_that_defines_it() -> None:
    """Wrong if a term is defined nowhere, or its page does not know it."""
    assert len(terms()) >= 40
    for term, page in terms().items():
        text = " ".join(prose((SPEC / page).read_text()).split()).lower()
        for word in re.split(r",? ", term.lower()):
            assert re.search(rf"\b{re.escape(word.removesuffix('ing'))}", text), f"{term}: {page}"


def test_terms_stand_in_order_and_once() -> None:
    """Wrong if a reader would look for a term at its place and not find it, or find two meanings."""
    listed = [term.lower() for term, _ in TERM.findall(PAGE.read_text())]
    assert listed == sorted(set(listed))


def test_what_is_said_instead_is_a_term() -> None:
    """Wrong if the second table sends a writer to a word that the first does not define, or forbids one it does."""
    assert len(rules()) >= 40
    assert set(rules().values()) <= set(terms())
    assert not set(rules()) & set(terms())


def test_no_page_says_it_otherwise() -> None:
    """Wrong if a page of the specification, or README.md, has another word for a term."""
    pages = texts([*(page for page in PAGES if page != PAGE), ROOT / "README.md"])
    assert [line for name, text in pages.items() for line in misuses(name, text, rules())] == []


def test_no_docstring_says_it_otherwise() -> None:
    """Wrong if somebody who reads help() meets another word than in the specification."""
    found = texts(CODE)
    assert len(found) > 100
    assert [line for name, text in found.items() for line in misuses(name, docstrings(text), rules())] == []


@pytest.mark.parametrize("word", sorted(rules()))
def test_planted_misuse_is_found(word: str) -> None:
    """Wrong if a forbidden word could stand in a sentence, at its start, at a line's end, or as several."""
    said = [f"page: {word}, say {rules()[word]}"]
    for text in (f"of the {word}.", f"{word.capitalize()} is it", f"two\n{word.replace(' ', chr(10))}s, at once"):
        assert said == [one for one in misuses("page", text, rules()) if one in said], text
        assert said[0] in misuses("page", docstrings(f'def f():\n    """{text}"""\n'), rules())


def test_code_links_and_quotes_are_free() -> None:
    """Wrong if another program's own name could not be cited."""
    for text in (
        "`unit norm`",
        "```text\nunit norm\n```",
        "[x](unit-norm.md)",
        'their "unit norm"',
        "unit_norm",
        "x-unit norm",
    ):
        assert misuses("page", text, rules()) == []
