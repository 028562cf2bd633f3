"""A matrix product by whichever library is fast on this CPU, and its gradient.

PyTorch multiplies float32 on a CPU through MKL, which takes the older AVX2 kernels on every CPU that is not Intel's:
half the speed, where there is AVX-512. The oneDNN that PyTorch carries too looks at what the CPU can do.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply by a matrix stored (out, in), as reference.linear does.

    x        (rows, n)
    weight   (m, n)
    returns  (rows, m)
    """
    if not torch.compiler.is_compiling() and x.is_cpu and x.dtype == torch.float32 and onednn():
        return OneDnnProduct.apply(x, weight) if torch.is_grad_enabled() else multiply(x, weight)
    return functional.linear(x, weight)


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """oneDNN's product. Nothing is packed first: that pays for inference alone, and little.

    Rows with room between them would send some operands to a loop a hundred times slower.
    """
    x, weight = dense(x), dense(weight)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return out


def dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


class OneDnnProduct(torch.autograd.Function):
    """The product, of which PyTorch knows no derivative in this form. Both operands may need one (keys and values)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (d_out,) = upstream  # (rows, m)
        d_x = multiply(d_out, weight.t()) if ctx.needs_input_grad[0] else None  # (rows, n)
        d_weight = multiply(d_out.t(), x.t()) if ctx.needs_input_grad[1] else None  # (m, n)
        return d_x, d_weight


@cache
def onednn() -> bool:
    """Whether this PyTorch has the product, and it is right."""
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.no_grad():
        x, weight = torch.arange(15.0).reshape(5, 3), torch.arange(6.0).reshape(3, 2).t()
        try:
            return torch.equal(multiply(x, weight), x @ weight.t())
        except (AttributeError, RuntimeError, NotImplementedError):  # another version or build
            return False
