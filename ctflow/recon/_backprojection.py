"""Pixel-driven backprojection of FBP and FDK: compiled on the CPU, by tensor operations on other devices.

Both interpolate linearly where each pixel is seen, with weights by the distance from the source. They are no
transposes of a projection: that is `Radon`'s adjoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from ctflow.geometry import CircularBeam, ConeBeam, FanBeam, VolumeGeometry
from ctflow.operators._simd import pieces, widths
from ctflow.recon._kernels import CURVED, FLAT, PARALLEL, Array, spread, spread_cone
from ctflow.recon._views import bin_numbers
from ctflow.system.compiled import in_threads

_VOXELS = 2**23  # at a time, which bounds the memory of their places on the detector to some 100 MB


def backproject(filtered: Tensor, volume: VolumeGeometry, beam: CircularBeam) -> Tensor:
    """Sum over the views of the filtered projections of slices.

    Args:
        filtered: (slices, views, bins), 1/mm, of a curved detector mm.
        volume: grid of the image.
        beam: fitted parallel or fan beam; a fan's views are weighted by the distance from the source.

    Returns:
        (slices, Y, X), 1/mm.
    """
    if filtered.device.type != "cpu":
        return _by_tensors(filtered, volume, beam)
    sight, (slices, views, bins) = Sight.of(volume, beam), filtered.shape
    image, done = filtered.new_empty(slices, *volume.shape[1:]), 0
    for n in widths(slices):
        part, lanes = filtered[done : done + n], (0,) * n
        data = filtered.new_zeros(views, bins + 2, n)
        data[:, 1:-1, : len(part)] = part.permute(1, 2, 0) * sight.weight
        line, target = data.view(views, -1).numpy(), image[done : done + n].numpy()
        in_threads(
            partial(spread, target, line, *sight.arguments, a, b, lanes) for a, b in pieces(volume.shape[1])
        )
        done += n
    return image


def backproject_cone(filtered: Tensor, volume: VolumeGeometry, beam: ConeBeam) -> Tensor:
    """Sum over the views of the filtered projections of a cone; beyond the panel its edge continues.

    Args:
        filtered: (batch, rows, views, bins), 1/mm, of a curved detector mm.
        volume: grid of the image.
        beam: fitted circular cone beam; views are weighted by the distance from the source.

    Returns:
        (batch, Z, Y, X), 1/mm.
    """
    heights = (bin_numbers(volume.shape[0]) * volume.spacing[0]).to(filtered)
    if filtered.device.type != "cpu":
        per_slab = max(1, _VOXELS // (volume.shape[1] * volume.shape[2]))
        return torch.cat([_slab(filtered, volume, beam, z) for z in torch.split(heights, per_slab)], 1)
    assert beam.row_pitch is not None  # the beam is fitted
    sight, rise = Sight.of(volume, beam), beam.source_detector / beam.row_pitch
    image = filtered.new_empty(len(filtered), *volume.shape)
    for panels, whole in zip(filtered, image, strict=True):
        data = pad((panels * sight.weight).permute(1, 0, 2), (0, 1, 0, 1), mode="replicate").mT.contiguous()
        upright = filtered.new_zeros(*volume.shape[1:], volume.shape[0])  # its slices lie side by side
        climb = rise * volume.spacing[0], rise * float(heights[0])
        in_threads(
            partial(spread_cone, upright.numpy(), data.numpy(), *sight.arguments, *climb, a, b)
            for a, b in pieces(volume.shape[1])
        )
        whole.copy_(upright.movedim(-1, 0))
    return image


@dataclass(frozen=True, eq=False)
class Sight:
    """Where the views of a fitted beam see the pixels of a slice, as the kernels take it.

    Args:
        kind: PARALLEL, FLAT or CURVED.
        paths: times (1, i, j) the place of pixel (i, j) across the central ray and ahead of the source,
            (views, 2, 3), mm.
        scale: bins per mm (parallel), per tangent (flat) or per rad (curved).
        middle: bin of the central ray.
        weight: what the kernels' weights lack, dimensionless (parallel, curved) or mm² (flat).
    """

    kind: int
    paths: Array
    scale: float
    middle: float
    weight: float

    @classmethod
    def of(cls, volume: VolumeGeometry, beam: CircularBeam) -> Sight:
        """Sight of a fitted parallel, fan or circular cone beam."""
        assert beam.bins is not None  # the beam is fitted
        assert beam.pitch is not None
        (_, Y, X), (_, dy, dx) = volume.shape, volume.spacing
        cosine, sine = np.cos(beam.views), np.sin(beam.views)
        x, y = -(X - 1) / 2 * dx, (Y - 1) / 2 * dy
        across = x * cosine + y * sine + beam.axis_offset, -dy * sine, dx * cosine
        ahead = y * cosine - x * sine, -dy * cosine, -dx * sine
        paths = np.stack([np.stack(across, 1), np.stack(ahead, 1)], 1)
        middle = (beam.bins - 1) / 2 - beam.shift_bins
        if not isinstance(beam, FanBeam):
            return cls(PARALLEL, paths, 1 / bin_step(beam), middle, 1.0)
        paths[:, 1, 0] += beam.source_axis
        curved, weight = (CURVED, 1.0) if beam.curved else (FLAT, beam.source_axis**2)
        return cls(curved, paths, beam.source_detector / beam.pitch, middle, weight)

    @property
    def arguments(self) -> tuple[int, Array, float, float]:
        """What the kernels take."""
        return self.kind, self.paths, self.scale, self.middle


def bin_step(beam: CircularBeam) -> float:
    """Step of the bins that the filter sees: at the axis in mm, of a curved detector in rad."""
    assert beam.pitch is not None  # the beam is fitted
    if isinstance(beam, FanBeam) and beam.curved:
        return beam.pitch / beam.source_detector
    return beam.pitch / beam.magnification()


def seen_at(x: Tensor, y: Tensor, angle: float, beam: CircularBeam) -> tuple[Tensor, Tensor]:
    """Where one view sees points of a slice, and their weight.

    Args:
        x: to the right, mm, any shape.
        y: upwards, mm, of a shape that broadcasts with x.
        angle: of the view, rad.
        beam: fitted parallel, fan or circular cone beam.

    Returns:
        Fractional bins, and weights (1 parallel, 1 / U² flat fan, 1 / distance² in 1/mm² curved fan).
    """
    assert beam.bins is not None  # the beam is fitted
    cosine, sine = math.cos(angle), math.sin(angle)
    across = x * cosine + y * sine + beam.axis_offset
    weight = torch.ones_like(across)
    if isinstance(beam, FanBeam):
        ahead = beam.source_axis + y * cosine - x * sine
        if beam.curved:
            weight = 1 / (across**2 + ahead**2)
            across = torch.atan2(across, ahead)
        else:
            weight = (beam.source_axis / ahead) ** 2
            across = across * (beam.source_axis / ahead)
    return across / bin_step(beam) + ((beam.bins - 1) / 2 - beam.shift_bins), weight


def _by_tensors(filtered: Tensor, volume: VolumeGeometry, beam: CircularBeam) -> Tensor:
    """The same for slices on any device."""
    x, y = pixel_places(volume, filtered)
    padded = pad(filtered, (1, 1)).permute(1, 2, 0).contiguous()  # (views, bins, slices)
    bins = filtered.shape[-1]
    image = filtered.new_zeros(x.numel() * y.numel(), len(filtered))
    for row, angle in zip(padded, beam.views, strict=True):
        place, weight = seen_at(x, y, angle, beam)
        place = (place + 1).clamp(0, bins + 1).reshape(-1)
        left = place.to(torch.int64).clamp_max(bins)
        low, high = row.index_select(0, left), row.index_select(0, left + 1)
        image += torch.lerp(low, high, (place - left)[:, None]) * weight.reshape(-1, 1)
    return image.t().reshape(len(filtered), *volume.shape[1:])


def _slab(filtered: Tensor, volume: VolumeGeometry, beam: ConeBeam, z: Tensor) -> Tensor:
    """The same for some slices of a cone, at heights z in mm, on any device."""
    assert beam.row_pitch is not None  # the beam is fitted
    (batch, rows, _, bins), (_, Y, X) = filtered.shape, volume.shape
    x, y = pixel_places(volume, filtered)
    slab = filtered.new_zeros(batch, len(z) * Y, X)
    for view, angle in zip(filtered.unbind(2), beam.views, strict=True):
        column, weight = seen_at(x, y, angle, beam)
        # The weight is the square of what a height shrinks by on its way to the axis (flat) or the source.
        scale = beam.source_detector if beam.curved else beam.magnification()
        row = z[:, None, None] * (scale / beam.row_pitch) * weight.sqrt() + (rows - 1) / 2
        # grid_sample counts from -1 at the outer edge of the first bin to 1 at that of the last.
        across, up = (2 * column + 1) / bins - 1, (2 * row + 1) / rows - 1
        places = torch.stack([across.expand_as(up), up], -1)
        seen = grid_sample(
            view[None], places.reshape(1, -1, X, 2), padding_mode="border", align_corners=False
        )
        slab += seen[0] * weight.repeat(len(z), 1)
    return slab.reshape(batch, len(z), Y, X)


def pixel_places(volume: VolumeGeometry, like: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the pixels of a slice: x (X,) to the right and y (Y, 1) upwards, mm, as `like` is stored."""
    (_, Y, X), (_, dy, dx) = volume.shape, volume.spacing
    return (bin_numbers(X) * dx).to(like), (-bin_numbers(Y) * dy).to(like)[:, None]
