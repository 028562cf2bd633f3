"""OpenVINO on an exported encoder. --against openvino=FILE.onnx, and openvino-int8=FILE.onnx for int8 weights

int8 activations share a scale within groups of 32: with larger ones the vectors are no longer those of the model.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from ..padded import padded_encoder


def load(spec: dict[str, Any]) -> Callable[[list[str]], NDArray[Any]]:
    core = import_module("openvino").Core()
    graph = core.read_model(spec["path"])
    settings = {
        "INFERENCE_NUM_THREADS": spec["threads"],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if spec["kind"] == "openvino-int8":
        library = import_module("nncf")
        graph = library.compress_weights(graph, mode=library.CompressWeightsMode.INT8_SYM)
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "32"
    request = core.compile_model(graph, "CPU", settings).create_infer_request()
    return padded_encoder(spec["model"], lambda ids, mask: request.infer({"input_ids": ids, "attention_mask": mask})[0])
