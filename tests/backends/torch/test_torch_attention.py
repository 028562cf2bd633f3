"""The ways to attend, as far as a machine without CUDA can tell, how one is chosen, and what they are made of."""

import inspect
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as some
from refembed_torch import attention, products
from refembed_torch.attention import block_mask, choose_way, cut_runs, fault_of
from refembed_torch.encoder import TorchEncoder
from refembed_torch.packing import pack
from refembed_torch.precision import exact_products, using_threads
from refembed_torch.products import dense, multiply, onednn, product
from support import SMALL, checkpoint_of, sampled, texts_of
from torch.nn.attention import flex_attention as flex_library

from refembed.reference import FULL, SLIDING, Config

CPU = torch.device("cpu")
RAGGED = some.lists(some.integers(1, 300), min_size=1, max_size=8)


def seen_in(lengths: list[int], reach: int) -> np.ndarray:
    """Which token of a packed batch sees which, (tokens, tokens), written down pair by pair."""
    text = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(sum(lengths))
    return (text[:, None] == text) & (np.abs(place[:, None] - place) <= reach)


def batch_of(lengths: list[int]) -> Any:
    return pack([np.zeros(length, np.int64) for length in lengths], CPU)


@settings(max_examples=60)
@given(lengths=RAGGED, reach=some.integers(1, 320), size=some.integers(1, 200))
def test_tiles_see_what_their_texts_say(lengths: list[int], reach: int, size: int) -> None:
    """Wrong if a query sees another text or past its window, misses a key, comes twice, or a tile is too large."""
    found, first = np.zeros((sum(lengths),) * 2, bool), 0
    for run in cut_runs(batch_of(lengths), reach, size, torch.float32):
        stops = [0, *(tile.queries.stop for tile in run.tiles)]
        assert [(tile.queries.start, tile.queries.stop) for tile in run.tiles] == list(pairwise(stops))
        assert stops[-1] == run.tokens
        for tile in run.tiles:
            queries, keys = (slice(one.start + first, one.stop + first) for one in (tile.queries, tile.keys))
            found[queries, keys] = True if tile.mask is None else tile.mask == 0
            assert tile.mask is None or not (tile.mask == 0).all()
            assert tile.mask is None or tile.mask.stride(0) % 16 == 0  # or it is copied at every use
            assert queries.stop - queries.start <= size
            assert keys.stop - keys.start <= size + 2 * reach
        first += run.tokens
    np.testing.assert_array_equal(found, seen_in(lengths, reach))


@pytest.mark.parametrize("lengths", [[100] * 300, [2048] * 15])
def test_tiles_need_no_tables_on_the_host(lengths: list[int]) -> None:
    """Wrong if every pass on a device waits for masks that are made elsewhere, and takes a gigabyte there."""
    batch = batch_of(lengths)
    tracemalloc.start()  # which sees NumPy's memory, and none of PyTorch's
    try:
        runs = cut_runs(batch, 256, attention.QUERIES["cuda"], torch.float32)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
    masks = [tile.mask for run in runs for tile in run.tiles if tile.mask is not None]
    assert sum(mask.untyped_storage().nbytes() for mask in masks) < 4 * sum(lengths) * 1100


def test_a_batchs_length_is_no_part_of_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if flex attention is compiled anew for every longest text."""
    reaches: list[int] = []
    monkeypatch.setitem(attention.WAYS, "flex", lambda batch, config, reach, dtype: reaches.append(reach))
    for lengths in ([60, 3], [7]):
        attention.prepare("flex", batch_of(lengths), SMALL, torch.float32)
    assert sorted(reaches) == sorted([SMALL.reach, SMALL.context] * 2)


@settings(max_examples=40)
@given(lengths=RAGGED, reach=some.integers(1, 320))
@example(lengths=[300], reach=126)  # blocks that lack one key of being seen whole, by the window and by a text's end
@example(lengths=[300], reach=254)
@example(lengths=[255, 10], reach=320)
def test_block_mask_lists_what_is_seen(lengths: list[int], reach: int) -> None:
    """Wrong if flex attention skips a block in which something is seen, or takes for whole one that is not."""
    mask, size, tokens = block_mask(batch_of(lengths), reach), attention.BLOCK, sum(lengths)
    seen = np.zeros((tokens, -(-tokens // size) * size), bool)  # a last block of keys with room in it is never whole
    seen[:, :tokens] = seen_in(lengths, reach)
    rows = [np.split(seen[row : row + size], seen.shape[1] // size, 1) for row in range(0, tokens, size)]
    assert mask_rows(mask, "full_") == [{k for k, one in enumerate(row) if one.all()} for row in rows]
    assert mask_rows(mask, "") == [{k for k, one in enumerate(row) if one.any() and not one.all()} for row in rows]
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
    np.testing.assert_array_equal(mask.mask_mod(None, None, query, key), seen[:, :tokens])


def mask_rows(mask: Any, kind: str) -> list[set[int]]:
    """The blocks of keys listed for each block of queries."""
    counts, lists = getattr(mask, f"{kind}kv_num_blocks")[0, 0], getattr(mask, f"{kind}kv_indices")[0, 0]
    return [set(row[:count].tolist()) for count, row in zip(counts.tolist(), lists, strict=True)]


@pytest.fixture
def eager_flex(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flex attention as it stands, without a compiler: whole tables of scores."""
    monkeypatch.setattr(attention, "compiled_flex", lambda: flex_library.flex_attention)
    with pytest.warns(UserWarning, match="flex_attention called without torch.compile"):
        yield


def test_flex_is_the_tiles(eager_flex: None) -> None:
    """Wrong if the mask given to flex attention, its scale or its grouping of heads is another."""
    texts, plain = texts_of(SMALL, [60, 3, 1, 40, 33]), TorchEncoder(checkpoint_of(SMALL), "float32", None, device=CPU)
    expected = plain.encode(texts)
    plain.setup = plain.setup._replace(way="flex")
    np.testing.assert_allclose(plain.encode(texts), expected, atol=1e-6, rtol=0)


def ragged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What the documentation of torch.nn.attention.varlen says of these arguments, text by text."""
    assert enable_gqa
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    shared, found = query.shape[1] // key.shape[1], []
    for start, stop in pairwise(cu_seq_q.tolist()):
        assert stop - start <= max_q == max_k
        q, k, v = (tensor[start:stop].transpose(0, 1) for tensor in (query, key, value))
        k, v = (tensor.repeat_interleave(shared, 0) for tensor in (k, v))
        place = torch.arange(stop - start)
        left, right = (stop - start if side == -1 else side for side in window_size)
        apart = place - place[:, None]  # of the key from the query
        scores = (q @ k.mT * scale).masked_fill((apart < -left) | (apart > right), -torch.inf)
        found.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(found)


def equal_heads_attention(query: torch.Tensor, key: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
    """The same as PyTorch 2.11 has it: a key head for each query head."""
    assert query.shape == key.shape
    return ragged_attention(query, key, *given, **named, enable_gqa=True)


@pytest.mark.parametrize("stand_in", [ragged_attention, equal_heads_attention])
@pytest.mark.parametrize("lengths", [[60, 3, 1, 40, 33], [6, 3], [5, 2]])  # the second is the first with a window
def test_varlen_is_asked_for_the_right_thing(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], stand_in: Callable[..., torch.Tensor]
) -> None:
    """Wrong if the window, the scale or the texts' ends are told wrongly, or arguments are not the library's."""
    library = pytest.importorskip("torch.nn.attention.varlen")
    named = inspect.signature(library.varlen_attn).parameters
    assert set(inspect.signature(ragged_attention).parameters) - {"enable_gqa"} <= set(named)
    monkeypatch.setattr(library, "varlen_attn", stand_in)
    texts, plain = texts_of(SMALL, lengths), TorchEncoder(checkpoint_of(SMALL), "float32", None, device=CPU)
    expected = plain.encode(texts)
    plain.setup = plain.setup._replace(way="varlen")
    np.testing.assert_allclose(plain.encode(texts), expected, atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------------------ choosing
class Elsewhere:
    """A device that is not there: what is computed for it is computed here."""

    type = "cuda"


# The released window of 513 keys is the hardest to see one key more in.
RELEASED = replace(Config(), layer_kinds=(FULL, SLIDING))


@pytest.mark.parametrize("dtype", sampled([torch.float32, torch.bfloat16]))
@pytest.mark.parametrize("config", [SMALL, RELEASED], ids=["small", "released"])
def test_a_window_of_one_key_too_many_is_noticed(
    monkeypatch: pytest.MonkeyPatch, config: Config, dtype: torch.dtype
) -> None:
    """Wrong if a kernel whose window is one off, forward or only backward, is used, or one that is right is not."""

    def by_tiles(reach_off: int, gradients_alone: bool, tile: int) -> Callable[..., attention.Attend]:
        def way(batch: Any, config: Config, reach: int, dtype: torch.dtype) -> attention.Attend:
            if reach == config.context:
                return attention.tiled(batch, config, reach, dtype)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(attention, "QUERIES", {"cpu": tile})
                off = attention.tiled(batch, config, reach + reach_off, dtype)
                right = attention.tiled(batch, config, reach, dtype)

            def attend(*given: torch.Tensor) -> torch.Tensor:
                found = off(*given)
                return right(*given).detach() + (found - found.detach()) if gradients_alone else found

            return attend

        return way

    for reach_off, gradients_alone, fault in (
        (0, False, None),
        (1, False, "its numbers are not those of the tiles"),
        (-1, False, "its numbers are not those of the tiles"),
        (1, True, "its gradients are not those of the tiles"),
        (-1, True, "its gradients are not those of the tiles"),
    ):
        monkeypatch.setitem(attention.WAYS, "varlen", by_tiles(reach_off, gradients_alone, 96))
        assert fault_of("varlen", config, CPU, dtype, True) == fault


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_way_is_tried_as_it_will_be_used(monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    """Wrong if a model that first computes without gradients is held to the slow way ever after."""
    monkeypatch.setitem(attention.WAYS, "varlen", attention.tiled)
    with mode():
        assert fault_of("varlen", SMALL, CPU, torch.float32, True) is None


def test_a_way_that_is_wrong_or_fails_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a kernel that gives other numbers, or none, is used, or nobody is told why it was not."""

    def wrong(batch: Any, config: Config, reach: int, dtype: torch.dtype) -> attention.Attend:
        return attention.tiled(batch, config, reach + 1, dtype)

    def failing(*_: Any) -> attention.Attend:
        raise RuntimeError("head dimension not supported\nmore")

    monkeypatch.setitem(attention.WAYS, "varlen", wrong)
    monkeypatch.setitem(attention.WAYS, "flex", failing)
    for training in (False, True):
        assert fault_of("tiles", SMALL, CPU, torch.float32, training) is None
        assert fault_of("varlen", SMALL, CPU, torch.float32, training) == "its numbers are not those of the tiles"
        assert fault_of("flex", SMALL, CPU, torch.float32, training) == "RuntimeError: head dimension not supported"
    monkeypatch.setattr(attention, "fault_of", lambda way, *_: fault_of(way, SMALL, CPU, torch.float32, True))
    way, why = choose_way(SMALL, Elsewhere(), torch.bfloat16, True, True)
    assert way == "tiles"
    assert why == "varlen: its numbers are not those of the tiles; flex: RuntimeError: head dimension not supported"


def test_a_wrong_gradient_counts_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a kernel without a right backward trains, or is not let encode."""

    def one_sided(*given: Any) -> attention.Attend:
        attend = attention.tiled(*given)
        return lambda query, key, value: attend(query, key.detach() + 0 * key, value)

    monkeypatch.setitem(attention.WAYS, "varlen", one_sided)
    assert fault_of("varlen", SMALL, CPU, torch.float32, False) is None
    assert fault_of("varlen", SMALL, CPU, torch.float32, True) == "its gradients are not those of the tiles"


def test_the_fastest_way_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if flash attention is tried in float32, which it does not have, or flex attention without a compiler."""
    tried: list[str] = []
    monkeypatch.setattr(attention, "fault_of", lambda way, *_: tried.append(way))
    for dtype, compiling, expected in (
        (torch.bfloat16, False, "varlen"),
        (torch.bfloat16, True, "varlen"),
        (torch.float32, True, "flex"),
        (torch.float32, False, "tiles"),
    ):
        assert choose_way(SMALL, Elsewhere(), dtype, compiling, True) == (expected, "")
    assert tried == ["varlen", "varlen", "flex"]
    assert choose_way(SMALL, CPU, torch.bfloat16, True, True) == ("tiles", "")


# ------------------------------------------------------------------------------------------------------------ products
@settings(max_examples=30)
@given(rows=some.integers(1, 40), columns=some.integers(1, 40), depth=some.integers(1, 40), data=some.data())
def test_product_and_its_gradients(rows: int, columns: int, depth: int, data: some.DataObject) -> None:
    """Wrong if oneDNN is given an operand with other strides than it takes it for, or a gradient is transposed."""
    torch.manual_seed(0)
    layouts = [lambda t: t, lambda t: t.t().contiguous().t(), lambda t: torch.cat([t, t], 1)[:, : t.shape[1]]]
    x, weight = (
        data.draw(some.sampled_from(layouts))(torch.randn(shape)).requires_grad_()
        for shape in ((rows, depth), (columns, depth))
    )
    upstream = data.draw(some.sampled_from(layouts))(torch.randn(rows, columns))
    exact = x.double() @ weight.double().t()
    for computed in (product(x, weight), product(x.detach(), weight.detach())):
        np.testing.assert_allclose(computed.detach(), exact.detach(), atol=1e-4)
    found = torch.autograd.grad(product(x, weight), (x, weight), upstream)
    for one, expected in zip(found, torch.autograd.grad(exact, (x, weight), upstream.double()), strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-4)


def test_onednn_gets_dense_operands() -> None:
    """Wrong if rows with room between them, as a fused projection's values have, go to a far slower loop."""
    whole = torch.zeros(6, 8)
    for operand in (whole, whole.t()):
        assert dense(operand) is operand
    for operand in (whole[:, :3], whole[:, :3].t()):
        assert dense(operand).is_contiguous()


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a PyTorch without the product, or with another one of that name, ends in an error or in its numbers."""
    assert onednn()

    def missing(*_: Any) -> None:
        raise AttributeError("no attribute _linear_pointwise")

    for found in (missing, lambda x, weight: x @ weight.t() + 1):
        monkeypatch.setattr(products, "multiply", found)
        assert not onednn.__wrapped__()
    monkeypatch.setattr(products, "multiply", multiply)
    assert onednn.__wrapped__()


# ----------------------------------------------------------------------------------------------------------- precision
@pytest.fixture
def restored() -> Iterator[None]:
    """The process's settings, whatever a test does to them."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("users", ["highest", "high", "medium"])
def test_the_users_precision_is_left_alone(restored: None, users: str) -> None:
    """Wrong if float32 is computed in TF32 or bfloat16 because a user allows it elsewhere, or is no more allowed it."""
    torch.set_float32_matmul_precision(users)
    with exact_products():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == users


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch before 2.9")
def test_the_newer_interface_is_left_alone(restored: None) -> None:
    """Wrong if who set TF32 by PyTorch's newer interface gets it here, an error, or their setting lost."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with exact_products():
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def in_two_threads(inside: Callable[[], AbstractContextManager[None]], look: Callable[[], object]) -> dict[str, object]:
    """What there is to see in a thread after another has come and gone in a setting that this one is in, and later."""
    seen: dict[str, object] = {}
    entered, left = threading.Event(), threading.Event()

    def first() -> None:
        with inside():
            entered.set()
            staying.wait(10)
        seen["first, after"] = look()
        left.set()

    def second() -> None:
        entered.wait(10)
        with inside():
            staying.set()
            left.wait(10)
            seen["second, inside"] = look()
        seen["second, after"] = look()

    staying = threading.Event()
    threads = [threading.Thread(target=one) for one in (first, second)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    seen["new thread"] = look()
    return seen


def test_threads_share_exact_products(restored: None) -> None:
    """Wrong if one text's end takes exact products away from another thread's, or leaves them set for ever."""
    torch.set_float32_matmul_precision("high")
    seen = in_two_threads(exact_products, torch.get_float32_matmul_precision)
    assert seen["second, inside"] == "highest"
    assert seen["second, after"] == seen["new thread"] == "high"


def test_threads_share_the_number_of_threads() -> None:
    """Wrong if the number that one thread asks for stays behind in another, or in the process."""
    before = torch.get_num_threads()
    seen = in_two_threads(lambda: using_threads(before + 2), torch.get_num_threads)
    assert seen["second, inside"] == before + 2
    assert {value for place, value in seen.items() if place != "second, inside"} == {before}
    fresh: list[int] = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [before]


def test_an_error_puts_settings_back(restored: None) -> None:
    """Wrong if one text that fails leaves the process with other settings."""
    torch.set_float32_matmul_precision("high")
    with pytest.raises(ZeroDivisionError), exact_products():
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "high"
