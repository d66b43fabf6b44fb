"""3 × 3 convolutions with fewer products, by Winograd's minimal filtering, on CPUs where that is quicker."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

_FEWEST_CHANNELS = 16
_FEWEST_PIXELS = 32**2


@cache
def quicker() -> bool:
    """Whether large convolutions take less time so than as torch does them.

    On AVX2 they take a third to a half. Wider vectors were not measured, and torch uses those.
    """
    there = getattr(torch, "_nnpack_available", None)  # not public: a torch without it does as it does
    return torch.backends.cpu.get_cpu_capability() == "AVX2" and there is not None and bool(there())


def memory_format(device: torch.device) -> torch.memory_format:
    """The order of numbers in which a network of such layers is quicker on a device."""
    return torch.contiguous_format if device.type == "cpu" and quicker() else torch.channels_last


class Convolution(nn.Conv2d):
    """A 3 × 3 convolution, padded to keep the size; large images in float32 may take the quicker way.

    The two ways differ by rounding, up to 1e-5 of the largest number. Images go one by one, so that what
    becomes of one does not depend on the others.

    Shapes: (batch, channels, Y, X) -> (batch, out channels, Y, X).

    Args:
        channels: of the input.
        out_channels: of the result.

    References:
        Lavin and Gray, CVPR 2016 (F(6 × 6, 3 × 3) in tiles of 8 × 8; NNPACK, which torch holds, has them).
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of the input."""
        large = input.shape[-2] * input.shape[-1] >= _FEWEST_PIXELS
        wide = min(self.in_channels, self.out_channels) >= _FEWEST_CHANNELS
        single = input.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not (large and wide and single and input.device.type == "cpu" and quicker()):
            return super().forward(input)
        return _convolved(input, self.weight, self.bias)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found: Tensor = _Winograd.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return found


class _Winograd(torch.autograd.Function):
    """A 3 × 3 convolution whose image gradient is one too, with the weights turned by 180°."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        convolve, ones = torch.ops.aten._nnpack_spatial_convolution, (1, 1)
        each: list[Tensor] = [convolve(image, weight, bias, ones, ones) for image in torch.split(x, 1)]
        return torch.cat(each) if len(each) > 1 else each[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (pulled,), (x, weight) = gradients, ctx.saved_tensors
        needed = ctx.needs_input_grad
        image = _convolved(pulled, weight.transpose(0, 1).flip(2, 3)) if needed[0] else None
        of_weight = (
            conv2d_weight(x, weight.shape, pulled, padding=1) if needed[1] else None  # type: ignore[no-untyped-call]
        )
        return image, of_weight, pulled.sum((0, 2, 3)) if needed[2] else None
