"""EmbeddingGemma on transformers, answering `refembed verify`, with mistakes put into it from outside.

python transformers_port.py CHECKPOINT [--defect ID[+ID...]] [--precision float32|bfloat16|int8]
python transformers_port.py --list

It shows that the diagnosis works on code that is not the reference, so nothing here comes from refembed: the encoder is
transformers' own, the tokenizer that of tokenizers, the dense head torch. A mistake is a list of attributes (of a
module, the config, transformers' functions, the port's own steps) with the wrong values that they have while it lasts.
One process can make them all: {"call": "start", "protocol": 1, "defect": "A+B"} leaves the last one and makes these.

Where the released library stands between a mistake and its effect, it is left there: other special tokens are put by
the tokenizer's template, so they count when it cuts (one BOS more is one token of text less at the context's end); and
in bfloat16 transformers itself rounds the embedding scale, so embedding-scale-rounded changes nothing.

The texts of one call are one padded batch. In order: the port, ways to be wrong, the tables, the protocol.
"""

import argparse
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.models.gemma3 import modeling_gemma3 as gemma
from transformers.utils import logging

BLOCK = 32  # neighbours of a row that share a scale, in int8
PRECISIONS = ("float32", "bfloat16", "int8")
FULL, SLIDING = "create_causal_mask", "create_sliding_window_causal_mask"  # transformers', for each kind of layer
SUBJECT = {"query": "search result"}  # what a task is called in its prompt, where that is another word
STAGES = {
    "attention.norm": "input_layernorm",
    "attention.output": "self_attn.o_proj",
    "attention.update": "post_attention_layernorm",
    "mlp.norm": "pre_feedforward_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.output": "mlp",
    "mlp.update": "post_feedforward_layernorm",
    "out": "",
}

Change = tuple[Any, str, Any]  # an object, its attribute, the value that attribute has while the mistake lasts
Patch = Callable[["Port"], Iterable[Change]]


@contextmanager
def changed(changes: Iterable[Change]) -> Iterator[None]:
    """Within, each attribute has its other value."""
    changes = list(changes)
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


# ----------------------------------------------------------------------------------------------------------------------
# The port. Each step is a method or an attribute, so that a mistake can stand in its place.


class Port:
    def __init__(self, folder: Path, precision: str) -> None:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self.model = gemma.Gemma3TextModel.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
        files = (folder / name / "model.safetensors" for name in ("2_Dense", "3_Dense"))
        self.up, self.down = (matrix(load_file(file)["linear.weight"].to(dtype)) for file in files)
        self.dense: nn.Module = nn.Sequential(self.up, self.down)
        self.config, self.layers = self.model.config, self.model.layers
        self.gemma = gemma  # so that a path of the port leads to transformers' functions too
        self.reach = self.config.sliding_window - 1  # transformers halves it on loading, and compares with "<"
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.truncation: dict[str, Any] = {"max_length": self.config.max_position_embeddings}
        if precision == "int8":
            for module in (self.model, self.dense):
                round_matrices(module)
        self.mistakes = ExitStack()

    def prefix(self, task: str | None, title: str | None) -> str:
        if task is None:
            return ""
        return f"title: {title or 'none'} | text: " if task == "document" else query_prompt(task)

    def prompted(self, text: str, task: str | None, title: str | None) -> str:
        return self.prefix(task, title) + text

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Ids between BOS and EOS, cut to the context."""
        self.tokenizer.enable_truncation(**self.truncation)
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]

    def states(self, batch: list[list[int]]) -> tuple[Tensor, Tensor]:
        """The encoder's last states (texts, tokens, width), and 1 for tokens, 0 for pads (texts, tokens)."""
        longest = max(map(len, batch))
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch])
        ids = torch.tensor([ids + [self.config.pad_token_id] * (longest - len(ids)) for ids in batch])
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state, mask

    def pool(self, states: Tensor, mask: Tensor, prompts: list[int]) -> Tensor:
        """The mean over real tokens. prompts: how many of each text's tokens are BOS and prompt, as far as known."""
        weights = mask[..., None].float()
        return ((states.float() * weights).sum(1) / weights.sum(1)).to(states.dtype)

    def finish(self, raw: Tensor, dimensions: int) -> Tensor:
        return functional.normalize(raw[:, :dimensions], dim=1)

    def embed(self, texts: list[str], prompts: list[int], dimensions: int) -> Tensor:
        """(texts, dimensions) float32"""
        batch = [ids or [self.config.eos_token_id] for ids in self.tokenize(texts)]  # empty with a mistake only
        states, mask = self.states(batch)
        return self.finish(self.dense(self.pool(states, mask, prompts)).float(), dimensions)

    def embed_plain(self, items: list[dict[str, Any]], dimensions: int) -> Tensor:
        """The same, with each text's prompt put there."""
        given = [(item.get("task"), item.get("title")) for item in items]
        texts = [self.prompted(item["text"], *one) for item, one in zip(items, given, strict=True)]
        prefixes = [self.tokenizer.encode(self.prefix(*one), add_special_tokens=False) for one in given]
        return self.embed(texts, [1 + len(prefix.ids) for prefix in prefixes], dimensions)

    def trace(self, text: str) -> dict[str, list[Any]]:
        """Stages by the names of spec/tensors.md: what stands in a module of its own, and the pooled vector."""
        stages: dict[str, list[Any]] = {}
        modules = {"embedded": self.model.embed_tokens, "final_norm": self.model.norm}
        modules |= {"projected_up": self.up, "projected": self.down}
        for index, layer in enumerate(self.model.layers):
            modules |= {f"layer.{index:02d}.{name}": layer.get_submodule(path) for name, path in STAGES.items()}

        def keep(name: str, module: nn.Module, given: Any, result: Tensor) -> None:
            stages[name] = result[0].tolist()

        def pool(*given: Any, right: Any = self.pool) -> Tensor:
            result = right(*given)
            keep("pooled", nn.Identity(), given, result)
            return result

        hooks = [module.register_forward_hook(partial(keep, name)) for name, module in modules.items()]
        try:
            with changed([(self, "pool", pool)]):
                self.embed([text], [0], self.down.out_features)
        finally:
            for hook in hooks:
                hook.remove()
        return stages

    def make(self, mistakes: list[str]) -> None:
        """Leave whatever mistake was made before, and make these."""
        unknown = [id for id in mistakes if id not in KNOWN]
        if unknown:
            raise ValueError(f"no mistake {unknown[0]!r}; --list has them")
        self.mistakes.close()
        for id in mistakes:
            self.mistakes.enter_context(changed(KNOWN[id](self)))


def query_prompt(task: str) -> str:
    return f"task: {SUBJECT.get(task, task)} | query: "


def matrix(weight: Tensor) -> nn.Linear:
    """A module that multiplies by this matrix (out, in)."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


def rounded(rows: Tensor) -> Tensor:
    """What int8 leaves of rows (..., n): blocks along them, the last one short, each with its scale in float16.

    A scale is the largest magnitude over 127, as the next float16 not below it, so that no number is cut.
    """
    blocks = functional.pad(rows, (0, -rows.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True)
    scale = (largest / 127).half()
    above = (scale.view(torch.int16) + 1).view(torch.float16)  # bit patterns of positive numbers are in their order
    scale = torch.where(scale.float() * 127 < largest, above, scale).float()
    levels = torch.where(scale > 0, (blocks / scale).round(), 0)
    return (levels * scale).flatten(-2)[..., : rows.shape[-1]]


def round_matrices(module: nn.Module) -> None:
    """Round every matrix now, and the rows of the embedding table as they are looked up."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.data = rounded(part.weight.data)
        elif isinstance(part, nn.Embedding):
            part.register_forward_hook(
                lambda table, given, result: rounded(functional.embedding(*given, table.weight)) * table.embed_scale
            )


# ----------------------------------------------------------------------------------------------------------------------
# Ways to be wrong: each gives a patch


def places(port: Port, path: str) -> list[tuple[Any, str]]:
    """Objects and the attribute that a path of the port leads to, "*" being each of several."""
    *way, name = path.split(".")
    owners: list[Any] = [port]
    for step in way:
        owners = list(owners[0]) if step == "*" else [part_of(owner, step) for owner in owners]
    return [(owner, name) for owner in owners]


def part_of(owner: Any, step: str) -> Any:
    return owner[int(step)] if isinstance(owner, nn.ModuleList) else getattr(owner, step)


def made(path: str, make: Callable[[Port, Any], Any]) -> Patch:
    """Another value there, made of the port and the right value."""
    return lambda port: [(*place, make(port, getattr(*place))) for place in places(port, path)]


def put(path: str, value: Any) -> Patch:
    return made(path, lambda port, right: value)


def together(*patches: Patch) -> Patch:
    return lambda port: [change for patch in patches for change in patch(port)]


def swapped(first: str, second: str) -> Patch:
    """The values of two paths in each other's place."""

    def patch(port: Port) -> Iterator[Change]:
        for one, other in zip(places(port, first), places(port, second), strict=True):
            yield (*one, getattr(*other))
            yield (*other, getattr(*one))

    return patch


def without(*paths: str) -> Patch:
    """Nothing in place of these modules; a new nothing each time, so that trace can tell them apart."""
    return together(*(made(path, lambda port, right: nn.Identity()) for path in paths))


def window(of: Callable[[int], int]) -> Patch:
    """Another window of sliding layers, made of the right reach. transformers compares with "<" on both sides."""
    return made("config.sliding_window", lambda port, right: of(port.reach))


def overlay(of: Callable[..., Any]) -> Patch:
    """Another rule for whom a sliding layer sees besides the window's tokens before it: of(the right one, window)."""
    return made("gemma._bidirectional_window_overlay", lambda port, right: partial(of, right))


def masks(make: Callable[..., Any], *kinds: str) -> Patch:
    """Other masks of these kinds: make(the right maker, what it is given), (texts, 1, tokens, tokens)."""
    return together(*(made(f"gemma.{kind}", lambda port, right: partial(make, right)) for kind in kinds))


def kinds_of_layers(of: Callable[[list[str]], list[str]]) -> Patch:
    return made("config.layer_types", lambda port, right: of(list(right)))


def attention(attend: Callable[..., Any]) -> Patch:
    """Another attention between rotation and output: attend(the right one, module, query, key, value, mask, ...)."""
    return made("gemma.eager_attention_forward", lambda port, right: partial(attend, right))


def frequencies(**of: Callable[[Any], Tensor]) -> Patch:
    """Other rotary frequencies of full or sliding layers, made of the module that has the right ones."""
    path = "model.rotary_emb.{}_attention_inv_freq".format
    return together(*(made(path(kind), lambda port, _, of=of: of(port.model.rotary_emb)) for kind, of in of.items()))


def norms(forward: Callable[[Any, Tensor], Tensor]) -> Patch:
    """Every norm by another rule: forward(norm, x), in float32 as the right one."""
    return put("gemma.Gemma3RMSNorm.forward", lambda self, x: forward(self, x.float()).type_as(x))


def scaling(of: Callable[[Any], float]) -> Patch:
    """Another factor of the scores, made of the config."""
    return made("layers.*.self_attn.scaling", lambda port, right: of(port.config))


def embedding_scale(of: Callable[[int], float]) -> Patch:
    return made("model.embed_tokens.embed_scale", lambda port, right: torch.tensor(of(port.config.hidden_size)))


def dense(of: Callable[[nn.Linear, nn.Linear], nn.Module]) -> Patch:
    """Another head, made of the two right matrices."""
    return made("dense", lambda port, right: of(port.up, port.down))


def pooled(choose: Callable[[Tensor, int], Tensor]) -> Patch:
    """Another vector of the states (tokens, width) of each text, and of how many of them are its prompt's."""

    def pool(states: Tensor, mask: Tensor, prompts: list[int]) -> Tensor:
        rows = zip(states, mask.bool(), prompts, strict=True)
        return torch.stack([choose(one[real], prompt) for one, real, prompt in rows])

    return put("pool", pool)


def instead(prefix: str) -> Patch:
    return put("prompted", lambda text, task, title: prefix + text)


def prompt(make: Callable[[str, str, str | None], str]) -> Patch:
    """Something else to tokenise: make(text, its right prompt, task)."""
    return made("prompted", lambda port, right: lambda text, task, title: make(text, port.prefix(task, title), task))


def rewritten(change: Callable[[str], str]) -> Patch:
    """Each text changed before it is tokenised, prompt and all."""
    return made("tokenize", lambda port, right: lambda texts: right([change(text) for text in texts]))


def relabelled(change: Callable[[list[int], Any], list[int]]) -> Patch:
    """The ids of each text changed: change(ids, config)."""
    return made("tokenize", lambda port, right: lambda texts: [change(ids, port.config) for ids in right(texts)])


def template(single: str) -> Patch:
    """Other special tokens around the text, which is A. The tokenizer counts them when it cuts to the context."""

    def processor(port: Port, right: Any) -> TemplateProcessing:
        special = [(name, port.tokenizer.token_to_id(name)) for name in ("<bos>", "<eos>")]
        return TemplateProcessing(single=single, special_tokens=special)

    return made("tokenizer.post_processor", processor)


def cut(share: int = 1, **options: Any) -> Patch:
    """Cut at a share of the context, or otherwise."""
    return made("truncation", lambda port, right: {"max_length": right["max_length"] // share, **options})


# ----------------------------------------------------------------------------------------------------------------------
# What stands in the place of transformers' functions, and of the port's


def one_way(right: Any, or_mask_function: Any = None, **given: Any) -> Tensor:
    """A mask without the function that opens the other direction."""
    return right(**given)


def windowed(right: Any, config: Any, **given: Any) -> Tensor:
    given["or_mask_function"] = gemma._bidirectional_window_overlay(config.sliding_window)
    return gemma.create_sliding_window_causal_mask(config, **given)


def dropped(right: Any, attention_mask: Tensor, **given: Any) -> Tensor | None:
    """No mask for a batch without pads."""
    needless = len(attention_mask) > 1 and bool(attention_mask.all())
    return None if needless else right(attention_mask=attention_mask, **given)


def endless(right: Any, **given: Any) -> Tensor:
    """A mask of -inf where transformers has the lowest number, so that a row that sees nothing is 0/0."""
    mask = right(**given)
    return mask.masked_fill(mask < 0, -torch.inf)


def as_numbers(right: Any, attention_mask: Tensor, inputs_embeds: Tensor, **given: Any) -> Tensor:
    return attention_mask[:, None, None, :].to(inputs_embeds.dtype)


def pads_as_tokens(right: Any, attention_mask: Tensor, **given: Any) -> Tensor:
    return right(attention_mask=torch.ones_like(attention_mask), **given)


def mean_of_all(states: Tensor, mask: Tensor, prompts: list[int]) -> Tensor:
    return states.mean(1)


def unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors, dim=1)


def of_full(rotary: Any) -> Tensor:
    return rotary.full_attention_inv_freq


def of_sliding(rotary: Any) -> Tensor:
    return rotary.sliding_attention_inv_freq


def rotated_neighbours(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
    """Numbers 2k and 2k + 1 turned as a pair, in place of k and k + head/2."""
    cos, sin = (part[:, None, :, : part.shape[-1] // 2] for part in (cos, sin))
    pairs = [(x[..., 0::2], x[..., 1::2]) for x in (query, key)]
    return [torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2) for even, odd in pairs]


def late_norms(port: Port) -> list[Change]:
    """Query and key normed after the rotation."""
    right_norms = {layer.self_attn: (layer.self_attn.q_norm, layer.self_attn.k_norm) for layer in port.layers}

    def attend(right: Any, module: Any, query: Tensor, key: Tensor, *given: Any, **more: Any) -> Any:
        norm_query, norm_key = right_norms[module]
        return right(module, norm_query(query), norm_key(key), *given, **more)

    return [*DEFECTS["query-key-norm-missing"](port), *attention(attend)(port)]


def on_projected(port: Port, right: Any) -> Any:
    return lambda states, *given, dense=port.dense: right(dense(states), *given)


# ----------------------------------------------------------------------------------------------------------------------
# The catalogue's mistakes, by their ids in spec/defects.md

DIRECTION: dict[str, Patch] = {
    "causal": together(put("config.use_bidirectional_attention", False), window(lambda reach: 2 * reach)),
    "causal-sliding-layers": together(masks(one_way, SLIDING), window(lambda reach: 2 * reach)),
    "causal-full-layers": masks(one_way, FULL),
}
WINDOW: dict[str, Patch] = {
    "window-asymmetric": together(
        window(lambda reach: 2 * reach), overlay(lambda right, window: right(window // 2 + 1))
    ),
    "window-not-halved": window(lambda reach: 2 * reach),
    "window-ignored": overlay(lambda right, window: lambda *places: torch.tensor(True)),
    "window-short-on-the-left": together(
        window(lambda reach: reach), overlay(lambda right, w: lambda text, head, q, k: (q - k < w) & (k - q <= w))
    ),
    "window-one-short": window(lambda reach: reach),
    "window-one-long": window(lambda reach: reach + 2),
    "window-halved-1": window(lambda reach: reach // 2 + 1),
    "window-halved-2": window(lambda reach: reach // 4 + 1),
    "window-halved-3": window(lambda reach: reach // 8 + 1),
    "window-on-every-layer": masks(windowed, FULL),
    "mask-dropped-without-padding": masks(dropped, SLIDING),
    "layers-first-full": kinds_of_layers(lambda kinds: kinds[-1:] + kinds[:-1]),
    "layers-one-early": kinds_of_layers(lambda kinds: kinds[1:] + kinds[:1]),
    "layers-all-sliding": kinds_of_layers(lambda kinds: ["sliding_attention"] * len(kinds)),
    "layers-all-full": kinds_of_layers(lambda kinds: ["full_attention"] * len(kinds)),
}
PADDING: dict[str, Patch] = {
    "pads-make-nan": masks(endless, FULL, SLIDING),
    "mask-added-as-ones": masks(as_numbers, FULL, SLIDING),
    "pads-pooled": put("pool", mean_of_all),
    "pads-attended": masks(pads_as_tokens, FULL, SLIDING),
    "pads-are-text": together(masks(pads_as_tokens, FULL, SLIDING), put("pool", mean_of_all)),
}
HEAD: dict[str, Patch] = {
    "dense-missing": dense(lambda up, down: nn.Identity()),
    "dense-first-only": dense(lambda up, down: up),
    "dense-swapped": dense(lambda up, down: nn.Sequential(matrix(down.weight.T), matrix(up.weight.T))),
    "dense-twice": dense(lambda up, down: nn.Sequential(up, down, up, down)),
    "dense-tanh": dense(lambda up, down: nn.Sequential(up, nn.Tanh(), down)),
    "pool-last": pooled(lambda states, prompt: states[-1]),
    "pool-first": pooled(lambda states, prompt: states[0]),
    "pool-max": pooled(lambda states, prompt: states.amax(0)),
    "pool-without-bos": pooled(lambda states, prompt: states[1:].mean(0)),
    "pool-without-eos": pooled(lambda states, prompt: states[:-1].mean(0)),
    "pool-without-specials": pooled(lambda states, prompt: states[1 : max(2, len(states) - 1)].mean(0)),
    "pool-without-prompt": pooled(lambda states, prompt: states[prompt:].mean(0)),
    "truncated-not-normalised": put("finish", lambda raw, dimensions: unit(raw)[:, :dimensions]),
    "not-normalised": put("finish", lambda raw, dimensions: raw[:, :dimensions]),
    "truncated-at-the-end": put("finish", lambda raw, dimensions: unit(raw[:, -dimensions:])),
}
PROMPT: dict[str, Patch] = {
    "prompt-missing": instead(""),
    "prompt-e5": prompt(lambda text, right, task: ("passage: " if task == "document" else "query: ") + text),
    "prompt-query-everywhere": instead(query_prompt("query")),
    "prompt-document-everywhere": instead("title: none | text: "),
    "prompt-similarity-everywhere": instead(query_prompt("sentence similarity")),
    "prompt-without-title": prompt(lambda text, right, task: ("text: " if task == "document" else right) + text),
    "prompt-without-space": prompt(lambda text, right, task: right.rstrip() + text),
    "prompt-capitalised": prompt(
        lambda text, right, task: re.sub(r"\b(task|query|title|text):", lambda word: word[0].title(), right) + text
    ),
    "prompt-twice": prompt(lambda text, right, task: right + right + text),
    "chat-template": rewritten(lambda text: f"<start_of_turn>user\n{text}<end_of_turn>\n"),
}
TOKENS: dict[str, Patch] = {
    "bos-missing": template("$A <eos>"),
    "eos-missing": template("<bos> $A"),
    "specials-missing": template("$A"),
    "bos-eos-swapped": template("<eos> $A <bos>"),
    "bos-twice": template("<bos> <bos> $A <eos>"),
    "eos-twice": template("<bos> $A <eos> <eos>"),
    "ids-off-by-one": relabelled(
        lambda ids, config: [ids[0], *(min(id + 1, config.vocab_size - 1) for id in ids[1:-1]), ids[-1]]
    ),
    "text-stripped": rewritten(str.strip),
    "spaces-collapsed": rewritten(lambda text: re.sub(r"\s{2,}", " ", text)),
    "newlines-lost": rewritten(lambda text: text.replace("\n", " ")),
    "leading-space-added": rewritten(lambda text: " " + text),
    "lower-cased": rewritten(str.lower),
    "unicode-composed": rewritten(lambda text: unicodedata.normalize("NFKC", text)),
    "special-tokens-as-text": put("tokenizer.encode_special_tokens", True),
    "cut-at-an-eighth": cut(8),
    "cut-at-a-quarter": cut(4),
    "cut-at-a-half": cut(2),
    "cut-without-eos": together(
        cut(max_length=2**20), relabelled(lambda ids, config: ids[: config.max_position_embeddings])
    ),
    "cut-at-the-start": cut(direction="left"),
}
ARITHMETIC: dict[str, Patch] = {
    "rotary-sliding-base-everywhere": frequencies(full=of_sliding),
    "rotary-full-base-everywhere": frequencies(sliding=of_full),
    "rotary-bases-swapped": frequencies(full=of_sliding, sliding=of_full),
    "rotary-scaled": frequencies(full=lambda rotary: of_full(rotary) / 8),
    "rotary-interleaved": put("gemma.apply_rotary_pos_emb", rotated_neighbours),
    "rotary-missing": put("gemma.apply_rotary_pos_emb", lambda query, key, cos, sin: (query, key)),
    "norm-offset-missing": norms(lambda norm, x: norm._norm(x) * norm.weight.float()),
    "norm-offset-twice": norms(lambda norm, x: norm._norm(x) * (2 + norm.weight.float())),
    "norm-centred": norms(lambda norm, x: norm._norm(x - x.mean(-1, keepdim=True)) * (1 + norm.weight.float())),
    "norm-final-missing": without("model.norm"),
    "norm-post-missing": without("layers.*.post_attention_layernorm", "layers.*.post_feedforward_layernorm"),
    "query-key-norm-missing": without("layers.*.self_attn.q_norm", "layers.*.self_attn.k_norm"),
    "query-key-norm-late": late_norms,
    "embedding-scale-missing": embedding_scale(lambda width: 1.0),
    # nothing in bfloat16, in which transformers rounds it itself
    "embedding-scale-rounded": embedding_scale(lambda width: torch.tensor(width**0.5).bfloat16().item()),
    "embedding-scale-twice": embedding_scale(lambda width: float(width)),
    "gelu-exact": put("layers.*.mlp.act_fn", nn.GELU()),
    "gelu-is-silu": put("layers.*.mlp.act_fn", nn.SiLU()),
    "gelu-is-relu": put("layers.*.mlp.act_fn", nn.ReLU()),
    "gate-and-up-swapped": swapped("layers.*.mlp.gate_proj", "layers.*.mlp.up_proj"),
    "scores-capped": attention(lambda right, *given, **more: right(*given, softcap=50.0, **more)),
    "scores-scaled-by-width": scaling(lambda config: config.hidden_size**-0.5),
    "scores-not-scaled": scaling(lambda config: 1.0),
}
BACKENDS: dict[str, Patch] = {"zeros": put("finish", lambda raw, dimensions: torch.zeros_like(raw[:, :dimensions]))}
DEFECTS = DIRECTION | WINDOW | PADDING | HEAD | PROMPT | TOKENS | ARITHMETIC | BACKENDS

# Changes that alter nothing but rounding
CONTROLS: dict[str, Patch] = {
    "dense-before-mean": together(made("pool", on_projected), without("dense")),
    "sum-in-place-of-mean": pooled(lambda states, prompt: states.sum(0)),
    "scale-by-width-over-heads": scaling(lambda config: (config.hidden_size / config.num_attention_heads) ** -0.5),
    "normalised-first": put("finish", lambda raw, dimensions: unit(unit(raw)[:, :dimensions])),
    "constant-on-every-score": attention(lambda right, *given, **more: right(*given[:4], given[4] + 1, **more)),
}


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes that the catalogue does not know


def exchanged(port: Port, right: Any) -> nn.ModuleList:
    first, second, third, fourth, *rest = right
    return nn.ModuleList([first, fourth, third, second, *rest])


def one_head_causal(right: Any, module: Any, query: Tensor, *given: Any, **more: Any) -> Any:
    key, value, mask = given
    ahead = torch.ones(mask.shape[-2:], dtype=torch.bool).triu(1)
    mask = mask.repeat(1, query.shape[1], 1, 1)
    mask[:, 0].masked_fill_(ahead, torch.finfo(mask.dtype).min)
    return right(module, query, key, value, mask, **more)


def with_sink(right: Any, module: Any, query: Tensor, *given: Any, **more: Any) -> Any:
    """One more key, of zeros, that takes its share of the weights and gives nothing."""
    key, value, mask = given
    key, value = (functional.pad(part, (0, 0, 0, 1)) for part in (key, value))
    return right(module, query, key, value, functional.pad(mask, (0, 1)), **more)


def longest_first(port: Port, right: Any) -> Any:
    """Sorted for padding's sake, and never put back."""
    order_of = partial(sorted, key=len, reverse=True)
    return lambda texts, *given: right(order_of(texts), *given)


def weighted(states: Tensor, prompt: int) -> Tensor:
    place = torch.arange(1, len(states) + 1, dtype=states.dtype)[:, None]
    return (states * place).sum(0) / place.sum()


def bare(text: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFD", text) if not unicodedata.combining(letter))


def one_negated(port: Port, right: Tensor) -> Tensor:
    return torch.cat([right[:7], -right[7:8], right[8:]])


def rolled(port: Port, right: Tensor) -> Tensor:
    return right.roll(port.config.head_dim, dims=1)


def with_epsilon(norm: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * (1 + norm.weight.float())


def in_127ths(raw: Tensor, dimensions: int) -> Tensor:
    return (unit(raw[:, :dimensions]) * 127).round() / 127


KEY, VALUE, OUT = (f"layers.*.self_attn.{letter}_proj" for letter in "kvo")
QUERY_NORM, KEY_NORM = (f"layers.*.self_attn.{letter}_norm" for letter in "qk")
BEFORE, BEHIND = "layers.*.input_layernorm", "layers.*.post_attention_layernorm"
ROTATE = "gemma.apply_rotary_pos_emb"
OTHERS: dict[str, tuple[str, Patch]] = {
    "layer-skipped": ("layer 3 is left out", put("layers.3.forward", lambda x, **given: x)),
    "layer-last-skipped": ("the last layer is left out", put("layers.-1.forward", lambda x, **given: x)),
    "layers-swapped": ("layers 1 and 3 stand in each other's place", made("model.layers", exchanged)),
    "residual-missing": (
        "layer 2 gives its updates without the residual stream",
        made("layers.2.forward", lambda port, right: lambda x, **given: right(x, **given) - x),
    ),
    "residual-grows": (
        "the residual stream grows by a hundredth before each layer",
        made("layers.*.forward", lambda port, right: lambda x, **given: right(x * 1.01, **given)),
    ),
    "key-and-value-swapped": ("key's and value's matrices are swapped", swapped(KEY, VALUE)),
    "query-and-key-norm-swapped": ("query's and key's norms are swapped", swapped(QUERY_NORM, KEY_NORM)),
    "norms-swapped": ("the norms before and behind attention are swapped", swapped(BEFORE, BEHIND)),
    "epsilon-a-thousand-times": ("every norm adds 1e-3 to the mean square", norms(with_epsilon)),
    "quick-gelu": ("the activation is x sigmoid(1.702 x)", put("layers.*.mlp.act_fn", ACT2FN["quick_gelu"])),
    "heads-in-another-order": ("heads are merged in another order", made(f"{OUT}.weight.data", rolled)),
    "head-causal": ("the first head of every layer is causal", attention(one_head_causal)),
    "softmax-with-sink": ("one is added to softmax's denominator", attention(with_sink)),
    "positions-doubled": (
        "positions count by two",
        frequencies(full=lambda rotary: 2 * of_full(rotary), sliding=lambda rotary: 2 * of_sliding(rotary)),
    ),
    "keys-not-rotated": (
        "queries are rotated, and keys are not",
        made(ROTATE, lambda port, right: lambda query, key, *given: (right(query, key, *given)[0], key)),
    ),
    "mean-weighted-by-place": ("later tokens weigh more in the mean", pooled(weighted)),
    "dense-permuted": (
        "the rows of the first dense matrix are in another order",
        made("up.weight.data", lambda port, right: right.flip(0)),
    ),
    "dense-row-negated": ("a row of the second dense matrix is negated", made("down.weight.data", one_negated)),
    "dense-gelu": ("GELU between the dense matrices", dense(lambda up, down: nn.Sequential(up, nn.GELU(), down))),
    "order-by-length": ("vectors come back with the longest text first", made("embed", longest_first)),
    "accents-lost": ("accents are taken off the letters", rewritten(bare)),
    "prompt-behind": ("the prompt stands behind the text", prompt(lambda text, right, task: text + right)),
    "vectors-in-int8": ("vectors are rounded to 127ths", put("finish", in_127ths)),
    # near relatives of the catalogue's
    "rotary-scaled-by-4": (
        "full layers' positions are divided by 4",
        frequencies(full=lambda rotary: of_full(rotary) / 4),
    ),
    "dense-softsign": (
        "softsign between the dense matrices",
        dense(lambda up, down: nn.Sequential(up, nn.Softsign(), down)),
    ),
    "window-of-three-quarters": ("the window reaches three quarters as far", window(lambda reach: reach * 3 // 4 + 1)),
}
KNOWN: dict[str, Patch] = DEFECTS | CONTROLS | {id: patch for id, (_, patch) in OTHERS.items()}


# ----------------------------------------------------------------------------------------------------------------------
# The protocol of spec/protocol.md


def answer(port: Port, request: dict[str, Any], defect: str) -> dict[str, Any]:
    match request["call"]:
        case "start":
            made = request.get("defect", defect)
            port.make(made.split("+") if made else [])
            return {"name": f"transformers {made}".strip(), "can": ["embed", "tokenize", "trace", "prompts"]}
        case "tokenize":
            return {"ids": port.tokenize(request["texts"])}
        case "embed":
            dimensions = request.get("dimensions") or port.down.out_features
            if "plain" in request:
                return {"vectors": port.embed_plain(request["plain"], dimensions).tolist()}
            return {"vectors": port.embed(request["texts"], [0] * len(request["texts"]), dimensions).tolist()}
        case "trace":
            stages = port.trace(request["text"])
            return {"stages": {name: stages[name] for name in request["stages"] if name in stages}}
    raise ValueError(f"no call {request['call']!r}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("checkpoint", nargs="?", type=Path)
    arguments.add_argument("--defect", default="", metavar="ID[+ID...]")
    arguments.add_argument("--precision", default="float32", choices=PRECISIONS)
    arguments.add_argument("--list", action="store_true", help="print the ids of all mistakes")
    given = arguments.parse_args()
    if given.list:
        others = {id: what for id, (what, _) in OTHERS.items()}
        print(json.dumps({"defects": list(DEFECTS), "controls": list(CONTROLS), "others": others}))
        return
    if given.checkpoint is None or any(id not in KNOWN for id in given.defect.split("+") if given.defect):
        arguments.error("a checkpoint folder is needed, and mistakes that --list has")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    port = Port(given.checkpoint, given.precision)
    for line in iter(sys.stdin.readline, ""):
        try:
            request = json.loads(line)
            if request["call"] == "stop":
                break
            said = answer(port, request, given.defect)
        except Exception as error:
            said = {"error": repr(error)}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
