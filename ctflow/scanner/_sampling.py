"""What a scanner sees more finely than images show it: the object's pixels, and rays within a bin."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.ndimage import zoom
from torch import Tensor

from ctflow.geometry import Beam, HelicalBeam, VectorBeam, VolumeGeometry


def refined(image: Tensor, times: int, along_z: bool) -> Tensor:
    """The image on a finer grid, smooth and nowhere negative, whose means over old voxels are the old values.

    Args:
        image: (Z, Y, X), attenuation, not negative.
        times: new voxels along a side of an old one.
        along_z: whether slices are divided too.

    Returns:
        (Z · times or Z, Y · times, X · times).
    """
    factors = (times if along_z else 1, times, times)
    old = image.double().numpy()
    fine = zoom(old, factors, order=3, mode="nearest", grid_mode=True)
    blocks = fine.reshape([number for pair in zip(image.shape, factors, strict=True) for number in pair])
    around = blocks - blocks.mean((1, 3, 5), keepdims=True)
    lowest = -around.min((1, 3, 5))
    # Where the spline would fall below zero it is pressed towards the mean of its voxel.
    kept = np.minimum(1, np.divide(old, lowest, out=np.ones_like(old), where=lowest > 0))
    spread = np.kron(kept, np.ones(factors)) * around.reshape(fine.shape)
    return torch.from_numpy(np.kron(old, np.ones(factors)) + spread).float()


def refined_grid(grid: VolumeGeometry, times: int, along_z: bool) -> VolumeGeometry:
    """The grid of `refined`, centred alike."""
    factors = (times if along_z else 1, times, times)
    shape, spacing = zip(grid.shape, factors, strict=True), zip(grid.spacing, factors, strict=True)
    z, y, x = (number * factor for number, factor in shape)
    dz, dy, dx = (distance / factor for distance, factor in spacing)
    return VolumeGeometry((z, y, x), (dz, dy, dx))


@dataclass(frozen=True)
class _Within(VectorBeam):
    """Rays within the bins of a beam that is fitted already: a half fan's too, which sees one side."""

    def fitted(self, volume: VolumeGeometry) -> Self:
        return self


def within(
    beam: Beam, rays: int, turns: list[float], spots: list[float], movement: tuple[float, float]
) -> Iterator[VectorBeam]:
    """Rays within the bins of a fitted beam, for every turn of the gantry and every place of the source.

    Args:
        beam: fitted.
        rays: rays across a bin, and across a row where the beam is not flat.
        turns: angles by which the gantry turns beyond a view's own, rad.
        spots: places of the source along the detector row, mm; a parallel beam has the place 0 alone.
        movement: by how much the object moves from the first to the last view, (x, y), mm.

    Yields:
        Beams with `rays` times the bins, and rows.
    """
    found = beam.rays()
    feed = beam.feed / (2 * math.pi) if isinstance(beam, HelicalBeam) else 0.0  # mm per rad
    along = found.u / np.linalg.norm(found.u, axis=1, keepdims=True)
    moved = np.zeros_like(found.source)
    moved[:, :2] = np.linspace(-0.5, 0.5, len(moved))[:, None] * movement
    rows = found.rows if beam.flat else found.rows * rays
    steps = (found.u / rays, found.v if beam.flat else found.v / rays)
    for turn in turns:
        turning = np.array(
            [[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]]
        )
        climb = np.array([0.0, 0.0, feed * turn])
        for spot in spots:
            source = found.source if found.parallel else found.source + spot * along
            places = [part @ turning.T for part in (source, found.centre)]
            for k in range(int(found.parallel), 2):  # a direction does not move
                places[k] = places[k] + climb - moved
            table = np.concatenate([*places, *(step @ turning.T for step in steps)], 1)
            yield _Within(
                tuple(map(tuple, table.tolist())),
                found.bins * rays,
                None if beam.flat else rows,
                found.parallel,
                found.radius,
            )


def pooled(data: Tensor, rays: int, flat: bool) -> Tensor:
    """Means over the rays of each bin (and row) of data (rows, views, bins)."""
    down = 1 if flat else rays
    rows, views, bins = data.shape
    return data.reshape(rows // down, down, views, bins // rays, rays).mean((1, 4))


def centred(whole: float, number: int) -> list[float]:
    """`number` places in the middle of as many equal parts of a length, around 0."""
    return [whole * ((k + 0.5) / number - 0.5) for k in range(number)]
