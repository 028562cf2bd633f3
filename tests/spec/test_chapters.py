"""The specification does not lie: examples run, cited ids exist, links lead somewhere, the tensor table is true."""

import doctest
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from docstring_lint import expand
from support import SMALL, config_json, random_ids, random_parameters

from refembed.reference import collector, embed

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "spec"
PAGES = sorted(SPEC.glob("*.md"))
CHAPTERS = sorted(SPEC.glob("[0-9]*.md"))
CODE = sorted(file for folder in ("refembed", "backends") for file in (ROOT / folder).rglob("*.py"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
DEFINITION = re.compile(r"^### ([A-Z]{3,4}-\d+)$", re.MULTILINE)
SOURCE = re.compile(r"Source:(.*?)(?:\n\s*\n|Trap:|Witness:|\"\"\")", re.DOTALL)


def fences(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    return FENCE.findall(text)


def prose(text: str) -> str:
    return FENCE.sub("", text)


def run_examples(name: str, text: str) -> tuple[int, str]:
    """Run a page's python blocks one after another in one namespace: how many statements ran, and what went wrong."""
    names: dict[str, object] = {}
    runner, report = doctest.DocTestRunner(verbose=False), []
    for number, (language, block) in enumerate(fences(text), 1):
        if language == "python":
            test = doctest.DocTestParser().get_doctest(block, names, f"{name} block {number}", name, 0)
            if not test.examples:
                report.append(f"{name} block {number} holds no >>> example\n")
            runner.run(test, out=report.append, clear_globs=False)
            names.update(test.globs)
    return runner.summarize(verbose=False).attempted, "".join(report)


def definitions(pages: dict[str, str]) -> dict[str, list[str]]:
    """Requirement id -> the pages that define it."""
    found: dict[str, list[str]] = {}
    for name, text in pages.items():
        for id in DEFINITION.findall(prose(text)):
            found.setdefault(id, []).append(name)
    return found


def citations(text: str, prefixes: Iterable[str]) -> set[str]:
    """The ids a file cites: anything like an id after "Source:", and any id of a known prefix anywhere."""
    known = set(prefixes)
    after_source = {id for part in SOURCE.findall(text) for id in expand(part)}
    return after_source | {id for id in expand(text) if id.partition("-")[0] in known}


def undefined(files: dict[str, str], defined: Iterable[str]) -> list[str]:
    """file: id, for each id cited and not defined."""
    defined = set(defined)
    prefixes = {id.partition("-")[0] for id in defined}
    return [f"{name}: {id}" for name, text in files.items() for id in sorted(citations(text, prefixes) - defined)]


def anchors(text: str) -> set[str]:
    """GitHub's address of each heading."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(prose(text))}


def places(text: str) -> set[str]:
    """What may follow the # of an address: a heading's, or a line's."""
    return anchors(text) | {f"L{number}" for number in range(1, text.count("\n") + 1)}


def broken_links(page: Path) -> list[str]:
    """Relative links whose file, or heading in it, is not there."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        found = file.exists() and (not anchor or anchor in places(file.read_text()))
        if not found and not target.startswith("http"):
            broken.append(f"{page.name}: {target}")
    return broken


def texts(files: Iterable[Path]) -> dict[str, str]:
    return {str(file.relative_to(ROOT)): file.read_text() for file in files}


def tensor_rows(text: str) -> list[list[str]]:
    """The table of tensors.md: name, shape, and the names in three other programs."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return [[row[0].strip("`"), *row[1:]] for row in rows]


def expected_shapes(rows: list[list[str]], layers: int, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """What the table says a model emits, in order: its layer rows once a layer."""
    shape = {name: tuple(sizes[word] for word in re.findall(r"\w+", cell)) for name, cell, *_ in rows}
    names = [row[0] for row in rows]
    within = [index for index, name in enumerate(names) if "NN" in name]
    before, after = names[: within[0]], names[within[-1] + 1 :]
    middle = names[within[0] : within[-1] + 1]
    listed = [(name, name) for name in before]
    listed += [(name.replace("NN", f"{layer:02d}"), name) for layer in range(layers) for name in middle]
    listed += [(name, name) for name in after]
    return {emitted: shape[row] for emitted, row in listed}


def emitted(tokens: int = 11, dtype: type = np.float64) -> dict[str, np.ndarray]:
    kept: dict[str, np.ndarray] = {}
    embed(random_ids(SMALL, tokens), random_parameters(SMALL, dtype=dtype), SMALL, collector(kept))
    return kept


# the pages themselves


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_give_the_output_printed_beside_them(page):
    ran, report = run_examples(page.name, page.read_text())
    assert not report, report
    assert ran or page not in CHAPTERS, f"{page.name} has no example that runs"


def test_every_chapter_defines_ids_and_no_id_is_defined_twice():
    found = definitions(texts(CHAPTERS))
    assert {id: pages for id, pages in found.items() if len(pages) > 1} == {}
    assert {page for pages in found.values() for page in pages} == set(texts(CHAPTERS)), "a chapter without ids"


def test_ids_are_defined_nowhere_but_in_chapters():
    assert definitions(texts(set(PAGES) - set(CHAPTERS))) == {}


def test_every_id_that_code_cites_is_defined():
    code = texts(CODE)
    assert sum("Source:" in text for text in code.values()) > 5, "the code was not found"
    assert undefined(code, definitions(texts(CHAPTERS))) == []


def test_every_id_that_a_page_cites_is_defined():
    assert undefined(texts(PAGES), definitions(texts(CHAPTERS))) == []


def test_the_core_of_each_chapter_is_cited_by_code():
    """A chapter whose ids no docstring cites has drifted away from the code beside it."""
    cited = {id for text in texts((ROOT / "refembed" / "reference").rglob("*.py")).values() for id in expand(text)}
    beside_reference = [chapter for chapter in CHAPTERS if "reference/" in chapter.read_text()]
    assert len(beside_reference) >= 8
    assert [page.name for page in beside_reference if not cited & set(DEFINITION.findall(page.read_text()))] == []


def test_the_overview_lists_every_chapter_with_its_ids():
    overview = (SPEC / "README.md").read_text()
    for chapter in CHAPTERS:
        row = next((line for line in overview.splitlines() if line.startswith(f"| [{chapter.name}]")), "")
        prefixes = {id.partition("-")[0] for id in DEFINITION.findall(chapter.read_text())}
        cells = row.split("|")
        assert len(cells) > 3, f"{chapter.name} is not in the reading order"
        assert set(cells[2].strip().split(", ")) >= prefixes, (
            f"{chapter.name} defines {prefixes}, the overview: {cells[2]}"
        )
        for file in re.findall(r"`([^`]+)`", cells[3]):
            assert (ROOT / file).exists(), f"{chapter.name} stands beside {file}, which is not there"


def test_links_lead_somewhere():
    assert [link for page in PAGES for link in broken_links(page)] == []


# the table of tensors


def test_the_tensor_table_is_what_the_reference_emits():
    kept = emitted(tokens=11)
    sizes = {**vars(SMALL), "tokens": 11}
    rows = tensor_rows((SPEC / "tensors.md").read_text())
    expected = expected_shapes(rows, len(SMALL.layer_kinds), sizes)
    assert list(expected) == list(kept), "names or their order differ"
    assert expected == {name: tensor.shape for name, tensor in kept.items()}


def test_the_transformers_column_names_the_same_numbers():
    """Each module of the table, hooked in transformers with the same parameters, holds the reference's tensor."""
    import torch
    from transformers import Gemma3TextConfig, Gemma3TextModel

    settings = config_json(SMALL) | {"attn_implementation": "eager", "query_pre_attn_scalar": int(SMALL.query_scalar)}
    model = Gemma3TextModel(Gemma3TextConfig(**settings)).eval()
    parameters = random_parameters(SMALL, dtype=np.float32)
    weights = {name: torch.from_numpy(array) for name, array in parameters.items() if "Dense" not in name}
    model.load_state_dict(weights, strict=True)
    seen: dict[str, np.ndarray] = {}

    def keep(key: str, value: torch.Tensor) -> None:
        seen[key] = value.detach().numpy()[0]

    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _, given, name=name: given and keep(f"{name} input", given[0]))

        def after(_, given, result, name=name):
            parts = result if isinstance(result, tuple) else (result,)
            for index, part in enumerate(parts):
                if isinstance(part, torch.Tensor):
                    keep(f"{name} output {index}" if index else f"{name} output", part)

        module.register_forward_hook(after)
    kept = emitted(tokens=11, dtype=np.float32)
    with torch.no_grad():
        model(input_ids=torch.from_numpy(random_ids(SMALL, 11))[None])
    compared = 0
    for row in tensor_rows((SPEC / "tensors.md").read_text()):
        name, cell = row[0], row[2].replace("`", "")
        for layer in range(len(SMALL.layer_kinds) if "NN" in name else 1):
            if cell == "—":
                continue
            ours = kept[name.replace("NN", f"{layer:02d}")]
            theirs = seen[cell.replace(".N", f".{layer}")]
            if ours.ndim == 3 and theirs.ndim == 2:  # heads side by side
                theirs = theirs.reshape(len(theirs), len(ours), -1).swapaxes(0, 1)
            np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4, err_msg=f"{name}: {cell}")
            compared += 1
    assert compared == 3 + 17 * len(SMALL.layer_kinds)


def test_the_sentence_transformers_column_names_the_same_numbers():
    import torch
    from sentence_transformers.sentence_transformer import modules

    kept = emitted(tokens=11, dtype=np.float32)
    parameters = random_parameters(SMALL, dtype=np.float32)
    chain = [modules.Pooling(SMALL.width, "mean")]
    for folder in ("2_Dense", "3_Dense"):
        weight = torch.from_numpy(parameters[f"{folder}.linear.weight"])
        identity = torch.nn.Identity()
        chain.append(
            modules.Dense(*reversed(weight.shape), bias=False, activation_function=identity, init_weight=weight)
        )
    chain.append(modules.Normalize())
    features = {
        "token_embeddings": torch.from_numpy(kept["final_norm"])[None],
        "attention_mask": torch.ones(1, 11, dtype=torch.int64),
    }
    rows = {row[4]: row[0] for row in tensor_rows((SPEC / "tensors.md").read_text())}
    for index, module in enumerate(chain, 1):
        with torch.no_grad():
            features = module(features)
        name = rows[f"`sentence_embedding` after module {index}"]
        found = features["sentence_embedding"][0].numpy()
        np.testing.assert_allclose(found, kept[name], rtol=1e-4, atol=1e-5, err_msg=name)


# what the pages say of the released files


def test_what_chapter_1_says_of_the_released_tokenizer(weights):
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(weights / "tokenizer.json"))

    def ids(text: str) -> list[int]:
        return library.encode(text, add_special_tokens=False).ids

    assert [library.token_to_id(name) for name in ("<pad>", "<eos>", "<bos>", "<unk>")] == [0, 1, 2, 3]
    assert [ids("title: none | text: ")[-1], ids("title: none | text: a")[-1]] == [236743, 496]
    assert [ids(" " * length) for length in range(2, 32)] == [[id] for id in range(138, 168)]
    assert [ids("x<eos>")[-1], ids("x<pad>")[-1], ids("<image_soft_token>")[-1]] == [1, 0, 262144]
    assert library.encode("\u00a0", add_special_tokens=False).tokens == ["<0xC2>", "<0xA0>"]


# planted mistakes: what the tests above are worth


def test_a_wrong_output_is_found():
    right = "text\n\n```python\n>>> 2 + 2\n4\n\n```\n"
    assert run_examples("page", right) == (1, "")
    ran, report = run_examples("page", right.replace("\n4\n", "\n5\n"))
    assert ran == 1
    assert "Expected:\n    5\nGot:\n    4" in report


def test_an_example_that_raises_is_found():
    assert "ZeroDivisionError" in run_examples("page", "```python\n>>> 1 / 0\n\n```\n")[1]


def test_blocks_of_a_page_share_their_names_and_pages_do_not():
    page = "```python\n>>> a = 1\n\n```\n\n```python\n>>> a\n1\n\n```\n"
    assert run_examples("page", page) == (2, "")
    assert "NameError" in run_examples("other", page.replace("a = 1", "b = 1"))[1]


def test_a_python_block_without_an_example_is_found():
    assert "no >>> example" in run_examples("page", "```python\nprint(1)\n```\n")[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_fence_is_missed(page):
    """An unclosed or indented fence would hide its examples from the runner."""
    assert page.read_text().count("```") == 2 * len(fences(page.read_text()))
    assert ">>>" not in prose(page.read_text()).replace("`>>>`", "")


def test_an_undefined_id_is_found():
    page = {"spec/05.md": "### ATT-1\n\nMust.\n\n### QNT-1\n\n### QNT-2\n"}
    defined = definitions(page)
    assert undefined({"good.py": "Source: ATT-1. See QNT-1 to QNT-2."}, defined) == []
    assert undefined({"bad.py": "see ATT-9"}, defined) == ["bad.py: ATT-9"]
    assert undefined({"bad.py": "Source: QNT-1 to QNT-3.\n\n"}, defined) == ["bad.py: QNT-3"]
    assert undefined({"bad.py": '"""Source: NEW-1, a prefix nobody defined."""'}, defined) == ["bad.py: NEW-1"]
    assert undefined({"fine.py": "SHA-256 of the file"}, defined) == []


def test_an_id_defined_twice_is_found():
    assert definitions({"a": "### ATT-1\n", "b": "### ATT-1\n"}) == {"ATT-1": ["a", "b"]}


def test_a_wrong_tensor_table_is_found():
    text = (SPEC / "tensors.md").read_text()
    sizes, kept = {**vars(SMALL), "tokens": 11}, emitted(tokens=11)

    def fits(text: str) -> bool:
        expected = expected_shapes(tensor_rows(text), len(SMALL.layer_kinds), sizes)
        return list(expected.items()) == [(name, tensor.shape) for name, tensor in kept.items()]

    assert fits(text)
    assert not fits(text.replace("mlp.gated`", "mlp.product`"))
    assert not fits(text.replace("| (tokens, mlp) |", "| (tokens, width) |", 1))


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("### ATT-3\n\n[a](page.md#att-3) [b](#att-3) [c](page.md#att-9) [d](gone.md) [e](#L2) [f](#L4)\n")
    assert broken_links(page) == ["page.md: page.md#att-9", "page.md: gone.md", "page.md: #L4"]
