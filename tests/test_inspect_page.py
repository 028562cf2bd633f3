"""The page of `refembed inspect --html`: its numbers against the same computed another way; its use in a browser."""

import base64
import json
import re
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from support import SMALL, accessibility_faults, random_ids, write_checkpoint

import refembed
from refembed.cli import main
from refembed.inspection import build_page, reading
from refembed.reference import FULL, SLIDING, dense_head

TWIN = Path(__file__).parents[1] / "golden" / "twin" / "checkpoint"
TEXT = "the red planet is cold and dry\nbut a\tlong way away"
OTHERS = ("mars is the red planet", "venus")
HOSTILE = (
    "</script><img src=x onerror=\"document.title='harmed'\"><script>document.title='harmed'</script>{{script}} & <b>"
)
ODD = "naïve 🦄 x\u200dy שלום"
LOAD, STEP = 80, 30  # times the processor's time for as many plain words; measured 22 to 29, and at most 10 (a pair)


@pytest.fixture(scope="module")
def twin() -> refembed.Embedder:
    return refembed.load(TWIN, backend="numpy")


@pytest.fixture(scope="module")
def built_in() -> refembed.Embedder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return refembed.load(backend="numpy")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of the twin: one text, and two to compare with."""
    file = tmp_path_factory.mktemp("page") / "page.html"
    compared = [option for text in OTHERS for option in ("--with", text)]
    assert main(["inspect", TEXT, "--task", "query", *compared, "--model", str(TWIN), "--html", str(file)]) == 0
    return file


def saved(folder: Path, model: refembed.Embedder, text: str, *others: str, **options: Any) -> Path:
    file = folder / "page.html"
    file.write_text(build_page(reading.read_texts(model, text, others, **options)))
    return file


def unpack(value: Any) -> Any:
    """What the page's script makes of the JSON, by NumPy."""
    if isinstance(value, dict) and set(value) == {"type", "shape", "data"}:
        return np.frombuffer(base64.b64decode(value["data"]), value["type"]).reshape(value["shape"])
    if isinstance(value, dict):
        return {key: unpack(one) for key, one in value.items()}
    return [unpack(one) for one in value] if isinstance(value, list) else value


def numbers(file: Path) -> dict[str, Any]:
    """The data that stands in a page."""
    (data,) = re.findall(r'<script type="application/json" id="reading">(.*?)</script>', file.read_text(), re.S)
    return unpack(json.loads(data))


def open_page(page: Any, file: Path) -> None:
    page.goto(file.as_uri())
    last = page.evaluate("main.ids.length") - 1
    page.locator(f"#tokens-{last}").wait_for(state="attached")


def shown_percents(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([-\d.]+) %", plain(text))]


def plain(text: str) -> str:
    """A text with hyphens for minus signs."""
    return text.replace("\N{MINUS SIGN}", "-")


# ---------------------------------------------------------------------------------------------------------- the numbers
def test_shares_are_what_the_vector_lacks_without_a_token(file, twin) -> None:
    """Wrong if a share is not what the vector's length loses when the token's state is taken out of the mean; or if
    shares of any length or of int8 do not sum to 1.
    """
    data = numbers(file)
    text = data["texts"][0]
    ids = np.array(text["ids"])
    trace = twin.encoder.trace(ids)
    states = trace["final_norm"].astype(np.float64)
    for form, shares in zip(data["forms"], text["shares"], strict=True):
        length = form["length"]
        vector = twin.encode(TEXT, task="query", dimensions=length, quantize=form["quantize"]).astype(np.float64)
        whole = dense_head(states.mean(axis=0), twin.encoder.parameters)[:length] @ vector
        for place, share in enumerate(shares):
            without = np.delete(states, place, axis=0).sum(axis=0) / len(ids)
            left = dense_head(without, twin.encoder.parameters)[:length] @ vector
            assert share == pytest.approx(1 - left / whole, abs=1e-6)
        assert shares.sum() == pytest.approx(1, abs=1e-6)
    assert {form["length"] for form in data["forms"]} == {
        twin.config.dimensions,
        twin.config.dimensions // 2,
        twin.config.dimensions // 4,
    }


def test_lengths_of_the_released_model() -> None:
    """Wrong if EmbeddingGemma's vectors are shown at lengths it was not trained for."""
    assert [form.length for form in reading.forms_of(768) if form.quantize is None] == [768, 512, 256, 128]
    assert [form.length for form in reading.forms_of(384) if form.quantize is None] == [384, 192, 96]


def test_similarities_are_the_models(file, twin) -> None:
    """Wrong if a cosine is not what encode and similarity give at that length, in floats or int8; or if a text beside a
    query is not embedded as a document.
    """
    data = numbers(file)
    for other, cosines in zip(OTHERS, data["similarities"], strict=True):
        for form, cosine in zip(data["forms"], cosines, strict=True):
            kept = {"dimensions": form["length"], "quantize": form["quantize"]}
            vectors = twin.encode_query(TEXT, **kept), twin.encode_document(other, **kept)
            assert cosine == pytest.approx(float(twin.similarity(*vectors)[0, 0]), abs=1e-6)


def test_texts_share_the_prompt_of_other_tasks(twin) -> None:
    """Wrong if two texts of one task are compared under different prompts."""
    data = reading.read_texts(twin, "a", ["b"], task="clustering")
    alone = twin.similarity(twin.encode("a", task="clustering"), twin.encode("b", task="clustering"))
    assert data["similarities"][0][0] == pytest.approx(float(alone[0, 0]), abs=1e-6)


def softmax_rows(trace: dict[str, Any], config: Any, layer: int) -> Any:
    """Attention from turned queries and keys, written out anew."""
    query, key = (trace[f"layer.{layer:02d}.attention.{one}_rotated"].astype(np.float64) for one in ("query", "key"))
    scores = np.einsum("htd,sd->hts", query, key[0]) / np.sqrt(config.query_scalar)
    place = np.arange(scores.shape[1])
    if config.layer_kinds[layer] == SLIDING:
        scores[:, abs(place[:, None] - place) > config.reach] = -np.inf
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("keys", [5, 10**6])
def test_attention_is_the_softmax(twin, monkeypatch, keys: int) -> None:
    """Wrong if a stored weight is not that of the softmax over the keys in the window, a larger one was left out, or
    what is stored and the stated rest do not sum to 1.
    """
    (ids,) = twin.prepare([TEXT], task="query")
    layers = len(twin.config.layer_kinds)
    monkeypatch.setattr(reading, "KEY_BYTES", 4 * twin.config.heads * layers * len(ids) * keys)
    data = reading.read_texts(twin, TEXT, task="query")
    trace = twin.encoder.trace(ids)
    step = 1 / reading.WEIGHT_STEPS
    assert data["keys"] == min(keys, len(ids))
    for layer, attention in enumerate(data["attention"]):
        for head, truth in zip(attention, softmax_rows(trace, twin.config, layer), strict=True):
            kept = head["weights"] * step
            found = np.take_along_axis(truth, head["places"].astype(int), axis=-1)
            np.testing.assert_allclose(kept, found, atol=step)
            np.testing.assert_allclose(kept, -np.sort(-truth, axis=-1)[:, : data["keys"]], atol=step)
            np.testing.assert_allclose(kept.sum(axis=-1) + head["rest"] * step, 1, atol=(data["keys"] + 1) * step)


def test_pictures_average_blocks() -> None:
    """Wrong if a picture's cell is not the average, over its rows, of what they read in its columns."""
    weights = np.random.default_rng(0).dirichlet(np.ones(250), 250)
    drawn = reading.strongest(weights, 3).map
    step = -(-250 // reading.MAP_SIDE)
    rows = range(0, 250, step)
    truth = [[weights[i : i + step, j : j + step].sum(axis=1).mean() for j in rows] for i in rows]
    np.testing.assert_allclose((drawn / 255) ** 2, truth, atol=0.004)


@pytest.mark.parametrize("cells", [2**19, 40])
def test_pairs_sum_to_the_cosine(twin, monkeypatch, cells: int) -> None:
    """Wrong if what pairs of tokens add does not sum to the cosine, by cells, by this text's tokens or by the other's,
    or if more cells are kept than there is room for.
    """
    monkeypatch.setattr(reading, "PAIR_CELLS", cells)
    data = reading.read_texts(twin, TEXT, OTHERS[:1])
    ((cosine, *_),), (compared,) = data["similarities"], data["comparisons"]
    assert compared["cells"].size <= cells
    assert (compared["step"] > 1) == (cells == 40)
    allowed = compared["cells"].size * compared["scale"]
    assert compared["cells"].sum(dtype=np.int64) * compared["scale"] == pytest.approx(cosine, abs=allowed)
    for sums, text in (("rows", 0), ("columns", 1)):
        assert compared[sums].shape == (len(data["texts"][text]["ids"]),)
        assert compared[sums].sum() == pytest.approx(cosine, abs=1e-5)


def test_norms_are_the_traces(file, twin) -> None:
    """Wrong if the size of the residual stream, of an update or of a token is not that of the traced tensor."""
    data = numbers(file)
    trace = twin.encoder.trace(np.array(data["texts"][0]["ids"]))
    layers = range(len(twin.config.layer_kinds))
    stream = [trace["embedded"], *(trace[f"layer.{layer:02d}.out"] for layer in layers)]
    norms = data["norms"]
    assert norms["residual"] == pytest.approx([np.sqrt((x.astype(float) ** 2).mean()) for x in stream], rel=1e-6)
    assert norms["largest"] == pytest.approx([max(x.max(), -x.min()) for x in stream], rel=1e-6)
    for place, x in enumerate(stream):
        np.testing.assert_allclose(norms["tokens"][place], np.linalg.norm(x, axis=1) / x.shape[1] ** 0.5, rtol=1e-5)
    for part in ("attention", "mlp"):
        updates = [trace[f"layer.{layer:02d}.{part}.update"].astype(float) for layer in layers]
        assert norms[part] == pytest.approx([np.sqrt((x**2).mean()) for x in updates], rel=1e-6)


def test_tokens_are_told_apart(file, twin) -> None:
    """Wrong if the prompt's tokens, the text's and the special ones are taken for each other."""
    text = numbers(file)["texts"][0]
    (ids,) = twin.tokenizer(["task: search result | query: " + TEXT])
    assert text["ids"] == ids.tolist()
    assert text["special"] == [0, len(ids) - 1]
    assert "".join(one if isinstance(one, str) else "" for one in text["spelled"][1 : text["opening"]]).startswith(
        "task: search"
    )
    before = "".join(one[1] if isinstance(one, list) and one[2] == 1 else one if isinstance(one, str) else ""
                     for one in text["spelled"][text["opening"] : -1])  # fmt: skip
    assert before.lstrip() == TEXT


@pytest.mark.parametrize(
    ("pieces", "spells"),
    [
        (["▁a", "b"], [" a", "b"]),
        (["<0xC3>", "<0xA9>", "x"], [["C3", "é", 1, 2], ["A9", "é", 2, 2], "x"]),
        (["<0xC3>", "x", "<0xA9>"], [["C3", None, 1, 1], "x", ["A9", None, 1, 1]]),
        (["<0xF0>", "<0x9F>", "<0xA6>"], [["F0", None, 1, 1], ["9F", None, 1, 1], ["A6", None, 1, 1]]),
        (["<0x0A>", "<0xF0>", "<0x9F>", "<0xA6>", "<0x84>"], [["0A", "\n", 1, 1], *(
            [byte, "🦄", place, 4] for place, byte in enumerate(("F0", "9F", "A6", "84"), 1))]),
    ],
    ids=["words", "two-bytes", "lone-bytes", "cut-short", "four-bytes"],
)  # fmt: skip
def test_bytes_are_joined_to_characters(pieces: list[str], spells: list[Any]) -> None:
    """Wrong if a character that is spelled in bytes is not found again, or bytes that make none take part in one."""
    assert reading.spelled(pieces) == spells


def test_layers_do_not_pile_up(tmp_path) -> None:
    """Wrong if the scores of several layers are in memory at once."""
    config = replace(SMALL, context=512, layer_kinds=(SLIDING, FULL) * 12)
    model = refembed.load(write_checkpoint(tmp_path, config), backend="numpy")
    scores = 4 * config.heads * 512**2
    ids = random_ids(config, 512)
    tracemalloc.start()
    try:
        read = reading.read_text(model, "", ids, "", keys=16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(read.kept.attention) == 24
    assert peak < 12 * scores, f"{peak / scores:.1f} layers' scores"


# ---------------------------------------------------------------------------------------------------------- the command
def test_command_writes_a_page_and_says_so(tmp_path, capsys) -> None:
    """Wrong if the page is not there, or its size and number of tokens are not said."""
    file = tmp_path / "page.html"
    assert main(["inspect", "a", "--title", "T", "--model", str(TWIN), "--html", str(file)]) == 0
    assert re.search(r"page\.html: \d+ tokens, 0\.\d MB", capsys.readouterr().out)
    assert numbers(file)["texts"][0]["prompt"] == "title: T | text: "
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["", "--html", "page.html"], "the text is empty: give one"),
        (["a", "--html", "page.html", "--with", ""], "refembed: text 1 to compare with is empty: give one"),
        (
            ["a", "--html", "page.html", "--with", "b", "--with", ""],
            "refembed: text 2 to compare with is empty: give one",
        ),
        (["a", "--html", "page.html", "--with", "b", "--with", "\ud800"], "refembed: text 2 to compare with: "),
        (["a", "--html", "nowhere/page.html"], "nowhere/page.html: No such file or directory"),
        (["a", "--with", "b"], "name its file with --html FILE"),
        (["a", "--html", "page.html", "--backend", "loopback"], "name --backend numpy, or none"),
        (["a", "--html", "page.html", "--title", "T", "--task", "query"], "titles go with the document prompt"),
    ],
    ids=[
        "empty",
        "empty-other",
        "empty-second",
        "no-text-second",
        "no-folder",
        "no-file",
        "backend",
        "title-of-a-query",
    ],
)
def test_command_refuses(tmp_path, monkeypatch, capsys, argv: list[str], said: str) -> None:
    """Wrong if a page that cannot be made is begun, or its fault is not said with what to do."""
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *argv, "--model", str(TWIN)]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_stages_take_a_title(capsys, twin) -> None:
    """Wrong if the stages on the screen are those of a text without its title."""
    assert main(["inspect", "a", "--title", "the red planet", "--model", str(TWIN)]) == 0
    (ids,) = twin.prepare(["a"], titles=["the red planet"])
    assert f"\n{len(ids)} tokens\n" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- the browser
def test_page_needs_nothing_else(file) -> None:
    """Wrong if the page names another file or address, or lets any script run but its own."""
    html = re.sub(r'<script type="application/json".*?</script>', "", file.read_text(), flags=re.S)
    assert not re.findall(r"(?:src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html)
    assert re.search(r"default-src 'none'; style-src 'sha256-[^']+'; script-src 'sha256-[^']+'", html)


def test_a_click_on_a_token_shows_it_everywhere(page, file) -> None:
    """Wrong if a click chooses another token, or a part of the page goes on about the one before."""
    data = numbers(file)
    open_page(page, file)
    place = len(data["texts"][0]["ids"]) - 4
    page.click(f"#tokens-{place}")
    assert page.get_attribute("#tokens [aria-selected=true]", "data-place") == str(place)
    assert page.get_attribute("#tokens", "aria-activedescendant") == f"tokens-{place}"
    said = page.text_content("#chosen")
    assert said.startswith(f"Token {place}: ")
    assert shown_percents(said)[0] == pytest.approx(100 * data["texts"][0]["shares"][0][place], abs=0.006)
    assert page.text_content("#reads-heading").startswith(f"Token {place}, ")
    assert f"token {place}" in page.text_content("#chart-legend")


def test_keys_move_the_choice(page, file) -> None:
    """Wrong if arrow keys, Home and End do not choose tokens, or leave the text at its ends."""
    open_page(page, file)
    last = len(numbers(file)["texts"][0]["ids"]) - 1
    page.focus("#tokens")
    keys = {"Home": 0, "ArrowLeft": 0, "ArrowRight": 1, "ArrowDown": 11, "ArrowUp": 1, "End": last, "PageDown": last}
    for key, place in [*keys.items(), ("Escape", last)]:
        page.keyboard.press(key)
        assert page.get_attribute("#tokens [aria-selected=true]", "data-place") == str(place), key


def test_layers_and_heads_by_mouse_and_keyboard(page, file, twin) -> None:
    """Wrong if the list is not the softmax of the chosen layer and head, its sums are not whole, or the window that is
    told is not the layer's.
    """
    data = numbers(file)
    trace = twin.encoder.trace(np.array(data["texts"][0]["ids"]))
    open_page(page, file)
    token = data["texts"][0]["opening"] + 2
    page.click(f"#tokens-{token}")
    page.check("#layers input >> nth=0", force=True)
    for layer, kind in enumerate(twin.config.layer_kinds[:3]):
        if layer:
            page.focus("#layers input:checked")
            page.keyboard.press("ArrowRight")
        for head in range(twin.config.heads):
            page.check(f"#heads input >> nth={head}", force=True)
            truth = softmax_rows(trace, twin.config, layer)[head, token]
            shown = shown_percents(" ".join(page.locator("#reads .number").all_text_contents()))
            np.testing.assert_allclose(shown, 100 * -np.sort(-truth)[: len(shown)], atol=0.011)
            words = page.locator("#reads .word").all_text_contents()
            assert [int(word.split()[0]) for word in words] == np.argsort(-truth)[: len(words)].tolist()
            *parts, together = shown_percents(page.text_content("#reads-sum"))
            assert sum(parts) == pytest.approx(100, abs=0.05)
            assert together == pytest.approx(100, abs=0.01)
        seen = int((truth > 0).sum())
        told = page.text_content("#window")
        assert (f"{seen} of {len(truth)}" in told) if kind == SLIDING else (f"all {len(truth)}" in told)


def test_attention_colours_the_window(page, file, twin) -> None:
    """Wrong if tokens beyond a sliding layer's window look as if they could be read, or a full layer has such."""
    open_page(page, file)
    page.click("#tokens-5")
    page.check("#paint input[value=attention]")
    tokens, reach = len(numbers(file)["texts"][0]["ids"]), twin.config.reach
    assert page.locator("#tokens .unseen").count() == max(0, tokens - 6 - reach)
    page.check("#layers .full input >> nth=0", force=True)
    assert page.locator("#tokens .unseen").count() == 0


def test_a_click_on_the_picture_chooses_its_row(page, file) -> None:
    """Wrong if the picture of a head cannot be clicked, or another row than the one under the pointer is taken."""
    open_page(page, file)
    box = page.locator("#map").bounding_box()
    tokens = len(numbers(file)["texts"][0]["ids"])
    page.locator("#map").click(position={"x": 20, "y": box["height"] * 7.5 / tokens})
    assert page.get_attribute("#tokens [aria-selected=true]", "data-place") == "7"


def test_forms_change_the_shares(page, file) -> None:
    """Wrong if the shares of a shorter or an int8 vector are not shown, or do not sum to 100 %."""
    data = numbers(file)
    open_page(page, file)
    for form in range(len(data["forms"])):
        page.select_option("#form", str(form))
        shown = page.locator("#largest-shares .number").all_text_contents()
        shares = data["texts"][0]["shares"][form]
        truth = shares[np.argsort(-abs(shares), kind="stable")][: len(shown)]
        np.testing.assert_allclose(shown_percents(" ".join(shown)), 100 * truth, atol=0.006)
        assert shown_percents(page.text_content("#share-sums"))[-1] == pytest.approx(100, abs=0.01)


def test_a_token_that_takes_away_is_told_from_one_that_adds(page, tmp_path, small_folder) -> None:
    """Wrong if a share below zero loses its sign, its bar or its colour, or shares no longer sum to 100 %."""
    file = saved(tmp_path, refembed.load(small_folder, backend="numpy"), "then a cat in the hat", task=None)
    shares = numbers(file)["texts"][0]["shares"][0]
    below = set(np.flatnonzero(shares < 0).tolist())
    assert 0 < len(below) < len(shares)
    open_page(page, file)
    taken = [int(one.get_attribute("data-place")) for one in page.locator("#tokens [role=option].less").all()]
    assert set(taken) == below
    shown = page.locator("#largest-shares li").all()
    for one, place in zip(shown, np.argsort(-abs(shares), kind="stable"), strict=False):
        assert shown_percents(one.locator(".number").text_content()) == pytest.approx([100 * shares[place]], abs=0.006)
        assert ("less" in (one.get_attribute("class") or "").split()) == (place in below)
    page.click(f"#tokens-{taken[0]}")
    assert shown_percents(page.text_content("#chosen"))[0] == pytest.approx(100 * shares[taken[0]], abs=0.006)
    assert shown_percents(page.text_content("#share-sums"))[-1] == pytest.approx(100, abs=0.01)


def test_parts_lie_beside_and_below_each_other(page, file) -> None:
    """Wrong if a part of the page lies over another as one scrolls, or a column is left blank beside a long one."""
    page.set_viewport_size({"width": 1280, "height": 700})
    open_page(page, file)
    names = ("text", "contribution", "attention", "norms", "similarity")
    for down in (0, 400, 800):
        page.evaluate(f"window.scrollTo(0, {down})")
        top = {name: page.locator(f"#{name}").bounding_box()["y"] for name in names}
        end = {name: top[name] + page.locator(f"#{name}").bounding_box()["height"] for name in names}
        assert end["text"] <= top["contribution"]
        assert end["attention"] <= top["norms"]
        assert max(end["contribution"], end["norms"]) <= top["similarity"]
        assert abs(end["contribution"] - end["norms"]) < 300


def test_two_texts_are_compared(page, file) -> None:
    """Wrong if a chosen pair is told with another number than the data's, choices cannot be undone, or the other text
    cannot be changed.
    """
    data = numbers(file)
    open_page(page, file)
    for index in (1, 0):
        page.select_option("#other", str(index))
        compared, cosine = data["comparisons"][index], data["similarities"][index][0]
        assert f"{cosine:.4f}" in plain(page.text_content("#pair"))
        page.click("#left-9")
        alone = page.text_content("#pair")
        assert f"adds {compared['rows'][9]:.5f}" in plain(alone)
        page.focus("#right")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        cell = compared["cells"][9, 1] * compared["scale"]
        assert f"adds {cell:.5f}" in plain(page.text_content("#pair"))
        page.keyboard.press("Escape")
        assert page.text_content("#pair") == alone
        page.click("#clear")
        assert page.locator("#left [aria-selected=true]").count() == 0
    cosines = page.locator("#cosines td").all_text_contents()
    truth = np.array(data["similarities"]).T.ravel()
    np.testing.assert_allclose([float(plain(one)) for one in cosines], truth, atol=6e-5)


def test_tables_stand_for_the_pictures(page, file) -> None:
    """Wrong if what is drawn cannot be had as a table, or a table shows other numbers than the data."""
    data = numbers(file)
    open_page(page, file)
    for name in ("share", "reads", "norm", "pair"):
        page.click(f"#{name}-table summary")
        page.locator(f"#{name}-table tbody tr").first.wait_for()  # drawn when it opens
    rows = page.locator("#norm-table tbody tr")
    assert rows.count() == len(data["norms"]["residual"])
    for row, size in enumerate(data["norms"]["residual"]):
        assert float(rows.nth(row).locator("td").nth(2).text_content()) == pytest.approx(size, rel=1e-4)
    strongest = abs(data["comparisons"][0]["cells"]).max() * data["comparisons"][0]["scale"]
    first = page.locator("#pair-table tbody tr").first.locator("td").last.text_content()
    assert abs(float(plain(first))) == pytest.approx(strongest, abs=6e-6)


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "dark"),
        pytest.param(390, "light", marks=pytest.mark.long),
        pytest.param(390, "dark", marks=pytest.mark.long),
        pytest.param(1280, "light", marks=pytest.mark.long),
    ],
)
def test_page_is_for_everybody(page, file, scheme: str, width: int) -> None:
    """Wrong if axe finds a fault in light or dark, on a phone or a desktop, or the page is wider than the screen."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    open_page(page, file)
    page.check("#paint input[value=attention]")
    page.click("#left-9")
    for name in ("share", "reads", "norm", "pair"):
        page.click(f"#{name}-table summary")
    assert accessibility_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_text_does_nothing(page, tmp_path, twin) -> None:
    """Wrong if markup in a text, in a prompt or in a text to compare with becomes part of the page."""
    file = saved(tmp_path, twin, HOSTILE[:60], HOSTILE[60:], prompt="<img src=y onerror=alert(1)>")
    open_page(page, file)
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert "harmed" not in page.title().split(" · ")[1]
    assert page.evaluate("document.title") != "harmed"
    data = numbers(file)
    assert data["texts"][0]["text"] == HOSTILE[:60]
    assert data["texts"][1]["text"] == HOSTILE[60:]


# What is seen within a place, line by line, from left to right.
AS_DRAWN = """(place) => {
  const texts = document.createTreeWalker(document.querySelector(place), NodeFilter.SHOW_TEXT);
  const range = document.createRange(), seen = [];
  for (let text; (text = texts.nextNode());)
    for (let at = 0; at < text.length; at += String.fromCodePoint(text.data.codePointAt(at)).length) {
      range.setStart(text, at);
      range.setEnd(text, at + 1);
      const { left, top, width } = range.getBoundingClientRect();
      if (width) seen.push([Math.round(top), left, String.fromCodePoint(text.data.codePointAt(at))]);
    }
  return seen.sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([, , character]) => character).join("");
}"""


def test_odd_characters_are_shown(page, tmp_path, twin) -> None:
    """Wrong if an emoji of bytes, a line end, a tab, a joiner or Hebrew is not shown as what it is, where it is."""
    file = saved(tmp_path, twin, f"{ODD}\n\tend", "שלום")
    open_page(page, file)
    said = [one.get_attribute("aria-label") for one in page.locator("#tokens [role=option]").all()]
    assert any("1 of 4 of “🦄”" in label for label in said)
    assert any("4 of 4 of “🦄”" in label for label in said)
    assert any("U+200D" in label for label in said)
    assert any("↵" in label for label in said)
    assert any("⇥" in label for label in said)
    assert page.locator("#tokens br").count() == 1
    assert page.text_content("#given") == f"“{ODD}\n\tend”"  # as it was typed, whatever the tokenizer makes of it
    for place, drawn in (("#tokens", "🦄 0xF0"), ("#tokens", "ש 0xD7"), ("#right", "ש 0xD7")):  # in text of either way
        assert drawn in page.evaluate(AS_DRAWN, place)
    assert page.get_attribute("#right [role=group]:last-child", "dir") == "rtl"
    assert page.get_attribute("#tokens [role=group]:last-child", "dir") == "ltr"


def test_one_text_alone(page, tmp_path, twin) -> None:
    """Wrong if a page without other texts shows an empty comparison, or breaks."""
    open_page(page, saved(tmp_path, twin, "a", task=None))
    assert not page.is_visible("#comparison")
    assert page.is_visible("#similarity-note")
    assert accessibility_faults(page) == []


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 2,048 tokens, and as many to compare with."""
    folder = tmp_path_factory.mktemp("long")
    config = replace(SMALL, context=2048, reach=256, layer_kinds=(SLIDING, FULL))
    model = refembed.load(write_checkpoint(folder / "model", config), backend="numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved(folder, model, "then a cat in the hat " * 200, "in the end it was all the same " * 200)


PLAIN_WORDS = """() => {
    for (let place = 0; place < 2048; place++) {
        const word = document.createElement("span");
        word.textContent = `word ${place} `;
        document.body.append(word);
    }
}"""


def test_2048_tokens_do_not_freeze_the_page(page, long_file) -> None:
    """Wrong if 2,048 tokens make the file large, or the page long to open or slow to answer a click, in time of the
    processor, layout and paint included, beside 2,048 plain words on an empty page; or if what is left out is not said.
    """
    assert long_file.stat().st_size < 15e6
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        frame = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
        page.evaluate(frame)
        found = client.send("Performance.getMetrics")["metrics"]
        return next(one["value"] for one in found if one["name"] == "TaskDuration")

    units = []
    for _ in range(3):
        before = spent()
        page.evaluate(PLAIN_WORDS)
        units.append(spent() - before)
    unit = median(units)
    before = spent()
    open_page(page, long_file)
    assert unit < spent() - before < LOAD * unit
    steps = {
        "a token": "document.getElementById('tokens-1500').click()",
        "a layer": "document.querySelectorAll('#layers input')[1].click()",
        "attention": "document.querySelector('#paint input[value=attention]').click()",
        "a pair": "document.getElementById('left-1000').click(); document.getElementById('right-20').click()",
    }
    for name, step in steps.items():
        before = spent()
        page.evaluate(step)
        took = spent() - before
        assert 0.01 * unit < took < STEP * unit, f"{name}: {took:.3f} s, {unit:.3f} s for plain words"
    assert page.text_content("#chosen").startswith("Token 1500:")
    said = page.text_content("#limits-list")
    assert f"the {numbers(long_file)['keys']} largest weights of 2048" in said
    assert "pairs are summed in blocks of" in said
    *parts, together = shown_percents(page.text_content("#reads-sum"))
    assert sum(parts) == pytest.approx(100, abs=0.1)
    assert together == pytest.approx(100, abs=0.1)


def test_real_weights(page, tmp_path, real) -> None:
    """Wrong if the page's similarities for the released model are not the model card's."""
    query = "Which planet is known as the Red Planet?"
    mars = "Mars, known for its reddish appearance, is often referred to as the Red Planet."
    file = saved(tmp_path, real, query, mars, task="query")
    open_page(page, file)
    assert page.locator("#cosines td").first.text_content() == "0.6361"
    assert page.locator("#layers .full").count() == 4
