"""Every prompt against the model card, the released checkpoint's own table, and the rules about names and titles."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from support import write_checkpoint

import refembed
from refembed.prompts import ALIASES, PROMPTS, prefixes, prompt_of

# the model card's table, written out here once more, letter by letter: {} is where the text goes
CARD = {
    "query": "task: search result | query: {}",
    "document": "title: none | text: {}",
    "question answering": "task: question answering | query: {}",
    "fact checking": "task: fact checking | query: {}",
    "classification": "task: classification | query: {}",
    "clustering": "task: clustering | query: {}",
    "sentence similarity": "task: sentence similarity | query: {}",
    "code retrieval": "task: code retrieval | query: {}",
    "summarization": "task: summarization | query: {}",
}
# MTEB's task types, as the released config_sentence_transformers.json maps them
TASK_TYPES = {
    "BitextMining": "query",
    "Reranking": "query",
    "Retrieval": "query",
    "Retrieval-query": "query",
    "Retrieval-document": "document",
    "InstructionRetrieval": "code retrieval",
    "PairClassification": "sentence similarity",
    "STS": "sentence similarity",
    "MultilabelClassification": "classification",
    "Classification": "classification",
    "Clustering": "clustering",
    "Summarization": "summarization",
}
NAMES = {**{task: task for task in CARD}, **TASK_TYPES}


@pytest.fixture(scope="module")
def model(small_folder):
    return refembed.load(small_folder, backend="numpy")


def ids_of(model, text: str) -> list[int]:
    """The ids of a text with nothing put before it."""
    return model.tokenizer([text])[0].tolist()


def test_tasks_are_the_cards() -> None:
    """A task of the model card is missing, or there is one the model never saw."""
    assert set(PROMPTS) == set(CARD)


@pytest.mark.parametrize("task", CARD)
def test_prompt_is_the_cards(model, task: str) -> None:
    """Texts of this task stand behind other words than in training: vectors look right and retrieve worse."""
    assert prompt_of(task, {}) + "{}" == CARD[task]
    assert model.prepare(["the end"], task=task)[0].tolist() == ids_of(model, CARD[task].format("the end"))


@pytest.mark.parametrize(("name", "task"), TASK_TYPES.items())
def test_task_types_of_mteb(name: str, task: str) -> None:
    """Scores of a benchmark run under this task type's name would not be the published model's."""
    assert prompt_of(name, {}) + "{}" == CARD[task]


def test_released_prompts(weights) -> None:
    """The checkpoint's own table says something else than ours under some name."""
    released = json.loads((weights / "config_sentence_transformers.json").read_text())["prompts"]
    assert len(released) == 14
    for name, prompt in released.items():
        assert prompt_of(name, {}) == prompt, name
        assert prompt_of(name, released) == prompt, name


def test_every_alias_names_a_task() -> None:
    """An alias leads nowhere."""
    assert set(ALIASES.values()) <= set(PROMPTS)
    assert prompt_of("search result", {}) == prompt_of("query", {})


@given(data=some.data(), name=some.sampled_from(sorted(NAMES)))
def test_names_are_matched_without_case(data, name: str) -> None:
    """A name typed with other capitals, hyphens or underscores is unknown, or is another task."""
    upper = data.draw(some.lists(some.booleans(), min_size=len(name), max_size=len(name)))
    space = data.draw(some.sampled_from([" ", "-", "_"]))
    typed = "".join(letter.upper() if up else letter.lower() for letter, up in zip(name, upper, strict=True))
    assert prompt_of(typed.replace(" ", space).replace("-", space), {}) + "{}" == CARD[NAMES[name]]


@pytest.mark.parametrize(
    "task", ["", " ", "search", "query:", "passage", "task: search result | query: ", 3, ["query"]]
)
def test_unknown_task_lists_the_tasks(model, task) -> None:
    """A mistyped task embeds with some other prompt, or the error leaves the user guessing."""
    with pytest.raises(refembed.RefembedError) as caught:
        model.encode(["x"], task=task)
    assert caught.value.id == "option-task"
    assert repr(task) in str(caught.value)
    assert all(name in str(caught.value) for name in CARD)


def test_titles(model) -> None:
    """A document's title does not stand where the model was trained to find it, or a missing one is not "none"."""
    titles = ["the end", None, "", "a | text: b", " "]
    found = model.prepare(["in the air"] * 5, titles=titles)
    written = ["the end", "none", "none", "a | text: b", " "]
    assert [ids.tolist() for ids in found] == [ids_of(model, f"title: {title} | text: in the air") for title in written]


def test_title_of_a_single_text(model) -> None:
    """One text with one title is another document than a list of it."""
    alone = model.encode_document("in the air", titles="the end")
    assert alone.shape == (40,)
    np.testing.assert_array_equal(alone, model.encode_document(["in the air"], titles=["the end"])[0])
    np.testing.assert_array_equal(alone, model.encode("title: the end | text: in the air", task=None))


def test_titles_go_with_every_name_of_the_document_task(model) -> None:
    """Titles are refused for documents under MTEB's name for them."""
    for task in ("document", "Document", "Retrieval-document"):
        assert model.prepare(["x"], task=task, titles=["t"])[0].tolist() == ids_of(model, "title: t | text: x")


def test_no_titles_is_no_title(model) -> None:
    """titles=None and a list of None are two kinds of untitled document."""
    np.testing.assert_array_equal(
        model.encode_document(["x", "y"]), model.encode_document(["x", "y"], titles=[None, ""])
    )


def test_own_prompt(model) -> None:
    """Your own words are changed, or a task's are put before or behind them."""
    assert model.prepare(["end"], prompt="see: ")[0].tolist() == ids_of(model, "see: end")
    assert model.prepare(["end"], prompt="")[0].tolist() == ids_of(model, "end")
    assert model.prepare(["end"], task=None, prompt="see: ")[0].tolist() == ids_of(model, "see: end")


@given(prompt=some.text("abc {}%|:", max_size=12), text=some.text("abc {}%|:", max_size=12))
def test_prompt_and_text_are_joined_as_they_are(model, prompt: str, text: str) -> None:
    """Braces or per cent signs are taken for a format, or white space where they meet is touched."""
    assert model.prepare([text], prompt=prompt)[0].tolist() == ids_of(model, prompt + text)
    found = model.prepare([text], titles=[prompt])[0].tolist()
    assert found == ids_of(model, f"title: {prompt or 'none'} | text: {text}")


def test_no_task_is_no_prompt(model) -> None:
    """task=None still puts something before the text."""
    assert model.prepare(["a"], task=None)[0].tolist() == [2, 6, 1]
    assert prefixes(2, None, None, None, {}) == ["", ""]


@pytest.mark.parametrize(
    "options",
    [
        {"task": "query", "titles": ["t"]},
        {"task": "STS", "titles": [None]},
        {"task": None, "titles": ["t"]},
        {"prompt": "see: ", "titles": ["t"]},
        {"prompt": "", "titles": ["t"]},
        {"prompt": 3},
        {"prompt": b"see: "},
        {"prompt": ["see: "]},
    ],
)
def test_what_excludes_each_other(model, options) -> None:
    """A title is dropped without a word, or a prompt that is no text is used."""
    with pytest.raises(refembed.RefembedError) as caught:
        model.encode(["x"], **options)
    assert caught.value.id == "option-prompt"


@pytest.mark.parametrize(
    ("titles", "index"),
    [
        ([], None),
        (["t"], None),
        (["t", "u", "v"], None),
        ("tu", None),
        (["t", 3], 1),
        ([b"t", "u"], 0),
        (["t", float("nan")], 1),
    ],
)
def test_titles_are_one_each(model, titles, index) -> None:
    """Titles slide to other texts, or something that is no text becomes a title."""
    with pytest.raises(refembed.RefembedError) as caught:
        model.encode_document(["x", "y"], titles=titles)
    assert (caught.value.id, caught.value.index) == ("titles-invalid", index)


def test_the_checkpoints_own_prompts_come_first(tmp_path) -> None:
    """A model finetuned with other prompts is used with the released ones."""
    folder = write_checkpoint(tmp_path)
    own = {"query": "find: ", "Lyrics-search": "song: ", "Classification": "kind: "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": own}))
    model = refembed.load(folder, backend="numpy")
    written = {"query": "find: ", "QUERY": "find: ", "lyrics search": "song: ", "classification": "kind: "}
    written |= {"document": "title: none | text: ", "clustering": "task: clustering | query: "}
    for task, prompt in written.items():
        assert model.prepare(["x"], task=task)[0].tolist() == ids_of(model, prompt + "x"), task
    np.testing.assert_array_equal(model.encode_query("x"), model.encode("find: x", task=None))
    np.testing.assert_array_equal(model.encode_query("x", prompt=""), model.encode("x", task=None))
