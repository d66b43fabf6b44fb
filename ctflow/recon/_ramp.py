"""The ramp filter along the bins, sampled in space, under a window."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ctflow.errors import ProtocolError
from ctflow.search_space import Range

# Windows on the ramp, of the frequency as a fraction of Nyquist's.
_WINDOWS: dict[str, Callable[[Tensor], Tensor]] = {
    "ramp": torch.ones_like,
    "hann": lambda f: (1 + torch.cos(math.pi * f)) / 2,
    "shepp-logan": lambda f: torch.sinc(f / 2),
    "cosine": lambda f: torch.cos(math.pi * f / 2),
}

FILTERS = Range(tuple(_WINDOWS), choices=True)
"""What FBP and FDK may be tuned to."""


def require_window(name: str) -> None:
    """Refuse a window that does not exist.

    Raises:
        ProtocolError: the filter is unknown.
    """
    if name not in _WINDOWS:
        raise ProtocolError(f"no filter is named '{name}'; there are {', '.join(_WINDOWS)}")


def filter_rows(y: Tensor, step: float, window: str, equiangular: bool = False) -> Tensor:
    """Ramp-filter projections along their bins, with the kernel that is band-limited in space.

    The kernel sampled in space, not |f| sampled in frequency, keeps the mean: no cupping and no offset in HU.

    Args:
        y: shape (*batch, bins).
        step: distance of the bins at the axis, mm; of a curved detector the step of the fan angle, rad.
        window: name of the window.
        equiangular: whether bins are equal steps of the fan angle: the kernel h(γ) becomes (γ / sin γ)² h(γ).

    Returns:
        Shape (*batch, bins), in the unit of y over that of `step`.

    References:
        Kak and Slaney, Principles of Computerized Tomographic Imaging (1988), eq. 3.61 and 3.4.1.
    """
    bins = y.shape[-1]
    length = 2 ** math.ceil(math.log2(2 * bins))
    n = torch.fft.fftfreq(length, 1 / length, dtype=torch.float64, device=y.device)
    kernel = torch.where(n % 2 == 0, 0.0, -1 / (math.pi * n * step) ** 2)
    kernel[0] = 1 / (4 * step**2)
    if equiangular:
        # Lags of `bins` and more meet zeros only.
        kernel /= torch.sinc(torch.where(n.abs() < bins, n, 0) * step / math.pi) ** 2
    frequency = torch.linspace(0, 1, length // 2 + 1, dtype=torch.float64, device=y.device)
    response = step * torch.fft.rfft(kernel).real * _WINDOWS[window](frequency)
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(y, length) * response.to(y), length)
    return filtered[..., :bins]
