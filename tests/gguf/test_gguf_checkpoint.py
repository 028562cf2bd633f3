"""GGUF files in order: their config, their tensors against the gguf library's, their vectors against llama.cpp's."""

import json
import mmap
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, dequantize
from gguf_files import BOOL, F32, SMALL, U32, Value, pack, tensors_of, their_name, values_of, write_gguf
from support import random_parameters

import refembed
from refembed.checkpoint import TABLE, open_checkpoint
from refembed.cli import main
from refembed.cli.verify import BackendPort, bounds_of
from refembed.config_file import RELEASED_ODD_WINDOW
from refembed.errors import RefembedError
from refembed.gguf.checkpoint import BlockTensor
from refembed.gguf.header import read_header
from refembed.prompts import PROMPTS
from refembed.reference import FULL, SLIDING
from refembed.reference.quantize import INT4_BLOCK, INT8_BLOCK

HERE = Path(__file__).parent
LLAMACPP = json.loads((HERE / "llamacpp.json").read_text())
MADE = {kind: HERE / f"small-{kind.lower()}.gguf" for kind in ("Q8_0", "Q4_0")}  # by llama.cpp


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """A place for tokenizers alone: what Numba compiled stays where it is."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refembed.gguf.tokenizer.cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in F32."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


def changed(file: Path, **values: Value | None) -> Path:
    """A file with other values in its metadata; "__" stands for a dot, and None leaves a key out."""
    new = {f"gemma-embedding.{key.replace('__', '.')}": value for key, value in values.items()}
    content = {key: value for key, value in (values_of(SMALL) | new).items() if value is not None}
    file.write_bytes(pack(list(content.items()), tensors_of(SMALL)))
    return file


# ------------------------------------------------------------------------------------------------------------- the file
@pytest.mark.parametrize("kind", ["F32", *MADE])
def test_the_library_reads_the_same(kind: str, whole: Path) -> None:
    """A key, a type, a tensor's place or its shape is read otherwise than by the gguf library."""
    file = MADE.get(kind, whole)
    peer, header = GGUFReader(file), read_header(file)
    theirs = {key: field.contents() for key, field in peer.fields.items() if not key.startswith("GGUF.")}
    assert set(header.values) == set(theirs)
    for key, value in header.values.items():
        found = value.tolist() if isinstance(value, np.ndarray) else value
        found = [text.decode() for text in found] if key.endswith(".tokens") else found
        assert found == pytest.approx(theirs[key], rel=1e-7) if isinstance(found, float) else found == theirs[key]
    assert [*header.tensors] == [tensor.name for tensor in peer.tensors]
    for tensor in peer.tensors:
        entry = header.tensors[tensor.name]
        assert (entry.kind, entry.shape) == (tensor.tensor_type, tuple(tensor.shape[::-1].tolist()))
        assert header.start + entry.offset == tensor.data_offset


@pytest.mark.parametrize("kind", [*MADE, "F32", "F16", "BF16"])
def test_tensors_are_the_librarys(kind: str, tmp_path: Path) -> None:
    """A block's halves, sign or scale is read wrongly, a name is another's, or a norm weight keeps its one."""
    file = MADE[kind] if kind in MADE else write_gguf(tmp_path / "one.gguf", kind=kind)
    tensors = open_checkpoint(file).tensors
    peer = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(file).tensors}
    assert len(peer) == len(tensors)
    for name, tensor in tensors.items():
        needed = peer[their_name(name)]
        needed = needed.astype(np.float64) - 1 if name.endswith("norm.weight") else needed
        np.testing.assert_array_equal(tensor.load(np.float32), needed.astype(np.float32), err_msg=name)
        np.testing.assert_array_equal(tensor.load(np.float64), needed.astype(np.float32), err_msg=name)
        assert tensor.shape == needed.shape
        if needed.ndim == 2:
            ids = np.array([3, 0, 3])
            np.testing.assert_array_equal(tensor.rows(ids, np.float32), needed[ids], err_msg=name)


def test_levels_and_scales_are_the_files(tmp_path: Path) -> None:
    """Quantised weights are handed to the kernels otherwise than they stand in the file."""
    levels = np.arange(-128, 128).astype(np.int8).reshape(2, 128)
    halves = np.arange(256).astype(np.uint8).reshape(2, 8, 16)
    scales = np.array([[0.5, -2.0, 6e-8, 0.0, 1.0, -0.25, 3.0, 65504.0]] * 2, np.float16)
    eight = np.zeros((2, 4), [("scale", "<f2"), ("levels", "i1", 32)])
    eight["scale"], eight["levels"] = scales[:, :4], levels.reshape(2, 4, 32)
    four = np.zeros((2, 8), [("scale", "<f2"), ("levels", "u1", 16)])
    four["scale"], four["levels"] = scales, halves
    found = BlockTensor("x", tmp_path, eight, eight["scale"], INT8_BLOCK).quantized()
    np.testing.assert_array_equal(found.levels, levels)
    np.testing.assert_array_equal(found.scales, scales[:, :4])
    tensor = BlockTensor("x", tmp_path, four, four["scale"], INT4_BLOCK)
    found = tensor.quantized(slice(1, 2))
    assert found.levels[0, :32].tolist() == [(128 + n) % 16 - 8 for n in range(16)] + [8 - 8] * 16
    np.testing.assert_array_equal(found.scales, scales[1:])
    assert tensor.shape == (2, 256)


def test_matrices_stay_mapped(whole: Path) -> None:
    """Opening a file reads its weights."""
    for file in (whole, *MADE.values()):
        for name, tensor in open_checkpoint(file).tensors.items():
            for part in tensor.mapped if not name.endswith("norm.weight") else ():
                while isinstance(part, np.ndarray):
                    part = part.base
                assert isinstance(part, mmap.mmap), name


@pytest.mark.parametrize(
    ("kind", "stored", "bounds"),
    [
        ("Q8_0", "int8-block", "int8"),
        ("Q4_0", "int4-block and int8-block", "int4"),  # the table in Q8_0: the widest counts
        ("F32", "float32", "float32"),
        ("F16", "float16", "bfloat16"),
        ("BF16", "bfloat16", "bfloat16"),
    ],
)
def test_verify_holds_a_file_to_its_own_contract(
    kind: str, stored: str, bounds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`refembed verify` judges a file by other bounds than those of how it stores weights."""
    file = MADE[kind] if kind in MADE else write_gguf(tmp_path / "one.gguf", kind=kind)
    assert open_checkpoint(file).weights == stored
    assert bounds_of(None, BackendPort(refembed.load(file, backend="numpy"))) == bounds
    assert (f"weights are {stored}: {bounds}'s" in capsys.readouterr().err) == (bounds != "float32")


# -------------------------------------------------------------------------------------------------------------- vectors
@pytest.mark.parametrize(("kind", "cosine"), [("F32", 1 - 1e-6), ("Q8_0", 0.9999), ("Q4_0", 0.9999)])
def test_vectors_are_llamacpps(kind: str, cosine: float, whole: Path) -> None:
    """A file of llama.cpp's gives other tokens or vectors here; it also rounds activations, to 8 bits a block."""
    theirs = LLAMACPP[kind]
    model = refembed.load(MADE.get(kind, whole), backend="numpy")
    assert [ids.tolist() for ids in model.tokenizer(LLAMACPP["texts"])] == theirs["ids"]
    found = model.encode(LLAMACPP["texts"], task=None)
    assert np.sum(found * np.array(theirs["vectors"]), axis=1).min() > cosine


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_every_backend_reads_it(kind: str, backend: str) -> None:
    """A backend passes over the form of the weights, or asks the file for a tokenizer.json."""
    ours = refembed.load(MADE[kind], backend=backend, precision="float32").encode(LLAMACPP["texts"], task=None)
    needed = refembed.load(MADE[kind], backend="numpy", precision="float64").encode(LLAMACPP["texts"], task=None)
    np.testing.assert_allclose(ours, needed, atol=3e-6)


def test_a_float_file_gives_the_folders_numbers(whole: Path) -> None:
    """Taking the one from norm weights costs anything in float32, where what a norm multiplies by stays the same."""
    parameters = random_parameters(SMALL, dtype=np.float32)
    tensors = open_checkpoint(whole).tensors
    for name, values in parameters.items():
        found = tensors[name].load(np.float32)
        if name.endswith("norm.weight"):
            values, found = values + np.float32(1), found + np.float32(1)
        np.testing.assert_array_equal(found, values, err_msg=name)


def test_commands_and_processes_take_a_file(whole: Path, capsys, monkeypatch, tmp_path: Path) -> None:
    """A file is looked for on the hub, lost in pickling, or its digest and stamp are another file's."""
    assert main(["embed", "the planet", "--model", str(whole), "--backend", "numpy"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    monkeypatch.chdir(whole.parent)
    model = refembed.load(whole.name, backend="numpy")
    again = pickle.loads(pickle.dumps(model))
    for one in (model, again):
        np.testing.assert_array_equal(one.encode(["the planet"])[0], np.float32(row["embedding"]))
    assert dict(model.checkpoint.prompts) == {}
    np.testing.assert_array_equal(
        model.encode_query(["the planet"]), model.encode(["the planet"], task=None, prompt=PROMPTS["query"])
    )
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(whole.read_bytes())
    first, second, other = (open_checkpoint(file) for file in (whole, copy, MADE["Q8_0"]))
    assert first.digest == second.digest != other.digest
    assert first.stamp != second.stamp


def test_a_revision_or_a_folder_of_files_is_refused(whole: Path, tmp_path: Path) -> None:
    """A revision of a file is passed over, or a folder that holds a file alone does not say what to do."""
    with pytest.raises(RefembedError) as caught:
        refembed.load(str(whole), revision="main")
    assert caught.value.id == "hub-revision"
    (tmp_path / "small.gguf").write_bytes(whole.read_bytes())
    with pytest.raises(RefembedError, match=r"name the file itself: .*small\.gguf"):
        refembed.load(tmp_path)
    with pytest.raises(RefembedError) as caught:
        refembed.load("models/nothing.gguf")
    assert caught.value.id == "file-missing"


# --------------------------------------------------------------------------------------------------------------- confi
def test_config_is_the_files(whole: Path, tmp_path: Path) -> None:
    """A number is taken from somewhere else, or float32's 1e-6 is not the folder's 1e-6."""
    assert open_checkpoint(whole).config == SMALL
    other = replace(SMALL, context=48, epsilon=1e-5, sliding_base=100.0, full_base=3e4, reach=7, pooler="last")
    file = changed(
        tmp_path / "other.gguf",
        context_length=Value(U32, 48),
        attention__layer_norm_rms_epsilon=Value(F32, 1e-5),
        rope__freq_base_swa=Value(F32, 100.0),
        rope__freq_base=Value(F32, 3e4),
        attention__sliding_window=Value(U32, 14),
        pooling_type=Value(U32, 3),
    )
    assert open_checkpoint(file).config == other


def test_what_older_converters_left_out(tmp_path: Path) -> None:
    """A file without the newer keys is refused, or read otherwise than llama.cpp reads it."""
    absent = dict.fromkeys(
        ("rope__freq_base_swa", "attention__sliding_window_pattern", "pooling_type", "attention__value_length")
    )
    file = changed(tmp_path / "old.gguf", **absent, attention__sliding_window=Value(U32, RELEASED_ODD_WINDOW))
    found = open_checkpoint(file).config
    assert found == replace(SMALL, layer_kinds=(SLIDING,) * 3, sliding_base=10_000.0, reach=256)


def test_keys_of_no_architecture_say_nothing(tmp_path: Path) -> None:
    """A key without the architecture's name before it, or with a general one's after it, takes its place."""
    content = values_of(SMALL) | {
        "attention.sliding_window": Value(U32, 2),
        "pooling_type": Value(U32, 3),
        "gemma-embedding.general.alignment": Value(U32, 128),
        "gemma-embedding.tokenizer.ggml.bos_token_id": Value(U32, 3),
        "gemma-embedding.split.count": Value(U32, 9),
    }
    (tmp_path / "more.gguf").write_bytes(pack(list(content.items()), tensors_of(SMALL)))
    assert open_checkpoint(tmp_path / "more.gguf").config == SMALL


def test_layers_as_a_list(tmp_path: Path) -> None:
    """A list of which layers slide is read the other way round."""
    pattern = Value(BOOL, [False, True, False], array=True)
    file = changed(tmp_path / "list.gguf", attention__sliding_window_pattern=pattern)
    assert open_checkpoint(file).config.layer_kinds == (FULL, SLIDING, FULL)


def test_a_file_put_together_again(tmp_path: Path) -> None:
    """llama-gguf-split --merge writes a count of 0, which is no shard."""
    content = values_of(SMALL) | {"split.count": Value(2, 0)}
    (tmp_path / "merged.gguf").write_bytes(pack(list(content.items()), tensors_of(SMALL)))
    assert open_checkpoint(tmp_path / "merged.gguf").config == SMALL


def test_another_alignment_and_version_2(tmp_path: Path) -> None:
    """Tensors are looked for at multiples of 32, or version 2's files, of the same form, are refused."""
    content = values_of(SMALL) | {"general.alignment": Value(U32, 128)}
    file = tmp_path / "aligned.gguf"
    version = (2).to_bytes(4, "little")
    file.write_bytes(pack(list(content.items()), tensors_of(SMALL), version=version, alignment=128))
    needed = random_parameters(SMALL, dtype=np.float32)[TABLE]
    np.testing.assert_array_equal(open_checkpoint(file).tensors[TABLE].load(np.float32), needed)
