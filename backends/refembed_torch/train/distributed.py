"""One process, or many under torchrun. What every process computes alike is not sent; gradients and vectors are."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as processes
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ..parameters import best_device


class World(NamedTuple):
    """rank    this process's number, from 0; size: how many there are; device: its own."""

    rank: int
    size: int
    device: torch.device


@cache
def world() -> World:
    """This process's place among all, from torchrun's environment; a world of one without it. Joins them once."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(0, 1, best_device())
    device = best_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    processes.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(processes.destroy_process_group)  # its threads abort an interpreter that ends before them
    return World(processes.get_rank(), size, device)


def parallel(module: nn.Module, way: str) -> nn.Module:
    """What to call in the module's place, so that gradients are the mean over all processes after a backward pass.

    way      ddp: every process holds all parameters; fsdp: each holds its part, and `module` is changed in place
    """
    here = world()
    if here.size == 1:
        return module
    if way == "fsdp":
        fully_shard(module, mesh=init_device_mesh(here.device.type, (here.size,)))
        return module
    return DistributedDataParallel(module)


@contextmanager
def syncing(module: nn.Module, on: bool) -> Iterator[None]:
    """Whether backward passes within exchange gradients: only the last of several has to."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(on)
        yield
    elif isinstance(module, DistributedDataParallel) and not on:
        with module.no_sync():
            yield
    else:
        yield


def drop_whole(module: nn.Module) -> None:
    """Back to parts: a forward pass that no backward pass followed leaves the whole parameters (FSDP) in the module's
    parameters' places, of which the optimizer knows nothing.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, of any counts, without a gradient.

    rows     (n, ...) of this process; all but n the same in every one
    """
    here = world()
    if here.size == 1:
        return rows.detach()
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(here.size)]
    processes.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(count) for count in counts)
    room = rows.new_zeros(most, *rows.shape[1:])  # every process sends as many
    room[: len(rows)] = rows.detach()
    found = [torch.empty_like(room) for _ in counts]
    processes.all_gather(found, room)
    return torch.cat([part[: int(count)] for part, count in zip(found, counts, strict=True)])


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which this process may hold only a part, complete, in main memory. All processes ask at once."""
    complete = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return complete.detach().to("cpu")


@torch.no_grad()
def put(place: Tensor, complete: Tensor) -> None:
    """Write a complete tensor into one of which this process may hold only a part."""
    if isinstance(place, DTensor):
        complete = distribute_tensor(complete.to(place.device), place.device_mesh, place.placements)
    place.copy_(complete)


def wait_for_all() -> None:
    if world().size > 1:
        processes.barrier()
