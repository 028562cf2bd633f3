"""spec/site/figures.py: every figure is drawn, the same each time, and what its caption says is so."""

import inspect
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="figures need Matplotlib: pip install '.[docs]'")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "spec" / "site"))
import figures
import look
import measure
import model_figures as model
import training_figures as training
import vector_figures as vectors

from refembed.reference import FULL, SLIDING, losses
from refembed.reference.positions import rotary_angles, window_mask
from refembed.reference.quantize import BLOCK

ROOT = look.ROOT
DRAWN = [function for functions in figures.CHAPTERS.values() for function in functions]
MEASURED = json.loads(measure.MEASURED.read_text())
LAYERS = MEASURED["layers"]


def caption(function):
    return " ".join(inspect.getdoc(function).split("\n\n")[0].split())


def lines(axes):
    """What is drawn in an axes: (x, y) of each line."""
    return [tuple(map(np.asarray, line.get_data())) for line in axes.get_lines()]


def words(axes):
    return [text.get_text() for text in axes.texts]


def contrast(one, other):
    """WCAG's ratio of two colours."""

    def luminance(colour):
        parts = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


# ---------------------------------------------------------------------------------------------------- all of them
@pytest.mark.parametrize("function", DRAWN, ids=lambda function: function.__name__)
@pytest.mark.filterwarnings("error::UserWarning")  # of letters without a form, and of layouts that do not fit
def test_each_is_drawn_the_same_and_says_what_one_sees(function):
    """Wrong if a figure fails, its bytes differ from call to call, its words are outlines, or it has no caption."""
    first = look.svg(function())
    assert first == look.svg(function())
    assert first.count("<text") > 2
    assert "<dc:date>" not in first
    assert 80 < len(caption(function)) < 700
    assert not re.search(r"[`_*]", caption(function))  # it is read aloud
    assert len(first) < 300_000


def test_every_chapter_named_exists():
    """Wrong if figures are drawn for a chapter that is not there, or a function stands in no chapter."""
    pages = {page.stem for page in (ROOT / "spec").glob("[0-9]*.md")} | {
        page.parent.name for page in (ROOT / "spec").glob("*/README.md")
    }
    assert set(figures.CHAPTERS) <= pages
    made = {name for module in (model, vectors, training) for name in vars(module) if name.startswith("fig_")}
    assert made == {function.__name__ for function in DRAWN}
    assert len(DRAWN) == len(set(DRAWN))


@pytest.mark.parametrize("mode", look.MODES)
def test_colours_stand_out(mode):
    """Wrong if words in some colour are hard to read (WCAG AA: 4.5 to 1), or a page's colours are not in the file."""
    ground = {"light": "#ffffff", "dark": "#131416"}[mode]
    assert min(contrast(colour, ground) for colour in look.MODES[mode].values()) >= 4.5
    assert min(contrast(colour, ground) for colour in look.MODES[mode]) >= 3
    drawn = look.coloured(look.svg(model.fig_windows()), mode)
    assert look.MODES[mode][look.INK] in drawn
    assert look.INK not in drawn


def test_tables_of_a_page():
    """Wrong if a number is read from under another heading, or from another table."""
    page = "words\n\n| a | b | b |\n| --- | --- | --- |\n| 1 | 2 | 3 |\n\n| c |\n| --- |\n| 4 |\n| 5 |"
    assert list(look.tables(page)) == [[{"a": "1", "b": "2", "b#2": "3"}], [{"c": "4"}, {"c": "5"}]]


def test_labels_are_kept_apart():
    """Wrong if two labels overlap, or one moves without need."""
    assert look.apart([3.0, 0.0, 0.1], 0.5) == [3.0, 0.0, 0.5]


# ------------------------------------------------------------------------------------------------- the released model
def test_what_was_measured_is_of_the_released_model():
    """Wrong if the file was measured on another model than the golden vectors."""
    manifest = json.loads((ROOT / "golden" / "embeddinggemma-300m" / "manifest.json").read_text())
    assert MEASURED["digest"] == manifest["model"]["digest"]


def test_what_was_measured_is_what_the_model_gives(real):
    """Wrong if a number of measured.json is not the released model's."""
    found = json.loads(json.dumps(measure.measure(real)))
    assert flat(found, str) == flat(MEASURED, str)
    ours, theirs = flat(MEASURED, float), flat(found, float)
    assert len(ours) > 800
    np.testing.assert_allclose(theirs, ours, rtol=2e-3, atol=2e-4)  # float32, on whatever BLAS there is


def flat(tree, kind):
    """Every leaf of a kind, in order."""
    if isinstance(tree, dict | list):
        return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in flat(part, kind)]
    return [tree] if isinstance(tree, kind) or (kind is float and isinstance(tree, int)) else []


def test_float16_ends_where_the_caption_says():
    """Wrong if the stream passes float16's limit elsewhere than after layer 22, or the figure marks other layers."""
    largest = np.array([layer["out"]["largest"] for layer in LAYERS], np.float32)
    with np.errstate(over="ignore"):
        assert np.flatnonzero(np.isinf(largest.astype(np.float16))).tolist() == [22, 23]
    (axes,) = model.fig_norms().axes
    marked = [x for x, y in lines(axes) if len(x) == 2 and y[0] > 65504]
    assert [x.tolist() for x in marked] == [[22, 23]]
    assert "float16 ends at 65,504" in words(axes)
    assert "after layer 22" in caption(model.fig_norms)
    since = next(layer for layer in range(24) if len({one["out"]["number"] for one in LAYERS[layer:]}) == 1)
    assert f"from layer {since} on always number {LAYERS[-1]['out']['number']} of 768" in words(axes)


def test_updates_are_as_the_caption_says():
    """Wrong if attention adds more than the MLP in most layers, or takes away more in another layer than 6."""
    mlp, attention = ([layer[name]["rms"] / layer["out"]["rms"] for layer in LAYERS] for name in ("mlp", "attention"))
    assert sum(np.greater(mlp, attention)) > 12
    assert mlp[0] > 0.9
    assert np.flatnonzero(np.greater(mlp, 1)).tolist() == [6]
    assert max(attention) < 1


def test_attention_is_as_the_caption_says():
    """Wrong if layer 3 does not look near, layer 5 not at EOS, or a row does not sum to 1."""
    near, eos = (np.array(MEASURED["attention"][str(layer)]) for layer in measure.ATTENTION)
    assert [LAYERS[layer]["kind"] for layer in measure.ATTENTION] == [SLIDING, FULL]
    np.testing.assert_allclose([*near.sum(axis=1), *eos.sum(axis=1)], 1, atol=2e-3)
    place = np.arange(len(near))
    assert near[np.abs(place[:, None] - place) <= 3].sum() > len(near) / 2
    assert eos[:, -1].mean() > 1 / 3
    drawn = model.fig_attention().axes[0].collections[0].get_array()
    np.testing.assert_allclose(np.reshape(drawn, near.shape), near / near.max())


def test_factor_is_as_the_caption_says():
    """Wrong if a row with the factor is far smaller than attention's first update, or without it not a thirtieth."""
    row, embedded, attention, _ = (x[0] for x, _ in lines(model.fig_factor().axes[0]))
    assert embedded / row == pytest.approx(768**0.5)
    assert 0.7 < embedded / attention < 1
    assert 25 < attention / row < 40


def test_only_full_layers_look_further():
    """Wrong if a sliding layer spends attention beyond its reach, or a full one less than a third of it."""
    beyond = [1 - layer["within"][-1] for layer in LAYERS]
    assert measure.REACHES[-1] == 256
    assert all(
        (more == 0) if layer["kind"] == SLIDING else more > 1 / 3 for more, layer in zip(beyond, LAYERS, strict=True)
    )


def test_pooled_shares():
    """Wrong if the parts do not make up the whole, or prompt, BOS and EOS do not bring nearly half."""
    share, start = MEASURED["pooled"], MEASURED["query"].index("▁Which")
    assert sum(share) == pytest.approx(1, abs=2e-3)
    assert 0.4 < sum(share[:start]) + share[-1] < 0.5


def test_tokens_are_as_the_caption_says():
    """Wrong if a run of spaces is more than a token, a rare word one, or a missing character anything but its bytes."""
    spaces, rare, missing = MEASURED["spellings"]
    assert {"▁▁", "▁▁▁"} < set(spaces)
    assert len(rare) > 5
    assert "".join(rare[1:-1]) == "Donaudampfschifffahrt"
    assert [f"<0x{byte:02X}>" for byte in "\u00a0".encode()] == missing[2:4]
    (axes,) = model.fig_tokens().axes
    blue = [text.get_text() for text in axes.texts if text.get_color() == look.BLUE]
    assert "".join(blue).replace("▁", " ") == "task: search result | query:"


def test_matryoshka_is_as_the_caption_says():
    """Wrong if another task loses most, 8 bits cost something, or a bit a number loses more than 128 in 8 bits."""
    rows = {(int(row["numbers"]), row["kept as"]): row for row in vectors.vectors_table()}
    lost = {task: float(rows[768, "float32"][task]) - float(rows[128, "float32"][task])
            for task in ("STS-B en", "SICK-R", "Banking77", "CoSQA", "XQuAD-R")}  # fmt: skip
    assert max(lost, key=lost.get) == "CoSQA"
    assert max(lost["STS-B en"], lost["SICK-R"]) < 0.5
    loss = {key: float(row["mean loss"]) for key, row in rows.items()}
    assert max(abs(loss[n, "int8"] - loss[n, "float32"]) for n in losses.LENGTHS) <= 0.05
    assert loss[768, "binary"] < loss[128, "int8"]
    assert (int(rows[768, "binary"]["bytes"]), int(rows[128, "int8"]["bytes"])) == (96, 128)
    right = vectors.fig_matryoshka().axes[1]
    assert sorted(len(x) for x, _ in lines(right)) == [4, 4, 4]


# ------------------------------------------------------------------------------------------------------ the reference
def test_windows_are_the_masks():
    """Wrong if a cell is blue that the mask hides, or the band is not the window."""
    small, full, true = model.fig_windows().axes
    seen = np.reshape(small.collections[0].get_array(), (9, 9))
    assert ((seen == 1) == (window_mask(9, 2, np.float64) == 0)).all()
    assert ((seen == 1) == (np.abs(np.subtract.outer(range(9), range(9))) <= 2)).all()
    assert np.asarray(full.collections[0].get_array()).min() == 1
    assert "513 keys" in words(true)
    corners = true.collections[0].get_paths()[0].vertices
    assert {(257.0, 0.0), (2048.0, 2047.0), (0.0, 0.0), (1791.0, 2047.0)} <= set(map(tuple, corners))


def test_rotary_wave_lengths():
    """Wrong if a wave length is not 2 pi base^(2k/head), or another count of pairs turns within the context."""
    for base in (1e4, 1e6):
        expected = 2 * np.pi * base ** (np.arange(0, 256, 2) / 256)
        np.testing.assert_allclose(model.wave_lengths(base), expected)
        assert f"{np.sum(expected <= 2048)} pairs" in words(model.fig_rotary().axes[0])
    (_, sliding), (_, full), *_ = lines(model.fig_rotary().axes[1])
    assert (full[5:] > sliding[5:]).all()
    cos, _ = rotary_angles(2048, 256, 1e4, np.float64)
    assert sliding[-1] == pytest.approx(cos[-1].mean())


def test_gelu_difference():
    """Wrong if the two forms differ by more than the caption says, or most elsewhere."""
    x, off = lines(model.fig_gelu().axes[1])[0]
    assert 4.5 < np.abs(off).max() < 5
    assert abs(x[np.abs(off).argmax()]) == pytest.approx(2.7, abs=0.05)


def test_hardness_is_the_references():
    """Wrong if a weight is not exp(alpha sim), or half the denominator is taken elsewhere than the caption says."""
    similarity = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(training.hardness_weight(similarity, 5.0), np.exp(5 * similarity))
    for alpha, below in ((0.0, 0.0), (5.0, 0.05)):
        x, share = lines(training.fig_hardness().axes[1])[int(alpha > 0)]
        assert x[np.abs(share - 0.5).argmin()] == pytest.approx(training.ANSWER - below, abs=0.006)


def test_spread_out_spreads():
    """Wrong if the contrastive loss is not content without it, or the vectors lie no wider with it."""
    crowded, alone, spread = training.trained(0.0, 0), training.trained(0.0, 300), training.trained(1.0, 300)
    mask = np.ones((8, 8), bool)
    assert losses.contrastive(crowded, mask) > 2
    assert max(losses.contrastive(alone, mask), losses.contrastive(spread, mask)) < 0.01
    assert losses.spread_out(spread) < 0.6 * losses.spread_out(alone) < 0.4 * losses.spread_out(crowded)


def test_rounding_is_as_the_caption_says():
    """Wrong if 8 bits are not some eighteen times as near as 4, or a row's scale is as near as a block's."""
    left, right = vectors.fig_rounding().axes
    eight, four, row = (np.interp(0.5, share, error) for error, share in lines(right))
    assert four / eight == pytest.approx(127 / 7, rel=0.05)
    assert row > 1.2 * four
    levels = sorted({float(y[0]) for x, y in lines(left) if len(x) == 2 and len(set(y)) == 1})
    assert len(levels) == 15
    assert len(lines(left)[-1][0]) == BLOCK


def test_vectors_turn_as_the_caption_says():
    """Wrong if 8 bits cost more than a thousandth of what one bit costs, at some length."""
    drawn = lines(vectors.fig_quantisation().axes[0])
    eight, one = drawn[:4], drawn[4:8]
    for (_, small), (_, large) in zip(eight, one, strict=True):
        assert len(small) > 50
        assert np.median(small) < np.median(large) / 1000


def test_finite_differences_confirm_the_gradient():
    """Wrong if five points do not confirm it to eleven digits, or float32 by far more than four."""
    two, five, single = (y for _, y in lines(training.fig_steps().axes[0]))
    assert five.min() < 1e-11
    assert 1e-12 < two.min() < 1e-9
    assert np.sort(single)[3] > 1e-5  # but for a lucky few
    for off in (two, five):  # down and up again
        assert min(off[0], off[-1]) > 100 * off.min()


def test_spans_are_the_denoisers():
    """Wrong if a row does not remove what its denoiser says."""
    (axes,) = training.fig_spans().axes
    for row, denoiser in enumerate(training.DENOISERS.values()):
        removed = sum(np.ptp(path.vertices[:, 0]) for path in axes.collections[2 * row + 1].get_paths())
        assert removed == round(128 * denoiser.rate)


def test_copies_are_the_adaptations():
    """Wrong if a bar has another size than the adapted model's parameters, or cross-attention another origin."""
    found = training.copied_parameters()
    cross = {key: size for key, size in found["decoder"].items() if key[0] == "cross-attention"}
    assert cross == {("cross-attention", "attention"): found["decoder-only"]["attention", "attention"]}
    whole = 302_863_104  # the encoder's parameters, as facts of the released file
    assert found["encoder"] == found["decoder-only"]
    assert sum(found["encoder"].values()) == pytest.approx(whole, rel=1e-3)
    (axes,) = training.fig_copies().axes
    drawn = sum(bar.get_width() for bar in axes.patches)
    assert drawn == pytest.approx(sum(size for parts in found.values() for size in parts.values()) / 1e6)


def test_curves_are_the_logs():
    """Wrong if a curve is not the log's, or a stage has none."""
    stages = training.fig_curves().axes
    assert [axes.get_title("left") for axes in stages] == ["pretrain", "adapt", "prefinetune", "finetune"]
    log = [json.loads(line) for line in training.RUNS.read_text().splitlines()]
    expected = next(line["losses"] for line in log if (line["run"], line["stage"]) == ("start", "adapt"))
    np.testing.assert_array_equal(np.transpose(lines(stages[1])[0]), expected)
    for axes in stages[:3]:
        assert all(y[-1] < y[0] for _, y in lines(axes))


def test_ladder_is_the_pages():
    """Wrong if a rung has another's numbers, or they do not rise as the caption says."""
    page = training.LADDER.read_text()
    for rows, place in ((18, 2), (512, 8)):
        found = training.rungs(rows)
        assert [name for _, name, _, _ in found[:6]] == ["BLAS", "naive", "reordered", "blocked", "packed", "tile"]
        block = page[page.index("| float32, queries, keys and values") :]
        cells = next(line for line in block.splitlines() if line.startswith("| tile |")).strip("| ").split(" | ")
        assert found[5][2:] == (float(cells[place - 1]), float(cells[place]))
        floats, bytes_ = ([rate for kind, _, _, rate in part] for part in (found[1:6], found[6:]))
        assert floats == sorted(floats)
        assert bytes_[1] == min(bytes_)
        assert bytes_[-1] == max(bytes_)
    assert all(rate > 0.85 * limit for _, name, limit, rate in found if name == "tile")
