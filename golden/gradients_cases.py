"""Write golden/gradients: two numbers of every parameter's gradient. Run: python golden/gradients_cases.py

From the reference in float64; nothing is written where PyTorch's autograd through transformers' model is further than
1e-12 of a gradient's length away, or where float32 uses more than a quarter of the bound in either.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import torch
from losses_cases import write

from refembed.checkpoint import DENSE
from refembed.conformance.gradients import BOUND, Texts, reference_answer, texts_of, two_numbers

TARGET = Path(__file__).parent / "gradients"
ATTENTION = ("pooling.query", "pooling.key.weight", "pooling.value.weight")
CASES: list[dict[str, Any]] = [
    {"id": "two-texts", "why": "<pad>, and tokens beyond the window", "pooler": "mean"},
    {"id": "first-pooler", "why": "all of a text's gradient through its first token", "pooler": "first"},
    {"id": "last-pooler", "why": "all of a text's gradient through its last token", "pooler": "last"},
    {"id": "attention-pooler", "why": "a learned query, its keys and values", "pooler": "attention"},
]
TEXTS = ["length-reach-plus-two", "text-special-pad"]


def pooling_parameters(width: int) -> dict[str, np.ndarray[Any, Any]]:
    """Multiples of 1/256, which are short to write and exact in every float."""
    random = np.random.default_rng(11)
    shapes = zip(ATTENTION, ((1, width), (width, width), (width, width)), strict=True)
    return {name: (np.round(random.normal(0, 0.2, shape) * 256) / 256).astype(np.float32) for name, shape in shapes}


def pooled(states: torch.Tensor, texts: Texts, pooling: dict[str, torch.Tensor]) -> torch.Tensor:
    """(width,): by PyTorch's own attention where the pooler is one."""
    if texts.config.pooler != "attention":
        return {"mean": states.mean(0), "first": states[0], "last": states[-1]}[texts.config.pooler]
    query, key, value = (pooling[name] for name in ATTENTION)
    heads = [one.unflatten(-1, (4, -1)).transpose(0, 1) for one in (query, states @ key.T, states @ value.T)]
    return torch.nn.functional.scaled_dot_product_attention(*heads).flatten()  # (4, 1, width/4), head after head


def autograd(texts: Texts, number: torch.dtype) -> np.ndarray[Any, Any]:
    """The same by PyTorch, through transformers' encoder."""
    theirs = oracle.Oracle(texts.checkpoint.folder, number)
    theirs.model.embed_tokens.padding_idx = None  # or the row of <pad> would get no gradient
    up, down = (matrix.requires_grad_() for matrix in theirs.dense)
    pooling = {name: torch.from_numpy(one).to(number).requires_grad_() for name, one in texts.pooling.items()}
    for ids, row in zip(texts.ids, texts.upstream, strict=True):
        states = theirs.model(input_ids=torch.from_numpy(ids)[None], use_cache=False).last_hidden_state[0]
        vector = torch.nn.functional.normalize(pooled(states, texts, pooling) @ up.T @ down.T, dim=0)
        (vector @ torch.from_numpy(row).to(number)).backward()
    tensors = dict(theirs.model.named_parameters()) | pooling
    tensors |= {f"{name}.linear.weight": matrix for name, matrix in zip(DENSE, (up, down), strict=True)}
    return two_numbers({name: tensors[name].grad.numpy() for name in texts.names})


def truth(texts: Texts) -> np.ndarray[Any, Any]:
    true = reference_answer(texts, np.float64)
    with oracle.float64_everywhere():
        found = [autograd(texts, torch.float64)]
    found += [reference_answer(texts, np.float32), autograd(texts, torch.float32)]
    agreed, *single = (np.max(np.abs(one - true) / true[:, :1]) for one in found)
    print(texts.config.pooler, agreed, *single)
    if agreed > 1e-12 or 4 * max(single) > BOUND:
        sys.exit("they disagree, nothing written")
    return true.astype(np.float32)


def main() -> None:
    checkpoint = texts_of(TEXTS).checkpoint
    stored = pooling_parameters(checkpoint.config.width)
    lines = []
    for case in CASES:
        pooling = {name: stored[name] for name in ATTENTION if case["pooler"] == "attention"}
        stored[case["id"]] = truth(texts_of(TEXTS, case["pooler"], pooling))
        lines.append(json.dumps(case | {"texts": TEXTS, "parameters": list(pooling), "bound": BOUND}))
    write(TARGET, stored, {"checkpoint": checkpoint.digest}, lines)


if __name__ == "__main__":
    main()
