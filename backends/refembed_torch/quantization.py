"""Weights as they will be once quantised, in the forward pass of training: refembed.reference.quantize in PyTorch.

Numbers are the reference's bit for bit; its gradient is the straight-through one, which with scales taken from the
weights themselves passes everything on (QNT-5, RCP-7).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from refembed.errors import RefembedError
from refembed.reference.quantize import FORMS, Grid, grid_of, largest_level

if TYPE_CHECKING:
    from .model import TorchModel

ROWS = 16_384  # of the table that are rounded at once: 50 MB of the released model's


def fake_quantized(parameters: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """Every parameter as the form would leave it, with the straight-through gradient; norm weights as they are.

    parameters   by the checkpoint's names, float32 or float64
    form         one of FORMS; ValueError otherwise
    """
    return {name: fake_quantized_rows(rows, name, form) for name, rows in parameters.items()}


def fake_quantized_rows(rows: Tensor, name: str, form: str) -> Tensor:
    """Some or all rows of the parameter of this name. No row depends on another: a batch needs only those it takes.

    rows     (rows, columns), or a norm weight (columns,)
    """
    grid = grid_of(form, name)
    return rows if grid is None else StraightThrough.apply(rows, grid)


class StraightThrough(torch.autograd.Function):
    """Rounding whose derivative is taken to be one."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, grid: Grid) -> Tensor:
        return on_grid(weight, grid)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0], None


def on_grid(weight: Tensor, grid: Grid) -> Tensor:
    """reference.quantize.fake_quantize.

    weight   (rows, columns)
    returns  (rows, columns); NaN where a block is not finite or too large for a float16 scale, which the reference
             refuses: to look would make every step wait for the device
    """
    limit = largest_level(grid.bits)
    blocks: Tensor = weight.unflatten(1, (-1, grid.block or weight.shape[1]))  # (rows, blocks, block)
    largest = blocks.abs().amax(-1)  # (rows, blocks)
    nearest = (largest / limit).half()  # (rows, blocks)
    short = nearest.to(weight.dtype) * limit < largest  # (rows, blocks)
    # the next float16 of one that is not negative is the next whole number, as bits
    scales = (nearest.view(torch.int16) + short).view(torch.float16).to(weight.dtype)  # (rows, blocks)
    step = scales.masked_fill(scales == 0, 1)[..., None]  # (rows, blocks, 1)
    levels: Tensor = (blocks / step).round_()  # (rows, blocks, block); nothing lies beyond the last level
    levels.add_(0.0).mul_(scales[..., None])  # whole numbers know no -0
    return levels.flatten(1)


@torch.no_grad()
def round_weights(model: "TorchModel", form: str) -> None:
    """Put every parameter on the form's grid, in place: what rounding a finished model leaves of it.

    Raises RefembedError where the model cannot take the form, or a parameter is not finite or too large, with those
    before it rounded already.
    """
    check_form(form, shapes_of(model))
    for name, parameter in model.named_parameters():
        if grid_of(form, name) is None:
            continue
        for rows in parameter.split(ROWS):
            rows.copy_(fake_quantized_rows(rows, name, form))
            if not rows.isfinite().all():
                raise RefembedError("tensor-not-finite", f"{name} is not finite or too large for a float16 scale")


@contextmanager
def measured_as(model: "TorchModel", form: str | None) -> Iterator[None]:
    """Within, the model computes as though rounded to the form, or not at all (None); its parameters stay as they are.

    A finished model measured so is one rounded afterwards. Raises RefembedError where the model cannot take the form.
    """
    if form:
        check_form(form, shapes_of(model))
    before, model.quantization = model.quantization, form
    try:
        yield
    finally:
        model.quantization = before


def shapes_of(model: "TorchModel") -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check_form(form: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise RefembedError where there is no such form, or a model of these shapes cannot take it.

    shapes   of the parameters, by name
    """
    if form not in FORMS:
        raise RefembedError("train-config", f"there is no quantised form {form!r}; the forms are {', '.join(FORMS)}")
    for name, shape in shapes.items():
        grid = grid_of(form, name)
        if grid and grid.block and shape[-1] % grid.block:
            raise RefembedError(
                "train-config",
                f"{form}: {name} has rows of {shape[-1]} numbers, which are not whole blocks of {grid.block}; take "
                "mixed-channel, whose scales are one a row",
            )
