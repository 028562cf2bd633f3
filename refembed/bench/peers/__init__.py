"""What refembed can be measured against. Each adapter's load(spec) gives a function from texts to unit vectors."""

from typing import NamedTuple


class Peer(NamedTuple):
    """module: its adapter here; file: what PATH must be, if anything; note: what to know of its figures.

    trains: it has training(spec, columns) too, and can be on the device that refembed is on.
    """

    module: str
    file: str = ""
    note: str = ""
    trains: bool = False


ONNX = "an ONNX encoder: input_ids, attention_mask -> last hidden state"
PEERS = {
    "sentence-transformers": Peer("sentence_transformers", trains=True),
    "onnxruntime": Peer("onnxruntime", ONNX),
    "openvino": Peer("openvino", ONNX),
    "openvino-int8": Peer("openvino", ONNX, "start: compressing the weights included"),
    "llama.cpp": Peer("llama_cpp", "a GGUF file", "by llama-bench, which takes no texts: tokenising left out"),
}
