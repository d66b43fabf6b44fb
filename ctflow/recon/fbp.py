"""Filtered backprojection of parallel and fan beams."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ctflow.errors import GeometryError, ProtocolError, UsageError
from ctflow.geometry import Beam, ConeBeam, FanBeam, VolumeGeometry
from ctflow.operators import Radon
from ctflow.problem import InverseProblem
from ctflow.solving import Callback

__all__ = ["FBP"]

# Windows on the ramp, of the frequency as a fraction of Nyquist's.
_WINDOWS: dict[str, Callable[[Tensor], Tensor]] = {
    "ramp": torch.ones_like,
    "hann": lambda f: (1 + torch.cos(math.pi * f)) / 2,
    "shepp-logan": lambda f: torch.sinc(f / 2),
    "cosine": lambda f: torch.cos(math.pi * f / 2),
}
# A gap this many times the median is unmeasured, not coarsely sampled; golden-angle gaps differ by 2.6.
_WEDGE = 4.0


@dataclass(frozen=True)
class FBP:
    """Filtered backprojection: ramp filter along the bins, then every pixel sums what its rays measured.

    Views may be unevenly spaced or repeated; each weighs half the gaps to its neighbours. A missing wedge of
    a parallel beam stays unmeasured. Noise weights are not used.

    Args:
        filter: "ramp", or the ramp under a window: "hann", "shepp-logan" or "cosine".

    Raises:
        ProtocolError: the filter is unknown.

    References:
        Kak and Slaney, Principles of Computerized Tomographic Imaging (1988), eq. 3.61 (ramp), 3.177 (fan).
    """

    filter: str = "ramp"
    needs_prior: ClassVar[bool] = False
    paper: ClassVar[str] = """@book{kak1988principles,
  author    = {Kak, Avinash C. and Slaney, Malcolm},
  title     = {Principles of Computerized Tomographic Imaging},
  publisher = {IEEE Press},
  year      = {1988}
}"""

    def __post_init__(self) -> None:
        if self.filter not in _WINDOWS:
            raise ProtocolError(f"no filter is named '{self.filter}'; there are {', '.join(_WINDOWS)}")

    def __call__(
        self, problem: InverseProblem, prior: Any, generator: torch.Generator, callback: Callback
    ) -> Tensor:
        """Image in 1/mm, (*batch, Z, Y, X).

        Raises:
            UsageError: the operator is not a projection by itself.
            GeometryError: the beam is a cone, or a fan of less than a full turn.
        """
        if not isinstance(problem.A, Radon):
            raise UsageError(
                f"FBP inverts Radon and was given {type(problem.A).__name__}; use CGLS, SIRT or TV for it"
            )
        volume, beam = problem.A.volume, problem.A.beam
        if isinstance(beam, ConeBeam):
            raise GeometryError("FBP inverts parallel and fan beams and was given a cone; use CGLS or SIRT")
        weights = view_weights(beam).to(problem.y)
        y = problem.y.flatten(0, -3) * weights[:, None]
        x = backproject(filter_rows(y * _obliquity(beam).to(y), _axis_pitch(beam), self.filter), volume, beam)
        callback(1, 1)
        return x.reshape(*problem.batch_shape, *volume.shape)


def view_weights(beam: Beam) -> Tensor:
    """Angle that every view stands for, radians: they sum to π (parallel, half turn) or π (fan, half of 2π).

    Half the gaps to both neighbours, so that repeated views share one weight; gaps of unmeasured wedges
    count as one median gap.

    Args:
        beam: parallel or fan beam.

    Returns:
        (views,) in float64.

    Raises:
        GeometryError: a fan has a wedge without views.
    """
    turn = 2 * math.pi if isinstance(beam, FanBeam) else math.pi
    angles = torch.tensor(beam.views, dtype=torch.float64).remainder(turn)
    order = angles.argsort()
    gaps = torch.diff(angles[order], append=angles[order][:1] + turn)
    median = gaps[gaps > 1e-6].median()
    wedge = gaps > _WEDGE * median
    if isinstance(beam, FanBeam) and bool(wedge.any()):
        raise GeometryError(
            f"FBP of a fan needs views all around and {math.degrees(float(gaps.max())):.1f}° have none; "
            "measure a full turn, or use SIRT or TV"
        )
    gaps[wedge] = median
    weights = torch.empty_like(angles)
    weights[order] = (gaps + gaps.roll(1)) / 2
    return weights * math.pi / turn


def _axis_pitch(beam: Beam) -> float:
    assert beam.pitch is not None  # the beam is fitted
    return beam.pitch / beam.magnification()


def _positions(beam: Beam) -> Tensor:
    """Bin centres projected to the axis, mm."""
    assert beam.bins is not None  # the beam is fitted
    return (torch.arange(beam.bins, dtype=torch.float64) - (beam.bins - 1) / 2) * _axis_pitch(beam)


def _obliquity(beam: Beam) -> Tensor:
    s = _positions(beam)
    return torch.cos(torch.atan(s / beam.source_axis)) if isinstance(beam, FanBeam) else torch.ones_like(s)


def filter_rows(y: Tensor, pitch: float, window: str) -> Tensor:
    """Ramp-filter projections along their bins, with the kernel that is band-limited in space.

    The kernel sampled in space, not |f| sampled in frequency, keeps the mean: no cupping and no offset in HU.

    Args:
        y: shape (*batch, bins).
        pitch: distance of the bins at the axis, mm.
        window: name of the window.

    Returns:
        Shape (*batch, bins), in the unit of y over mm.
    """
    bins = y.shape[-1]
    length = 2 ** math.ceil(math.log2(2 * bins))
    n = torch.fft.fftfreq(length, 1 / length, dtype=torch.float64, device=y.device)
    kernel = torch.where(n % 2 == 0, 0.0, -1 / (math.pi * n * pitch) ** 2)
    kernel[0] = 1 / (4 * pitch**2)
    frequency = torch.linspace(0, 1, length // 2 + 1, dtype=torch.float64, device=y.device)
    response = pitch * torch.fft.rfft(kernel).real * _WINDOWS[window](frequency)
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(y, length) * response.to(y), length)
    return filtered[..., :bins]


def backproject(filtered: Tensor, volume: VolumeGeometry, beam: Beam) -> Tensor:
    """Sum over the views of the filtered projections, interpolated linearly where each pixel is seen.

    Args:
        filtered: (slices, views, bins).
        volume: grid of the image.
        beam: fitted parallel or fan beam; a fan's views are weighted by 1 / U².

    Returns:
        (slices, Y, X).
    """
    _, Y, X = volume.shape
    _, dy, dx = volume.spacing
    y = (((Y - 1) / 2 - torch.arange(Y)) * dy).to(filtered)[:, None]
    x = ((torch.arange(X) - (X - 1) / 2) * dx).to(filtered)
    padded = torch.nn.functional.pad(filtered, (1, 1)).permute(1, 2, 0).contiguous()  # (views, bins, slices)
    bins = filtered.shape[-1]
    image = filtered.new_zeros(Y * X, len(filtered))
    for row, angle in zip(padded, beam.views, strict=True):
        s = x * math.cos(angle) + y * math.sin(angle)
        U = torch.ones_like(s)
        if isinstance(beam, FanBeam):
            U += (y * math.cos(angle) - x * math.sin(angle)) / beam.source_axis
            s /= U
        position = (s / _axis_pitch(beam) + (bins + 1) / 2).clamp(0, bins + 1).reshape(-1)
        left = position.to(torch.int64).clamp_max(bins)
        low, high = row.index_select(0, left), row.index_select(0, left + 1)
        image += torch.lerp(low, high, (position - left)[:, None]) / U.reshape(-1, 1) ** 2
    return image.t().reshape(len(filtered), Y, X)
