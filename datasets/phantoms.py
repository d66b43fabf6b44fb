"""Phantoms made of ellipsoids: voxels by sampling, line integrals in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ctflow.geometry import Beam, Rays, VolumeGeometry
from ctflow.system.randomness import seeded
from ctflow.units import MU_WATER
from ctflow.volume import Volume

__all__ = ["thorax", "example", "disc", "Ellipsoid", "Phantom"]  # noqa: RUF022 (a protocol names the first)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid that adds `density` to the attenuation wherever it lies.

    Args:
        centre: (x, y, z), mm; x grows with the column, y against the row, z with the slice, from the middle
            of the grid.
        axes: semi-axes (a, b, c), mm; c = math.inf makes an elliptic cylinder.
        density: attenuation added inside, 1/mm.
        angle: rotation of a from x towards y, rad.
    """

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    density: float
    angle: float = 0.0

    def reaches(self, z: float) -> bool:
        """Whether the ellipsoid meets the plane at height z, mm."""
        return abs(z - self.centre[2]) < self.axes[2]

    def unit_ball(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Linear part of the map that makes the ellipsoid a unit ball, applied to (x, y, z)."""
        a, b, c = self.axes
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return (cosine * x + sine * y) / a, (cosine * y - sine * x) / b, z / c


@dataclass(frozen=True)
class Phantom:
    """A sum of ellipsoids in air.

    Args:
        ellipsoids: parts; where two overlap, their densities add up.
    """

    ellipsoids: tuple[Ellipsoid, ...]

    def rasterise(self, geometry: VolumeGeometry, supersampling: int = 4) -> Volume:
        """Sample the phantom on voxels, in planes through the slice centres.

        Args:
            geometry: grid; the phantom's origin is its middle, whatever the affine says.
            supersampling: sub-pixels along y and x whose mean is the pixel's value.

        Returns:
            Volume in 1/mm.
        """
        fine = tuple(n * supersampling for n in geometry.shape[1:])
        y = -_centred(fine[0], geometry.spacing[1] / supersampling)
        x = _centred(fine[1], geometry.spacing[2] / supersampling)
        slices = [avg_pool2d(self._plane(x, y, z)[None], supersampling)[0] for z in _heights(geometry)]
        return Volume(torch.stack(slices).float(), geometry, "1/mm")

    def _plane(self, x: Tensor, y: Tensor, z: float) -> Tensor:
        plane = torch.zeros(len(y), len(x), dtype=torch.float64)
        for part in self.ellipsoids:
            if part.reaches(z):
                rows, columns = _near(y, part.centre[1], part), _near(x, part.centre[0], part)
                height = torch.tensor(z - part.centre[2], dtype=torch.float64)
                u, v, w = part.unit_ball(x[columns] - part.centre[0], y[rows, None] - part.centre[1], height)
                plane[rows, columns] += part.density * (u**2 + v**2 + w**2 <= 1)
        return plane

    def line_integrals(self, geometry: VolumeGeometry, beam: Beam, rays_per_bin: int = 1) -> Tensor:
        """Exact line integrals along every ray of a beam.

        With q = M (p - centre) and e = M d, where M makes the ellipsoid a unit ball, the ray p + t d (|d| = 1
        mm) crosses it along 2 sqrt(|e|² - |q × e|²) / |e|² mm.

        Args:
            geometry: grid; it gives the heights of the slices, and missing bins and pitches of the beam.
            beam: any beam; those that measure every slice separately do so in planes through its centre.
            rays_per_bin: rays spread evenly over each bin, along its row, whose mean is its value; 1 takes
                the central ray.

        Returns:
            (rows, views, bins), dimensionless; rows = Z unless the beam measures the volume as a whole.

        Raises:
            GeometryError: the beam is too narrow for the field of view.
        """
        beam = beam.fitted(geometry)
        starts, towards = _lines(beam.rays(), rays_per_bin)
        if beam.flat:
            rows = [self._integrals(starts[0], towards[0], z) for z in _heights(geometry)]
        else:
            rows = [self._integrals(start, along) for start, along in zip(starts, towards, strict=True)]
        return torch.stack([_means(row, rays_per_bin) for row in rows]).float()

    def _integrals(self, start: Tensor, towards: Tensor, raised: float = 0.0) -> Tensor:
        (px, py, pz), (dx, dy, dz) = start.unbind(-1), towards.unbind(-1)
        pz = pz + raised
        total = torch.zeros_like(px)
        level = bool((dz == 0).all())
        for part in self.ellipsoids:
            if level and not part.reaches(float(pz.flatten()[0])):
                continue
            x, y, z = part.centre
            qx, qy, qz = part.unit_ball(px - x, py - y, pz - z)
            ex, ey, ez = part.unit_ball(dx, dy, dz)
            length = ex**2 + ey**2 + ez**2
            miss = (qx * ey - qy * ex) ** 2 + (qy * ez - qz * ey) ** 2 + (qz * ex - qx * ez) ** 2
            total += part.density * 2 * (length - miss).clamp_min(0).sqrt() / length
        return total


def _centred(n: int, step: float) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * step


def _heights(geometry: VolumeGeometry) -> list[float]:
    return _centred(geometry.shape[0], geometry.spacing[0]).tolist()


def _means(values: Tensor, number: int) -> Tensor:
    return values.reshape(len(values), -1, number).mean(-1)


def _near(positions: Tensor, centre: float, part: Ellipsoid) -> slice:
    inside = torch.nonzero((positions - centre).abs() <= max(part.axes[:2]))
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0)


def _lines(rays: Rays, rays_per_bin: int) -> tuple[Tensor, Tensor]:
    """A point of every ray and its unit direction, each (rows, views, bins · rays_per_bin, 3), mm."""
    rays = replace(rays, u=rays.u / rays_per_bin, bins=rays.bins * rays_per_bin)
    points = np.stack([rays.points(view) for view in range(len(rays.u))], 1)
    source = np.broadcast_to(rays.source[:, None], points.shape)
    if rays.parallel:
        return torch.from_numpy(points), torch.from_numpy(source.copy())
    towards = points - source
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    return torch.from_numpy(source.copy()), torch.from_numpy(towards)


def disc(radius: float, mu: float = MU_WATER) -> Phantom:
    """A cylinder along z through the origin; of water by default.

    Args:
        radius: mm.
        mu: attenuation, 1/mm.
    """
    return Phantom((Ellipsoid((0.0, 0.0, 0.0), (radius, radius, math.inf), mu),))


# Contrast of each part to what it lies in, HU; fat starts from air, so the sum is the CT number + 1000.
# Every part lies inside one other or is disjoint from it, and shrinks faster along z than what it lies in.
_FAT, _MUSCLE, _LUNG, _BLOOD, _BONE, _MARROW = 900.0, 140.0, -890.0, 10.0, 760.0, -550.0
_TRUNK = (
    ((0, 0, 0), (172, 118, 900), _FAT),
    ((0, 0, 0), (160, 104, 800), _MUSCLE),
    ((8, 22, -10), (30, 42, 90), -_MUSCLE),  # fat around the heart
    ((8, 22, -10), (26, 37, 75), _MUSCLE + _BLOOD),
    ((22, -36, 0), (12, 12, 400), _BLOOD),  # descending aorta
    ((-6, -32, 0), (8, 9, 400), -1040.0),  # trachea
    ((0, -66, 0), (20, 16, 400), _BONE),  # vertebral body
    ((0, -66, 0), (17, 13, 300), _MARROW),
    ((0, -92, 0), (14, 9, 400), _BONE),  # vertebral arch
    ((0, -91, 0), (7, 6, 300), -_BONE),  # spinal canal
    ((0, 92, 0), (18, 6, 300), _BONE),  # sternum
    ((0, 92, 0), (14, 3, 250), _MARROW),
)
_LUNGS = (((-76, 4, 0), (50, 62, 150)), ((82, 0, 0), (42, 60, 150)))
_RIB_RING = (149.0, 93.0)


def thorax(seed: int = 0) -> Phantom:
    """A chest with realistic CT numbers, -1000 HU (air) to 800 HU (bone), that differs from slice to slice.

    Fat -100, muscle 40, blood 50, lung -850, marrow 250, bone 800, vessels and solid nodules 40, ground glass
    -600 HU. The body is at most 344 × 236 mm wide; the anatomy is meant for 150 mm on either side of z = 0.

    Args:
        seed: places vessels and nodules and sets the size of the body, 92 to 100 %.
    """
    generator = seeded(seed)
    size = 0.92 + 0.08 * float(torch.rand((), generator=generator, dtype=torch.float32))
    parts = [_part(centre, axes, contrast) for centre, axes, contrast in _TRUNK]
    parts += [_part(centre, axes, _LUNG) for centre, axes in _LUNGS] + _ribs()
    for centre, axes in _LUNGS:
        parts += _scattered(centre, axes, generator)
    return Phantom(tuple(_resized(part, size) for part in parts))


def _part(
    centre: tuple[float, ...], axes: tuple[float, ...], contrast_hu: float, angle: float = 0.0
) -> Ellipsoid:
    (x, y, z), (a, b, c) = centre, axes
    return Ellipsoid((x, y, z), (a, b, c), MU_WATER * contrast_hu / 1000, angle)


def _resized(part: Ellipsoid, size: float) -> Ellipsoid:
    (x, y, z), (a, b, c) = part.centre, part.axes
    return replace(part, centre=(size * x, size * y, z), axes=(size * a, size * b, c))


def _ribs() -> list[Ellipsoid]:
    """Ribs run obliquely, so a slice cuts some of them; each is a shell of bone around marrow."""
    parts = []
    a, b = _RIB_RING
    for place in range(14):
        t = math.radians(-66 + 22 * (place % 7)) + (math.pi if place >= 7 else 0)
        along = math.atan2(b * math.cos(t), -a * math.sin(t))
        for level in range(-3, 4):
            centre = (a * math.cos(t), b * math.sin(t), 32 * (level + 0.38 * place % 1))
            parts.append(_part(centre, (11, 4.5, 10), _BONE, along))
            parts.append(_part(centre, (8, 2.5, 8), _MARROW, along))
    return parts


def _scattered(
    centre: tuple[float, ...], axes: tuple[float, ...], generator: torch.Generator
) -> list[Ellipsoid]:
    """Disjoint nodules and vessels inside one lung, found by rejection.

    In coordinates where the lung is the unit ball a part fits into a ball of radius `reach`; balls that do
    not meet each other or the surface keep the parts apart.
    """
    parts: list[Ellipsoid] = []
    taken: list[tuple[Tensor, float]] = []
    for candidate in range(240):
        u = torch.rand(4, generator=generator, dtype=torch.float32).tolist()
        direction = torch.randn(3, generator=generator, dtype=torch.float32)
        if candidate < 6:  # nodules: spheres of 4 to 9 mm, every third of ground glass
            shape, contrast = (4 + 5 * u[0],) * 3, 250.0 if candidate % 3 == 2 else -_LUNG
        else:
            radius = 1.0 * 4 ** u[0]
            shape, contrast = (radius * (1 + 2 * u[1]), radius, 3 * radius), -_LUNG
        reach = max(max(shape[:2]) / min(axes[:2]), shape[2] / axes[2])
        place = direction / direction.norm() * (1 - reach) * u[2] ** (1 / 3)
        if all((place - other).norm() > reach + radius for other, radius in taken):
            taken.append((place, reach))
            position = tuple(m + axis * p for m, axis, p in zip(centre, axes, place.tolist(), strict=True))
            parts.append(_part(position, shape, contrast, math.pi * u[3]))
    return parts


def example(folder: Path) -> Iterator[Volume]:
    """A small chest in HU; nothing is written to the folder."""
    yield thorax(0).rasterise(VolumeGeometry((2, 32, 32), (3.0, 12.0, 12.0))).to_hu()
