"""Devices for tensors that torch knows and this machine has."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ctflow.errors import BackendError


def available_device(name: str | torch.device) -> torch.device:
    """Return the device of that name, "cpu", "cuda", "cuda:1", "mps" or "xpu", if this machine has it.

    Raises:
        BackendError: it does not; the message names the devices that it has.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    there = _there()
    if device is None or str(device) not in {*there, *(one.split(":")[0] for one in there)}:
        raise BackendError(
            f"device '{name}' is not on this machine, which has {', '.join(there)}; give one of these, and "
            "see `ctflow doctor` for what a GPU lacks"
        )
    return device


def device_name(name: str) -> str:
    """Name of the hardware: that of the GPU, or the number of CPU threads."""
    device = torch.device(name)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return f"{device} of {platform.machine()}"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has units for bfloat16, without which products take several times those of float32.

    A CPU is asked through torch; an older release does not say, and counts as a CPU without.
    """
    if device.type != "cpu":
        return True
    asked = getattr(torch.cpu, "get_capabilities", None)
    has: Mapping[str, object] = asked() if asked is not None else {}
    return any(has.get(unit) is True for unit in ("avx512_bf16", "amx_bf16", "bf16"))


@contextmanager
def lost_device(device: torch.device) -> Iterator[None]:
    """Say what to do where a device stops answering inside the block.

    Raises:
        BackendError: it did; nothing that this process holds on it can be read any more.
    """
    try:
        yield
    except torch.AcceleratorError as error:
        reason = str(error).partition("\n")[0]
        raise BackendError(
            f"{device} stopped answering ({reason}) and what is written is kept; see whether `nvidia-smi` "
            "lists it, then start again in a new process, a study by --resume, or give --device cpu"
        ) from error


def _there() -> list[str]:
    found = ["cpu"]
    for kind in ("cuda", "xpu", "mps"):
        found += [f"{kind}:{number}" for number in range(getattr(torch, kind).device_count())]
    return found
