"""The model as a PyTorch module, for training: its parameters have the checkpoint's own names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refembed.checkpoint import TABLE, WEIGHTS, open_checkpoint
from refembed.errors import RefembedError
from refembed.reference import Config, parameter_shapes
from refembed.stored import not_finite

from .attention import choose_way
from .forward import PLAIN, Setup, Weights, compiled_engine, embed, gather, unit
from .packing import check_texts, pack
from .parameters import StoredParameters, best_device, float_type
from .quantization import check_form, fake_quantized, fake_quantized_rows


class Trained(nn.Module):
    """What a model to be trained has: parameters in float32, whatever they are computed in, and a way of attention.

    shapes     of the parameters by dotted names
    why_ways   what kept faster ways of attention from being taken, by device
    """

    def __init__(
        self,
        config: Config,
        shapes: Mapping[str, tuple[int, ...]],
        precision: str = "float32",
        checkpointing: bool = False,
        compiling: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.precision, self.dtype = config, precision, float_type(precision)
        self.checkpointing, self.compiling = checkpointing, compiling
        self.ways: dict[torch.device, str] = {}
        self.why_ways: dict[torch.device, str] = {}
        for name, shape in shapes.items():
            *path, last = name.split(".")
            owner: nn.Module = self
            for step in path:
                if step not in owner._modules:
                    owner.add_module(step, nn.Module())
                owner = owner.get_submodule(step)
            owner.register_parameter(last, nn.Parameter(torch.empty(shape)))

    @property
    def device(self) -> torch.device:
        return self.get_parameter(TABLE).device

    def setup(self) -> Setup:
        """How it is computed on its device; the first time, every way of attention is tried there."""
        device = self.device
        if device not in self.ways:
            found = choose_way(self.config, device, self.dtype, self.compiling, True)
            self.ways[device], self.why_ways[device] = found
        engine = compiled_engine() if self.compiling else PLAIN
        return Setup(self.config, self.dtype, self.ways[device], engine, self.checkpointing)


class TorchModel(Trained):
    """Token ids to raw vectors, (texts, dimensions) as the dense head gives them.

    Parameters are kept in float32, whatever they are computed in: an optimizer's small steps would be lost in bfloat16.
    Make one by load_model, or by random_model where there is no checkpoint.

    source         the folder it was read from, whose tokenizer it goes with
    ways           of attention that were taken, by device; why_ways: what kept faster ones from being taken
    quantization   the form (reference.quantize.FORMS) that weights are rounded to wherever they are used, while the
                   parameters stay whole: quantisation-aware training. None: no rounding. May be changed at any time
    """

    def __init__(
        self,
        config: Config,
        precision: str = "float32",
        *,
        compiling: bool = False,
        checkpointing: bool = False,
        quantization: str | None = None,
        source: Path | None = None,
    ) -> None:
        if quantization:
            check_form(quantization, trained_shapes(config))
        super().__init__(config, trained_shapes(config), precision, checkpointing, compiling)
        self.source, self.quantization = source, quantization

    def forward(self, texts: Sequence[NDArray[Any] | Tensor]) -> Tensor:
        """Raw vectors (texts, dimensions) of id arrays (tokens_i,), which the losses normalise themselves.

        Raises RefembedError where an array is empty, longer than the context, or holds no ids of this model.
        """
        check_texts(texts, self.config)
        return embed(pack(texts, self.device), self.weights(), self.setup())

    def weights(self) -> Weights:
        """The parameters, ready to compute with. Of the table only the rows that a batch takes are rounded."""
        parameters, form = dict(self.named_parameters()), self.quantization
        if not form:
            return gather(parameters, self.config, self.dtype, self.device)
        table = parameters.pop(TABLE)
        rounded = {TABLE: table, **fake_quantized(parameters, form)}
        weights = gather(rounded, self.config, self.dtype, self.device)
        return weights._replace(of_rows=lambda rows: fake_quantized_rows(rows, TABLE, form))

    def encode(self, texts: Sequence[NDArray[Any] | Tensor], dimensions: int | None = None) -> Tensor:
        """Unit vectors, (texts, dimensions), of as many dimensions as the model has where None.

        Raises RefembedError as forward does, and where there are not so many dimensions.
        """
        most = self.config.dimensions
        if dimensions is not None and not 1 <= dimensions <= most:
            raise RefembedError(
                "option-dimensions", f"dimensions is {dimensions!r}, a whole number from 1 to {most} needed"
            )
        return unit(self(texts), dimensions)


def trained_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The checkpoint's parameters, and the attention pooler's where the model has one."""
    if config.pooler != "attention":
        return parameter_shapes(config)
    matrix = (config.width, config.width)
    return parameter_shapes(config) | {
        "pooling.query": (1, config.width),
        "pooling.key.weight": matrix,
        "pooling.value.weight": matrix,
    }


def load_model(
    folder: str | Path,
    precision: str = "float32",
    *,
    device: str | torch.device | None = None,
    compiling: bool = False,
    checkpointing: bool = False,
    quantization: str | None = None,
) -> TorchModel:
    """A checkpoint folder as a module to train.

    precision       what matrices multiply in: float32, or bfloat16 with parameters kept in float32
    device          CUDA's first where there is one
    compiling       let torch.compile make the layers, which takes a minute and pays on CUDA
    checkpointing   compute each layer twice, and keep only what lies between the layers
    quantization    the form that weights are rounded to in computing, for quantisation-aware training

    Raises RefembedError as refembed.checkpoint does.
    """
    checkpoint = open_checkpoint(Path(folder))
    stored = StoredParameters(checkpoint)
    options: dict[str, Any] = {"compiling": compiling, "checkpointing": checkpointing, "quantization": quantization}
    model = TorchModel(checkpoint.config, precision, source=checkpoint.folder, **options)
    model.load_state_dict({name: stored[name] for name in stored})
    if not model.get_parameter(TABLE).isfinite().all():
        raise not_finite(TABLE, checkpoint.folder / WEIGHTS)
    return model.to(device or best_device())


def random_model(
    config: Config,
    precision: str = "float32",
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    **options: Any,
) -> TorchModel:
    """Seeded random parameters of any shape, to measure with or train from nothing. The options are TorchModel's."""
    model = TorchModel(config, precision, **options)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        spread = 0.1 if parameter.ndim == 1 else 1.0 if name == TABLE else parameter.shape[1] ** -0.5
        nn.init.normal_(parameter, std=spread, generator=generator)
    return model.to(device or best_device())
