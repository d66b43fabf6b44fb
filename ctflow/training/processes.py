"""Train with several processes started by `torchrun`, each with a share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from ctflow.errors import BackendError, ProtocolError
from ctflow.system.devices import available_device


@dataclass(frozen=True)
class Process:
    """One of the processes of a run.

    Args:
        device: device of its network.
        rank: its number; only the first, 0, writes.
        size: number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    def share(self, batch: int) -> range:
        """Indices of this process's crops in a batch.

        Raises:
            ProtocolError: they cannot be shared evenly.
        """
        if batch % self.size:
            raise ProtocolError(
                f"a batch of {batch} crops cannot be shared by {self.size} processes; change training.batch"
            )
        mine = batch // self.size
        return range(self.rank * mine, (self.rank + 1) * mine)


@contextmanager
def processes(device: str) -> Iterator[Process]:
    """Join the processes that `torchrun` has started, if any, for the block.

    Args:
        device: "cpu" or "cuda"; several processes use one CUDA device each.

    Raises:
        BackendError: this machine does not have the device, or several processes would share a GPU.
    """
    device = str(available_device(device))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Process(torch.device(device))
        return
    if device.startswith("cuda:"):
        raise BackendError(f"each process takes a GPU of its own and all were given {device}; give cuda")
    if device == "cuda":
        device = str(available_device(f"cuda:{os.environ['LOCAL_RANK']}"))
    distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield Process(torch.device(device), distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their mean over all processes, in one message.

    With equal shares of a batch this turns each process's gradient into that of the mean loss of the whole
    batch.

    Args:
        tensors: of any shape each, the same in every process; changed in place.
    """
    if not distributed.is_initialized():
        return
    tensors = list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for tensor, mean in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(mean.view_as(tensor))
