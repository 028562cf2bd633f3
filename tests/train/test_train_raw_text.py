"""Raw text: every paragraph in its turn, some never trained on, and bad lines counted."""

import gzip
from collections import Counter
from pathlib import Path

import pytest
from refembed_torch.train.raw_text import RawText, TextFile, TextSettings, TextSource

from refembed.errors import RefembedError


def write(file: Path, paragraphs: list[str], *bad: bytes) -> Path:
    with gzip.open(file, "wb") as handle:
        handle.writelines([*(f"made\t{text}\n".encode() for text in paragraphs), *bad])
    return file


def source(file: Path, **options: int) -> TextSource:
    return TextSource(TextFile(file), options.get("held_out", 10), options.get("buffer", 16), options.get("seed", 0))


def test_every_paragraph_once_a_pass(tmp_path: Path) -> None:
    """Wrong if the shuffle loses or repeats a paragraph, gives the file's own order, or the same in every pass."""
    file = write(tmp_path / "en.tsv.gz", [f"text {number}" for number in range(100)])
    found = source(file)
    assert found.trained + len(found.held_out) == 100
    passes = [[found.take() for _ in range(found.trained)] for _ in range(3)]
    assert passes[0] != passes[1] != passes[2]
    expected = {f"text {number}" for number in range(100)} - set(found.held_out)
    assert all(len(one) == len(expected) and set(one) == expected for one in passes)
    assert passes[0] != [text for text in (f"text {number}" for number in range(100)) if text in expected]


def test_held_out_texts_are_never_trained_on(tmp_path: Path) -> None:
    """Wrong if what is measured was learned by heart: by the text itself, so that its repetitions are held out too."""
    file = write(tmp_path / "en.tsv.gz", [f"text {number % 100}" for number in range(300)])
    found = source(file, held_out=60)
    assert 20 < len(found.held_out) < 110
    assert set(Counter(found.held_out).values()) == {3}
    assert set(found.held_out).isdisjoint(found.take() for _ in range(600))
    assert source(file, held_out=60, seed=5).held_out == found.held_out


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """Wrong if a run that goes on reads other texts than one that never stopped, within a pass or beyond one."""
    files = [write(tmp_path / f"{name}.tsv.gz", [f"{name} {n}" for n in range(40)]) for name in ("aa", "bb")]
    settings = TextSettings((TextFile(files[0]), TextFile(files[1], 2.0)), batch=7, held_out=5, buffer=8)
    whole = RawText(settings, 3)
    steps = [whole.take(index) for index in range(20)]
    for stop in (1, 9, 19):
        first = RawText(settings, 3)
        assert [first.take(index) for index in range(stop)] == steps[:stop]
        again = RawText(settings, 3)
        again.seek(first.positions())
        assert [again.take(index) for index in range(stop, 20)] == steps[stop:]
    assert RawText(settings, 4).take(0) != steps[0]


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    """Wrong if a run goes on in another text, at once or after a state, or reads one that became empty for ever."""
    texts = [f"text {number}" for number in range(40)]
    file = write(tmp_path / "en.tsv.gz", texts)
    settings = TextSettings((TextFile(file),), batch=7, held_out=5)
    text = RawText(settings, 3)
    text.take(0)
    positions = text.positions()
    write(file, texts[::-1])
    with pytest.raises(RefembedError, match=r"en\.tsv\.gz was changed since the state was kept") as caught:
        RawText(settings, 3).seek(positions)
    assert caught.value.id == "train-state"
    found = source(file)
    write(file, texts[:20])
    with pytest.raises(RefembedError, match=r"en\.tsv\.gz has changed: \d+ paragraphs to train on, \d+ at first"):
        [found.take() for _ in range(200)]


def test_rates_are_kept(tmp_path: Path) -> None:
    """Wrong if a language is read as often whatever its rate says; the bounds are five deviations."""
    files = [write(tmp_path / f"{name}.tsv.gz", [f"{name} {n}" for n in range(40)]) for name in ("aa", "bb", "cc")]
    rates = (1.0, 3.0, 0.0)
    settings = TextSettings(tuple(map(TextFile, files, rates)), batch=100, held_out=5)
    text = RawText(settings, 0)
    counts = Counter(one[:2] for index in range(10) for one in text.take(index))
    assert abs(counts["bb"] - 750) < 5 * (1000 * 0.75 * 0.25) ** 0.5
    assert counts["cc"] == 0
    assert all(one[:2] != "cc" for one in text.held_out())


def test_bad_lines_are_counted_and_few_are_left_out(tmp_path: Path) -> None:
    """Wrong if a damaged line stops a run, is trained on, or passes in silence."""
    good = [f"text {number}" for number in range(400)]
    file = write(tmp_path / "en.tsv.gz", good, b"made\t\xff\n", b"no tab\n", b"\n", b"made\t \n")
    with pytest.warns(UserWarning, match=r"3 of 403 lines are malformed: .*en.tsv.gz:401: .*:402: .*:404: "):
        found = source(file)
    assert found.trained + len(found.held_out) == 400


def test_too_many_bad_lines_stop_the_run(tmp_path: Path) -> None:
    """Wrong if a file that is something else altogether is trained on."""
    file = write(tmp_path / "en.tsv.gz", ["good"] * 98, b"a\tb\tc\n", b"no tab\n")
    with pytest.raises(RefembedError, match=r"2 of 100 lines are malformed: .*:99: .*; .*:100: ") as caught:
        source(file)
    assert caught.value.id == "train-data"


@pytest.mark.parametrize("content", [b"", b"made\tone\n", None, b"\x1f\x8b"])
def test_useless_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    """Wrong if a file without a text to train or measure on, a missing or a damaged one ends otherwise."""
    file = tmp_path / "en.tsv.gz"
    if content is not None:
        file.write_bytes(content if content.startswith(b"\x1f") else gzip.compress(content))
    settings = TextSettings((TextFile(file),), held_out=1)
    with pytest.raises(RefembedError) as caught:
        RawText(settings, 0).held_out()
    assert caught.value.id == "train-data"


def test_settings_that_cannot_be_are_refused() -> None:
    """Wrong if two files' positions are taken for one another's, or nothing is ever read."""
    with pytest.raises(ValueError, match="two files are called en"):
        TextSettings((TextFile(Path("a/en.tsv")), TextFile(Path("b/en.tsv.gz"))))
    with pytest.raises(ValueError, match="no file has a rate"):
        TextSettings((TextFile(Path("en.tsv"), 0.0),))
