"""A checkpoint ready to encode: lists of ids in, unit vectors out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refembed.checkpoint import Checkpoint

from .attention import choose_way
from .forward import PLAIN, Setup, compiled_engine, embed, gather, unit
from .packing import pack, passes
from .parameters import StoredParameters, best_device, float_type
from .precision import exact_products, using_threads

TOKENS_A_PASS = {"cpu": 1024, "cuda": 32_768}  # unless one text has more: what stays in caches, what fills a device


class TorchEncoder:
    """The model in float32 or bfloat16, on one device.

    way         of attention that was taken; why_way: what kept faster ones from being taken
    compiling   let torch.compile make the layers: about a minute once
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: str,
        threads: int | None,
        *,
        device: torch.device | None = None,
        compiling: bool = False,
    ) -> None:
        self.precision, self.config = precision, checkpoint.config
        self.threads = threads or torch.get_num_threads()
        self.device = device or best_device()
        self.tokens_at_once = TOKENS_A_PASS.get(self.device.type, TOKENS_A_PASS["cpu"])
        dtype = float_type(precision)
        with torch.inference_mode(), using_threads(self.threads):
            self.weights = gather(StoredParameters(checkpoint), self.config, dtype, self.device)
            if self.device.type != "cpu":
                self.weights = self.weights._replace(table=self.weights.table.to(self.device, dtype))
        self.way, self.why_way = choose_way(self.config, self.device, dtype, compiling, False)
        self.setup = Setup(self.config, dtype, self.way, compiled_engine() if compiling else PLAIN)

    def encode(self, batch: Sequence[NDArray[Any]]) -> NDArray[Any]:
        order: list[int] = []
        found = [torch.empty(0, self.config.dimensions, device=self.device)]
        with torch.inference_mode(), using_threads(self.threads), exact_products():
            for indices in passes([len(ids) for ids in batch], self.tokens_at_once):
                texts = pack([batch[index] for index in indices], self.device)
                found.append(unit(embed(texts, self.weights, self.setup)))
                order += indices
            rows = torch.cat(found).cpu().numpy()  # waits for the device once
        vectors = np.empty_like(rows)
        vectors[order] = rows
        return vectors

    def trace(self, ids: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Every tensor that exists here; attention's scores and weights do not."""
        kept: dict[str, NDArray[Any]] = {"tokens": ids}

        def keep(name: str, tensor: Tensor) -> None:
            tensor = tensor.swapaxes(0, 1) if tensor.ndim == 3 else tensor  # (heads, tokens, head)
            tensor = tensor[0] if name in OF_A_TEXT else tensor
            kept[name] = tensor.float().cpu().numpy().copy()

        with torch.inference_mode(), using_threads(self.threads), exact_products():
            plain = self.setup._replace(engine=PLAIN)
            keep("embedding", unit(embed(pack([ids], self.device), self.weights, plain, keep)))
        return kept


OF_A_TEXT = ("pooled", "projected_up", "projected", "embedding")  # rows of a batch of one
