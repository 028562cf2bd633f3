"""a model's weights in 8 or 4 bits, as a smaller checkpoint folder

  int8-block      8 bits, a scale for each 32 numbers: a quarter of float32
  int4-block      4 bits, a scale for each 32 numbers: a seventh
  mixed-channel   attention in 8 bits, the rest in 4, a scale for each row: a seventh

Every backend reads the folder. With --calibrate the weights are rounded for the texts of a file, which keeps the most:
give 32,768 tokens, more are not used, nor more than 512 of one text, of what the model will read, in every language it
will read; it takes minutes.
spec/09-quantised-weights.md of the source distribution defines forms and methods.

  refembed quantize ~/embeddinggemma-300m ~/embeddinggemma-300m-int8 --format int8-block
  refembed quantize ~/embeddinggemma-300m ~/embeddinggemma-300m-int4 --format int4-block --calibrate texts.jsonl
  refembed embed "a text" --model ~/embeddinggemma-300m-int8
"""

import argparse
import sys
from pathlib import Path

from ..hub import find_folder
from ..layout import check_new
from ..quantization.calibrate import calibrate
from ..quantization.folder import plain, quantize_folder
from ..quantization.scales import least_error
from ..quantization.texts import MOST_TOKENS, calibration_texts
from ..reference.quantize import FORMS

SCALES = {"least-error": least_error, "largest": plain}


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="IN", help="a folder of float weights, or a hub id")
    command.add_argument("out", metavar="OUT", help="a new folder")
    command.add_argument("--format", choices=FORMS, required=True, help="of the matrices; norm weights stay floats")

    how = command.add_mutually_exclusive_group()
    how.add_argument(
        "--scales",
        choices=SCALES,
        default="least-error",
        help="of plain rounding: with the least squared error, or of the largest magnitude, for models trained with it "
        "(least-error)",
    )
    how.add_argument(
        "--calibrate", metavar="FILE", help="round for these texts: .txt (a line a text), .jsonl (key text), either .gz"
    )


def run(given: argparse.Namespace) -> int:
    folder, out = find_folder(given.model), Path(given.out)
    if given.calibrate is None:
        quantize_folder(folder, out, given.format, SCALES[given.scales])
    else:
        check_new(out)
        batch = calibration_texts(folder, given.calibrate)
        tokens = sum(map(len, batch))
        if tokens < MOST_TOKENS // 4:
            print(f"warning: {tokens} tokens are few to calibrate on; plain rounding may lose less", file=sys.stderr)
        found = calibrate(folder, given.format, batch, show_progress=True)
        quantize_folder(folder, out, given.format, found.rounding, found.norms)
        print(f"calibrated on {len(batch)} texts, {tokens} tokens", file=sys.stderr)
    size = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    print(f"{given.out}: {given.format}, weights {size / 1e6:.1f} MB", file=sys.stderr)
    return 0
