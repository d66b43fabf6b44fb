"""Checks of the input of operators: tensors of the right shape, in float32 or float64, with finite values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ctflow.errors import BackendError, GeometryError, UsageError
from ctflow.operators._metatensor import plain_tensor

if TYPE_CHECKING:
    from ctflow.operators._base import LinearOperator


def check_input(x: Tensor, operator: LinearOperator) -> Tensor:
    """Return the tensor (*batch, *domain_shape) without its subclass, or refuse it.

    Under autocast, half precision is converted to float32, as by every function of PyTorch that needs it.

    Raises:
        UsageError: x is not a tensor.
        GeometryError: the trailing dimensions are not `domain_shape`.
        BackendError: x is not float32 or float64, not dense, or on "meta", where tensors hold no values.
    """
    x, name, shape = plain_tensor(x, operator), operator._name, operator.domain_shape
    if not isinstance(x, Tensor):
        raise UsageError(
            f"{name} expects a torch tensor and was given {type(x).__name__}; give torch.as_tensor(x)"
        )
    if x.is_nested:
        raise BackendError(
            f"{name} expects one array and was given a nested tensor; give torch.stack(x.unbind())"
        )
    if x.layout != torch.strided:
        raise BackendError(f"{name} expects a dense tensor and was given {x.layout}; give x.to_dense()")
    if "meta" in (x.device.type, operator.device.type):
        raise BackendError(
            f"{name} computes values, and tensors on 'meta' hold none; move the tensor and the operator to a "
            "device, as in .to('cpu')"
        )
    if tuple(x.shape[x.ndim - len(shape) :]) != shape:
        raise GeometryError(
            f"{name} expects (*batch, {', '.join(map(str, shape))}) and was given {tuple(x.shape)}; "
            f"{_advice(tuple(x.shape), shape)}"
        )
    if x.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(x.device.type):
        x = x.float()
    if x.dtype not in (torch.float32, torch.float64):
        advice = "apply it to x.real and to x.imag" if x.is_complex() else "give x.float()"
        raise BackendError(f"{name} expects float32 or float64 and was given {x.dtype}; {advice}")
    # The minus sign of a view such as x.conj().imag is not in the memory that libraries read.
    return x.resolve_neg()


def refuse_not_finite(x: Tensor, name: str) -> None:
    """Refuse images or data (*batch, ...) with NaN or infinity in them.

    Only on the CPU: on a GPU every application would have to wait for the answer.

    Raises:
        UsageError: there are such values.
    """
    # One value that is not finite makes the sum so, and a sum is cheap beside any operator.
    if x.is_cuda or math.isfinite(float(x.sum())):
        return
    bad = x.numel() - int(torch.isfinite(x).sum())
    if bad:
        raise UsageError(
            f"{name} expects finite values and was given {bad} that are NaN or infinite, of {x.numel()}; "
            "fill in what was not measured (torch.nan_to_num), or lower the step of the method that diverged"
        )


def _advice(given: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if len(expected) == 3 and given == expected[1:]:
        return "one slice is x[None]"
    if sorted(given[len(given) - len(expected) :]) == sorted(expected):
        return "its axes are in another order; use x.permute(...)"
    return "resample or crop it, or build the operator for this shape"
