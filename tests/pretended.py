"""A GPU that is not there: tensors that say they are on it, compute on the CPU, and refuse what CUDA refuses.

`with pretended("cuda:1"):` tensors are made there and moved there as where it exists. Operations on tensors
of two devices, memory read by NumPy and random numbers of a generator of another device raise. What they say
is bit for bit what the CPU says, so that a result that differs has taken another path.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

_CPU = torch.device("cpu")
_ANY_DEVICE = ("_to_copy", "copy_", "index", "index_put", "index_put_")  # moves, and whole numbers as indices


class There(Tensor):
    """A tensor around one on the CPU; below Python it is on "meta", which needs no driver."""

    @staticmethod
    def __new__(cls, held: Tensor, where: torch.device) -> "There":
        held = held.resolve_conj()  # a conjugate is a mark that the tensor around it would not have
        dense = held.layout == torch.strided
        form = {"strides": held.stride(), "storage_offset": held.storage_offset()} if dense else {}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **form, dtype=held.dtype, device="meta")
        made.held, made.where = held, where
        return made

    device = property(lambda self: self.where)
    is_cuda = property(lambda self: self.where.type == "cuda")
    is_cpu = is_meta = property(lambda self: False)
    tolist = lambda self: self.held.tolist()  # noqa: E731 (CUDA has it, and torch not for subclasses)

    # A list of numbers would become an index on "meta", without the numbers.
    def __getitem__(self, index):
        return super().__getitem__(torch.tensor(index) if isinstance(index, list) else index)

    def __setitem__(self, index, value):
        super().__setitem__(torch.tensor(index) if isinstance(index, list) else index, value)

    def __repr__(self) -> str:
        return f"There({self.held}, {self.where})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # so that torch does not look for a driver

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


def _computed(func, args, kwargs):
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    name = func.overloadpacket.__name__
    devices = {x.device for x in tensors if x.ndim or isinstance(x, There)}
    if len(devices) > 1 and name not in _ANY_DEVICE:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {devices}")
    where = _where(kwargs.get("device"), tensors)
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != where.type:
        raise RuntimeError(f"{func}: expected a '{where.type}' generator and found '{generator.device}'")
    plain, named = tree_map(lambda x: x.held if isinstance(x, There) else x, (args, kwargs))
    if where != _CPU and "device" in named:
        named["device"] = _CPU
    out = func(*plain, **named)
    changed = [x for x, of in zip(args, func._schema.arguments, strict=False) if of.is_write]
    changed += [kwargs[of.name] for of in func._schema.arguments if of.is_write and of.name in kwargs]
    if changed:
        return changed[0] if isinstance(out, Tensor) else out
    return out if where == _CPU else tree_map(lambda x: There(x, where) if isinstance(x, Tensor) else x, out)


def _where(named: torch.device | str | None, tensors: list[Tensor]) -> torch.device:
    """Where the result belongs; "meta" is what the machinery below takes a `There` to be on."""
    there = [x.device for x in tensors if isinstance(x, There)]
    device = torch.device(named) if named is not None else there[0] if there else _CPU
    if device.type == "meta":
        device = _current[0]
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


_current: list[torch.device] = []


@contextmanager
def pretended(name: str) -> Iterator[list[tuple[str, torch.device]]]:
    """Let this machine have two GPUs; yields what torch.cuda was asked, and of which of them."""
    asked: list[tuple[str, torch.device]] = []

    def answer(what: str):
        return lambda device=None: asked.append((what, device and torch.device(device))) or 0

    meters = ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated", "synchronize")
    _current.insert(0, torch.device(name))
    with (
        patch.multiple(torch.cuda, device_count=lambda: 2, **{what: answer(what) for what in meters}),
        _Mode(),
    ):
        yield asked
    _current.pop(0)
