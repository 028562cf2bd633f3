"""ONNX Runtime on an exported encoder. --against onnxruntime=FILE.onnx"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from ..padded import padded_encoder


def load(spec: dict[str, Any]) -> Callable[[list[str]], NDArray[Any]]:
    library = import_module("onnxruntime")
    options = library.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    session = library.InferenceSession(spec["path"], options, providers=["CPUExecutionProvider"])
    return padded_encoder(
        spec["model"], lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    )
