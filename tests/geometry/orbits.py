"""Sources, panels, chords and shadows from their textbook formulas, not from the beams' own arrays."""

import math

import torch

from ctflow.geometry import HelicalBeam, ParallelBeam, VolumeGeometry


def ball(
    volume: VolumeGeometry, centre: tuple[float, float, float], radius: float, mu: float
) -> torch.Tensor:
    """Voxels of a ball at (x, y, z), each the mean of 4 × 4 × 4 points, in 1/mm."""
    fine = [4 * n for n in volume.shape]
    z, y, x = (
        (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * step / 4
        for n, step in zip(fine, volume.spacing, strict=True)
    )
    inside = (
        (x - centre[0]) ** 2 + (-y[:, None] - centre[1]) ** 2 + (z[:, None, None] - centre[2]) ** 2
    ) <= radius**2
    return mu * torch.nn.functional.avg_pool3d(inside.double()[None], 4)[0]


def orbit(beam, rows: int, bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A point and the unit direction of every ray, (rows, views, bins, 3), by textbook formulas."""
    theta = torch.tensor(beam.views, dtype=torch.float64)[None, :, None]
    s = ((torch.arange(bins) - (bins - 1) / 2).double() * beam.pitch)[None, None]
    v = ((torch.arange(rows) - (rows - 1) / 2).double() * beam.row_pitch)[:, None, None]
    along = torch.stack([theta.cos(), theta.sin(), 0 * theta], -1)
    ray = torch.stack([-theta.sin(), theta.cos(), 0 * theta], -1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    if isinstance(beam, ParallelBeam):
        start = s[..., None] * along + v[..., None] * up
        return start, ray.expand_as(start)
    climb = torch.zeros_like(theta)
    if isinstance(beam, HelicalBeam):
        climb = beam.feed * (theta - theta.mean()) / (2 * math.pi)
    source = -beam.source_axis * ray + climb[..., None] * up
    D = beam.source_detector
    across, ahead = (D * (s / D).sin(), D * (s / D).cos()) if beam.curved else (s, D + 0 * s)
    towards = across[..., None] * along + ahead[..., None] * ray + v[..., None] * up
    towards = towards / towards.norm(dim=-1, keepdim=True)
    return source.expand_as(towards), towards


def chords(beam, shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float):
    """Length of every ray in a ball: 2 sqrt(radius² - distance²), mm."""
    start, towards = orbit(beam, shape[0], shape[2])
    offset = torch.tensor(centre, dtype=torch.float64) - start
    distance = torch.linalg.cross(offset, towards.expand_as(offset)).norm(dim=-1)
    return 2 * (radius**2 - distance**2).clamp_min(0).sqrt()


def seen(beam, point: tuple[float, float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a point lands on the panel in every view: along the bins, along the rows; mm from the middle."""
    x, y, z = point
    theta = torch.tensor(beam.views, dtype=torch.float64)
    across, ahead = x * theta.cos() + y * theta.sin(), y * theta.cos() - x * theta.sin()
    if isinstance(beam, ParallelBeam):
        return across, torch.full_like(across, z)
    ahead, D = ahead + beam.source_axis, beam.source_detector
    height = z - (beam.feed * (theta - theta.mean()) / (2 * math.pi) if isinstance(beam, HelicalBeam) else 0)
    if beam.curved:
        return D * torch.atan2(across, ahead), D * height / torch.hypot(across, ahead)
    return D * across / ahead, D * height / ahead


def centroid(values: torch.Tensor, pitch: float, axis: int) -> torch.Tensor:
    """Centre of mass of (rows, views, bins) along rows (0) or bins (2), mm from the middle, per view."""
    place = (torch.arange(values.shape[axis]) - (values.shape[axis] - 1) / 2) * pitch
    mass = values.sum(2 - axis)  # (rows, views) or (views, bins)
    mass = mass if axis else mass.T
    return mass @ place.to(mass) / mass.sum(1)
