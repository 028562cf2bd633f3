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
from refembed.reference import parameter_shapes

TARGET = Path(__file__).parent / "gradients"
CASE = {
    "id": "two-texts",
    "why": "<pad>, and tokens beyond the window",
    "texts": ["length-reach-plus-two", "text-special-pad"],
}


def autograd(texts: Texts, number: torch.dtype) -> np.ndarray[Any, Any]:
    """The same by PyTorch, through transformers' encoder."""
    theirs = oracle.Oracle(texts.checkpoint.folder, number)
    theirs.model.embed_tokens.padding_idx = None  # or the row of <pad> would get no gradient
    up, down = (matrix.requires_grad_() for matrix in theirs.dense)
    for ids, row in zip(texts.ids, texts.upstream, strict=True):
        states = theirs.model(input_ids=torch.from_numpy(ids)[None], use_cache=False).last_hidden_state[0]
        vector = torch.nn.functional.normalize(states.mean(0) @ up.T @ down.T, dim=0)
        (vector @ torch.from_numpy(row).to(number)).backward()
    tensors = dict(theirs.model.named_parameters())
    tensors |= {f"{name}.linear.weight": matrix for name, matrix in zip(DENSE, (up, down), strict=True)}
    return two_numbers({name: tensors[name].grad.numpy() for name in parameter_shapes(texts.checkpoint.config)})


def main() -> None:
    texts = texts_of(CASE["texts"])
    true = reference_answer(texts, np.float64)
    with oracle.float64_everywhere():
        found = [autograd(texts, torch.float64)]
    found += [reference_answer(texts, np.float32), autograd(texts, torch.float32)]
    agreed, *single = (np.max(np.abs(one - true) / true[:, :1]) for one in found)
    print(agreed, *single)
    if agreed > 1e-12 or 4 * max(single) > BOUND:
        sys.exit("they disagree, nothing written")
    stored, more = {CASE["id"]: true.astype(np.float32)}, {"checkpoint": texts.checkpoint.digest}
    write(TARGET, stored, more, [json.dumps(CASE | {"bound": BOUND})])


if __name__ == "__main__":
    main()
