"""what happens to a text, stage by stage

Prints the tokens and their ids, then the shape and the norm of every named intermediate tensor. The NumPy backend,
which has all of them, is taken unless another is named. With --html it writes a page to look around in instead: what
each token adds to the vector, what each head reads, norms by layer, and the texts of --with beside it.

  refembed inspect "Mars is red." --task query
  refembed inspect "Which planet is red?" --task query --with "Mars is red." --with "Venus is hot." --html page.html
"""

import argparse

import numpy as np

from ..embedder import Embedder
from ..errors import RefembedError
from ..output import check_output, open_output
from .shared import add_model_options, load_model, prompt_options


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("text", metavar="TEXT")
    prompts = command.add_mutually_exclusive_group()
    prompts.add_argument("--task", metavar="T", help="whose prompt goes before the text (document); none for no prompt")
    prompts.add_argument("--prompt", metavar="P", help="your own words before the text")
    command.add_argument("--title", metavar="T", help="the text's title, where it is a document")
    page = command.add_argument_group("page")
    page.add_argument("--html", metavar="FILE", help="write a page to open in a browser, all in one file")
    page.add_argument(
        "--with",
        metavar="TEXT",
        dest="others",
        action="append",
        default=[],
        help="a text to compare with on the page (may be given several times): a document where TEXT is a query, "
        "else with TEXT's prompt",
    )
    add_model_options(command)


def run(given: argparse.Namespace) -> int:
    given.backend = given.backend or "numpy"  # others never compute some of the tensors
    if given.others and given.html is None:
        raise RefembedError("option-input", "--with compares on a page: name its file with --html FILE")
    check_output(given.html)
    model = load_model(given)
    return print_stages(model, given) if given.html is None else write_page(model, given)


def print_stages(model: Embedder, given: argparse.Namespace) -> int:
    titles = None if given.title is None else [given.title]
    (ids,) = model.prepare([given.text], titles=titles, **prompt_options(given, "document"))
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


def write_page(model: Embedder, given: argparse.Namespace) -> int:
    from ..inspection import build_page, read_texts

    reading = read_texts(model, given.text, given.others, title=given.title, **prompt_options(given, "document"))
    page = build_page(reading).encode()
    with open_output(given.html) as handle:
        handle.write(page)
    if given.html != "-":
        print(f"{given.html}: {len(reading['texts'][0]['ids'])} tokens, {len(page) / 1e6:.1f} MB; open it in a browser")
    return 0
