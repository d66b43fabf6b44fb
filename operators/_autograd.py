"""Bridge to PyTorch: one function makes every operator differentiable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ctflow.linalg import full_precision

if TYPE_CHECKING:
    from ctflow.operators._base import LinearOperator


def apply(x: Tensor, operator: LinearOperator) -> Tensor:
    """Apply an operator to (*batch, *domain_shape), differentiable any number of times."""
    with full_precision(x):
        result: Tensor = _Apply.apply(x, operator)  # type: ignore[no-untyped-call]
    return result


class _Apply(torch.autograd.Function):
    """Autograd function of every operator: its derivative is itself, its backward pass the adjoint."""

    @staticmethod
    def forward(x: Tensor, operator: LinearOperator) -> Tensor:
        if not x.numel():  # libraries refuse empty batches, each with its own message
            return x.new_zeros(*x.shape[: x.ndim - len(operator.domain_shape)], *operator.range_shape)
        return operator._counted(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, LinearOperator], output: Tensor) -> None:
        ctx.operator = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.operator.T(*gradients), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        result: Tensor = ctx.operator(tangents[0])  # the other is of the operator, and None
        return result

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride] (torch gives what forward takes)
        info: Any, in_dims: tuple[int | None, None], x: Tensor, operator: LinearOperator
    ) -> tuple[Tensor, int]:
        assert in_dims[0] is not None
        return operator(x.movedim(in_dims[0], 0)), 0
