"""a model's weights in 8 or 4 bits, as a smaller checkpoint folder

  int8-block      8 bits, a scale for each 32 numbers: a quarter of float32
  int4-block      4 bits, a scale for each 32 numbers: a seventh
  mixed-channel   attention in 8 bits, the rest in 4, a scale for each row: a seventh

Every backend reads the folder. spec/09-quantised-weights.md of the source distribution defines the forms.

  refembed quantize ~/embeddinggemma-300m ~/embeddinggemma-300m-int8 --format int8-block
  refembed embed "a text" --model ~/embeddinggemma-300m-int8
"""

import argparse
import sys
from pathlib import Path

from ..hub import find_folder
from ..quantization.folder import quantize_folder
from ..reference.quantize import FORMS


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="IN", help="a folder of float weights, or a hub id")
    command.add_argument("out", metavar="OUT", help="a new folder")
    command.add_argument("--format", choices=FORMS, required=True, help="of the matrices; norm weights stay floats")


def run(given: argparse.Namespace) -> int:
    quantize_folder(find_folder(given.model), Path(given.out), given.format)
    size = sum(file.stat().st_size for file in Path(given.out).rglob("*.safetensors"))
    print(f"{given.out}: {given.format}, weights {size / 1e6:.1f} MB", file=sys.stderr)
    return 0
