"""The decoder in PyTorch: alone it is transformers' causal Gemma 3, beside an encoder it is the reference's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gemma_support import WINDOW, gemma_model, texts_of, write_gemma_folder
from hypothesis import given, settings
from hypothesis import strategies as some
from refembed_torch.train import decoder as module
from refembed_torch.train.decoder import CausalModel, EncoderDecoder, cross_entropy, cut_groups, fill, fresh
from refembed_torch.train.gemma_folder import causal_shapes, open_gemma
from support import SMALL, random_ids
from torch import Tensor
from torch.nn import functional

from refembed.errors import RefembedError
from refembed.reference import decoder as reference
from refembed.reference.decoder import origins
from refembed.reference.ul2 import Corrupted

LENGTHS = [3, 4 * WINDOW, 2, WINDOW, WINDOW + 1, 40]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    folder = tmp_path_factory.mktemp("gemma")
    return folder, write_gemma_folder(folder, tokenizer=False)


def causal_model(folder: Path, **options: object) -> CausalModel:
    start = open_gemma(folder)
    model = CausalModel(start.config, **options)
    fill(model, start.load)
    return model


def encoder_decoder(seed: int = 0, **options: object) -> EncoderDecoder:
    """In float64, norms away from zero."""
    model = EncoderDecoder(SMALL, **options).double()
    model.dtype = torch.float64
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else parameter.shape[1] ** -0.5, generator=chance)
    return model


def test_causal_model_is_transformers(gemma: tuple[Path, object]) -> None:
    """Wrong if a mask, a window, a norm, a rotation or the head is another than the model's that people train:
    every logit of every text of a batch, texts longer than the window among them.
    """
    folder, peer = gemma
    model, texts = causal_model(folder), texts_of(LENGTHS)
    with torch.no_grad():
        found = (model.states(texts) @ model.get_parameter("embed_tokens.weight").T).split(LENGTHS)
        for logits, text in zip(found, texts, strict=True):
            torch.testing.assert_close(logits, peer(torch.from_numpy(text)[None]).logits[0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_causal_gradients_are_transformers(gemma: tuple[Path, object], checkpointing: bool) -> None:
    """Wrong if the loss counts other tokens, or a parameter (the tied table above all) gets another gradient."""
    folder, peer = gemma
    model, texts = causal_model(folder, checkpointing=checkpointing), texts_of(LENGTHS)
    loss = model(texts)
    loss.backward()
    peer.zero_grad()
    losses = [
        functional.cross_entropy(
            peer(torch.from_numpy(text)[None]).logits[0, :-1], torch.from_numpy(text[1:]), reduction="sum"
        )
        for text in texts
    ]
    expected = torch.stack(losses).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    grads = {name.removeprefix("model."): parameter.grad for name, parameter in peer.named_parameters()}
    assert grads.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        largest = float(grads[name].abs().max())
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-4, atol=2e-5 * largest, msg=name)


def examples() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sources and targets of unequal lengths, both longer and shorter than windows and than each other."""
    sources = [random_ids(SMALL, length, seed) for seed, length in enumerate([5, 30, 12, 3])]
    targets = [np.append(random_ids(SMALL, length, 9 + seed)[1:-1], 1) for seed, length in enumerate([20, 4, 25, 3])]
    return sources, targets


def test_encoder_decoder_is_the_reference() -> None:
    """Wrong if the decoder that is trained is not the one specified: its loss on a batch, in float64."""
    model = encoder_decoder()
    sources, targets = examples()
    parameters = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    pairs = [Corrupted(source, target) for source, target in zip(sources, targets, strict=True)]
    logits = np.concatenate([reference.target_logits(pair, parameters, SMALL) for pair in pairs])
    wanted = np.concatenate(targets)
    expected = float(reference.language_model_loss(logits, wanted)) * len(wanted)
    assert float(model(sources, targets).detach()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_differences_of_the_reference(checkpointing: bool) -> None:
    """Wrong if a gradient is not that of the reference's loss: in a random direction of each parameter, the slope
    between two losses of the reference, which has no autograd in it.
    """
    model = encoder_decoder(checkpointing=checkpointing)
    sources, targets = examples()
    model(sources, targets).backward()
    parameters = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    pairs = [Corrupted(source, target) for source, target in zip(sources, targets, strict=True)]
    wanted = np.concatenate(targets)

    def loss() -> float:
        logits = np.concatenate([reference.target_logits(pair, parameters, SMALL) for pair in pairs])
        return float(reference.language_model_loss(logits, wanted)) * len(wanted)

    chance, step = np.random.default_rng(0), 1e-5
    for name in [name for name in parameters if ".1." in name or ".2." in name or "layers" not in name]:
        direction, kept = chance.standard_normal(parameters[name].shape), parameters[name].copy()
        parameters[name][...] = kept + step * direction
        above = loss()
        parameters[name][...] = kept - step * direction
        slope = (above - loss()) / (2 * step)
        parameters[name][...] = kept
        found = float((model.get_parameter(name).grad.numpy() * direction).sum())
        assert found == pytest.approx(slope, rel=1e-5, abs=1e-6), name


def test_copies_begin_as_what_they_were_copied_from(gemma: tuple[Path, object]) -> None:
    """Wrong if adaptation begins from other weights than the decoder's: with the update of cross-attention switched
    off (its last norm at -1, which multiplies by zero), the decoder is the causal model whatever the encoder says, and
    the encoder's weights are the causal model's.
    """
    folder, peer = gemma
    start = open_gemma(folder)
    names = origins(start.config)
    model = EncoderDecoder(start.config)
    fill(model, lambda name: start.load(names[name]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "post_cross_attention_layernorm" in name:
                parameter.fill_(-1)
        sources, texts = texts_of([7, 31, 3]), texts_of([30, 5, 12])
        found = model.states(sources, texts) @ model.get_parameter("embed_tokens.weight").T
        expected = torch.cat([peer(torch.from_numpy(text)[None]).logits[0] for text in texts])
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    for name in causal_shapes(start.config):
        assert torch.equal(model.get_parameter(name), peer.get_parameter(f"model.{name}")), name


def test_targets_that_no_model_has_are_refused() -> None:
    """Wrong if the last token, which is only a target, ends the process's use of a GPU; or if of two lists of unequal
    length the end of one is dropped."""
    model, wrong = encoder_decoder(), SMALL.vocabulary
    sources, targets = examples()
    with pytest.raises(RefembedError, match=f"holds token {wrong}"):
        model(sources, [*targets[:-1], np.array([5, wrong])])
    with pytest.raises(RefembedError, match=f"holds token {wrong}"):
        CausalModel(SMALL)([np.array([2, 5, wrong])])
    with pytest.raises(RefembedError, match="4 sources and 3 texts of the decoder"):
        model(sources, targets[:-1])


def test_cross_attention_has_an_effect() -> None:
    """Wrong if the decoder were deaf: another source has to give another loss, and one source's change must not reach
    a neighbour's target in the batch.
    """
    model = encoder_decoder()
    sources, targets = examples()
    inputs = [np.insert(target[:-1], 0, 2) for target in targets]
    with torch.no_grad():
        before = model.states(sources, inputs).split([len(one) for one in inputs])
        after = model.states([sources[0][::-1].copy(), *sources[1:]], inputs).split([len(one) for one in inputs])
    assert (before[0] - after[0]).abs().max() > 1e-3
    for one, other in zip(before[1:], after[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@given(
    some.lists(some.tuples(some.integers(1, 20), some.integers(1, 20)), min_size=1, max_size=8),
    some.one_of(some.none(), some.integers(1, 12)),
    some.integers(1, 16),
)
@settings(max_examples=60)
def test_tiles_see_what_the_mask_says(pairs: list[tuple[int, int]], window: int | None, size: int) -> None:
    """Wrong if cutting into groups and tiles loses, adds or moves a pair of tokens that see each other."""
    queries, keys = [q for q, _ in pairs], [q if window else k for q, k in pairs]
    found = np.zeros((sum(queries), sum(keys)), bool)
    row = column = 0
    for group in cut_groups(queries, keys, window, size, torch.device("cpu"), torch.float32):
        for tile in group.tiles:
            rows = slice(row + tile.queries.start, row + tile.queries.stop)
            columns = slice(column + tile.keys.start, column + tile.keys.stop)
            found[rows, columns] |= True if tile.mask is None else (tile.mask == 0).numpy()
            assert tile.queries.stop - tile.queries.start <= size
        row, column = row + group.queries, column + group.keys
    expected = np.zeros_like(found)
    for text, (before, above) in enumerate(zip(np.cumsum([0, *queries]), np.cumsum([0, *keys]), strict=True)):
        if text == len(pairs):
            break
        for i in range(queries[text]):
            for j in range(keys[text]):
                expected[before + i, above + j] = window is None or 0 <= i - j < window
    np.testing.assert_array_equal(found, expected)


@given(some.integers(1, 9), some.integers(2, 11), some.integers(1, 40))
@settings(max_examples=25)
def test_chunks_do_not_change_the_loss(tokens: int, vocabulary: int, chunk: int) -> None:
    """Wrong if the loss or a gradient made chunk by chunk is not PyTorch's own of all logits at once."""
    chance = torch.Generator().manual_seed(tokens)
    states = torch.randn(tokens, 5, generator=chance, dtype=torch.float64, requires_grad=True)
    table = torch.randn(vocabulary, 5, generator=chance, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,), generator=chance)
    found = cross_entropy(states, table, targets, torch.float64, chunk)
    expected = functional.cross_entropy(states @ table.T, targets, reduction="sum")
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(3 * found, states, table), gradients(3 * expected, states, table), strict=True):
        torch.testing.assert_close(one, other)


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


def test_logits_of_a_large_vocabulary_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if memory grows with targets times vocabulary: no product makes more logits than a chunk holds."""
    largest = 0

    def watched(x: Tensor, weight: Tensor) -> Tensor:
        nonlocal largest
        made = functional.linear(x, weight)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(module, "product", watched)
    states, table = torch.randn(500, 2, requires_grad=True), torch.randn(1000, 2, requires_grad=True)
    cross_entropy(states, table, torch.zeros(500, dtype=torch.int64), torch.float32, 10_000).backward()
    assert 0 < largest <= 10_000


def test_bfloat16_is_near(gemma: tuple[Path, object]) -> None:
    """Wrong if bfloat16 rounds more than its products: sums, norms, logits and parameters stay float32."""
    folder, _ = gemma
    texts = texts_of(LENGTHS)
    full, low = causal_model(folder)(texts), causal_model(folder, precision="bfloat16")(texts)
    assert low.dtype == torch.float32
    assert float(low.detach()) == pytest.approx(float(full.detach()), rel=5e-3)
    assert float(low.detach()) != float(full.detach())


def test_fresh_weights_are_a_function_of_seed_and_name() -> None:
    """Wrong if a run that begins again begins elsewhere, or two matrices are alike."""
    shape = (6, 4)
    assert torch.equal(fresh("a.weight", shape, 1), fresh("a.weight", shape, 1))
    assert not torch.equal(fresh("a.weight", shape, 1), fresh("b.weight", shape, 1))
    assert not torch.equal(fresh("a.weight", shape, 1), fresh("a.weight", shape, 2))
    assert not fresh("norm.weight", (6,), 1).any()


def test_gemma_model_has_every_part() -> None:
    """Wrong if the peer of these tests ignored the window, so that no test here could see it."""
    text = torch.from_numpy(texts_of([4 * WINDOW])[0])[None]
    narrow, wide = gemma_model(), gemma_model(sliding_window=64)
    with torch.no_grad():
        apart = (narrow(text).logits - wide(text).logits).abs().amax(-1)[0]
    assert not apart[:WINDOW].any()
    assert apart[WINDOW] > 1e-3


def test_encoder_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if what the decoder looks at is not what the encoder alone, the product, makes of the text."""
    model = encoder_decoder()
    sources, _ = examples()
    parameters = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    expected = np.concatenate([reference.encode_tokens(source, parameters, SMALL) for source in sources])
    kept = []

    def kept_too(*given: object) -> Tensor:
        kept.append(encode_tokens(*given))
        return kept[0]

    encode_tokens = module.encode_tokens
    monkeypatch.setattr(module, "encode_tokens", kept_too)
    model.states(sources, [np.array([2])] * len(sources))
    np.testing.assert_allclose(kept[0].detach(), expected, rtol=1e-10, atol=1e-12)
