"""what happens to a text, stage by stage

Prints the tokens and their ids, then the shape and the norm of every named intermediate tensor. The NumPy backend,
which has all of them, is taken unless another is named.

  refembed inspect "Mars is red." --task query
"""

import argparse

import numpy as np

from .shared import add_model_options, load_model, prompt_options


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("text", metavar="TEXT")
    prompts = command.add_mutually_exclusive_group()
    prompts.add_argument("--task", metavar="T", help="whose prompt goes before the text (document); none for no prompt")
    prompts.add_argument("--prompt", metavar="P", help="your own words before the text")
    add_model_options(command)


def run(given: argparse.Namespace) -> int:
    given.backend = given.backend or "numpy"  # others never compute some of the tensors
    model = load_model(given)
    (ids,) = model.prepare([given.text], **prompt_options(given, "document"))
    if isinstance(ids, Exception):
        raise ids
    print(f"model {model.name}, backend {model.backend.name}, precision {model.encoder.precision}")
    print(f"\n{len(ids)} tokens\n{'place':>5}  {'id':>6}  token")
    for place, (id, piece) in enumerate(zip(ids, model.tokenizer.pieces(ids), strict=True)):
        print(f"{place:5}  {id:6}  {piece!r}")
    print(f"\n{'stage':<32}  {'shape':<16}  {'norm':>12}  {'largest':>12}")
    for name, tensor in model.encoder.trace(ids).items():
        norm, largest = np.linalg.norm(tensor.astype(np.float64)), np.abs(tensor).max()
        print(f"{name:<32}  {'x'.join(map(str, tensor.shape)):<16}  {norm:12.6g}  {largest:12.6g}")
    return 0
