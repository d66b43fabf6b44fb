"""Sort the rays of a turning source by direction and distance from the axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.geometry import Rays
from ctflow.scan import Scan

Array = NDArray[np.float64]

_MOST_PLACES = 4  # of a focal spot that flies in the plane and along the axis
_SAME_PLACE = 0.02  # mm; a spot flies by tenths of one


@dataclass(frozen=True, eq=False)
class ParallelSet:
    """Rays of one focal spot sorted into parallel views: columns are parallel, rows still diverge along z.

    In the plane of a slice the ray (θ, t) is the line x cos θ + y sin θ = t with direction (-sin θ, cos θ).

    Args:
        y: line integrals, (rows, views, bins), dimensionless.
        theta: angle of every view, equidistant and growing, (views,), rad.
        t: distance of every bin from the axis, equidistant, (bins,), mm.
        source_z: height of the source of every ray, (views, bins), mm.
        distance: distance from the source to the point of the ray nearest the axis, (bins,), mm, in the
            plane.
        reach: distance from the source to the detector, (bins,), mm, in the plane.
        drop: height of the detector's middle above the source, mm.
        row_pitch: distance between rows, negative where they run against z, mm.
    """

    y: Tensor
    theta: Array
    t: Array
    source_z: Tensor
    distance: Tensor
    reach: Tensor
    drop: float
    row_pitch: float

    @property
    def half_turn(self) -> int:
        """Views in half a turn."""
        return round(math.pi / float(self.theta[1] - self.theta[0]))


def to_parallel(scan: Scan) -> list[ParallelSet]:
    """Sort the rays of a scan into parallel views, row by row and separately for every focal spot.

    Each set keeps the position of its own source. All sets share θ and t, whose steps are those of the views
    and of the bins at the axis; half a turn is a whole number of steps.

    Args:
        scan: circle or helix with equidistant views.

    Returns:
        One set for every position of the focal spot, heights in the frame of `scan.beam`.

    Raises:
        GeometryError: the scan is no circle or helix, or less than half a turn.

    References:
        Stierstorfer et al., Phys. Med. Biol. 49 (2004), 2.1, without its quarter-offset interlacing.
    """
    views, rays = len(scan.beam.views), scan.beam.rays()
    if views < 4 or scan.beam.flat or rays.parallel:
        raise GeometryError(
            "rebinning needs a circle or helix of a point source and this scan has none; use FBP, FDK or CGLS"
        )
    groups = _groups(_places(rays))
    fans = [_Fan.of(rays, group) for group in groups]
    theta, t = _grid(fans, scan)
    data = [scan.y[:, torch.from_numpy(group)] for group in groups]
    return [_sorted(fan, y, theta, t) for fan, y in zip(fans, data, strict=True)]


def _places(rays: Rays) -> Array:
    """Where the source and the axis are as the detector of every view sees them, (views, 5), mm."""
    frame = np.stack([rays.u, rays.v, rays.normal], 1)
    frame /= np.linalg.norm(frame, axis=2, keepdims=True)
    source = np.einsum("vij,vj->vi", frame, rays.source - rays.centre)
    axis = np.einsum("vij,vj->vi", frame[:, ::2, :2], rays.centre[:, :2])
    return np.concatenate([source, axis], 1)


def _groups(places: Array) -> list[NDArray[np.int64]]:
    """Numbers of the views of every place of the focal spot, growing.

    Raises:
        GeometryError: there are more than a turning scanner has.
    """
    groups: list[NDArray[np.int64]] = []
    left = np.arange(len(places))
    while len(left):
        same = np.abs(places[left] - places[left[0]]).max(1) < _SAME_PLACE
        groups.append(left[same])
        left = left[~same]
        if len(groups) == _MOST_PLACES and len(left):
            raise GeometryError(
                f"source, detector and axis stand to each other in more than {_MOST_PLACES} ways, as no "
                "scanner does that turns; use CGLS or SIRT"
            )
    return groups


@dataclass(frozen=True, eq=False)
class _Fan:
    """Rays of one focal spot as seen from its own turning frame."""

    turned: Array  # how far each view has turned, growing, (views,), rad
    backwards: bool  # whether the views had to be reversed for that
    alpha: Array  # direction of every bin in that frame, (bins,), rad
    t: Array  # distance from the axis, (bins,), mm
    distance: Array
    reach: Array
    z: Array  # height of the source, (views,), mm
    drop: float
    row_pitch: float

    @classmethod
    def of(cls, rays: Rays, group: NDArray[np.int64]) -> _Fan:
        normal = rays.normal[group]
        turned = np.unwrap(np.arctan2(-normal[:, 0], normal[:, 1]))
        backwards = bool(turned[-1] < turned[0])
        order = group[::-1] if backwards else group
        first, source = order[0], rays.source[order]
        ahead = rays.points(int(first))[0, :, :2] - source[0, :2]
        reach = np.linalg.norm(ahead, axis=1)
        psi = np.unwrap(np.arctan2(-ahead[:, 0], ahead[:, 1]))
        turned = turned[::-1] if backwards else turned
        return cls(
            turned,
            backwards,
            (psi - turned[0] + math.pi) % (2 * math.pi) - math.pi,
            source[0, 0] * np.cos(psi) + source[0, 1] * np.sin(psi),
            source[0, 0] * np.sin(psi) - source[0, 1] * np.cos(psi),
            reach,
            source[:, 2],
            float(rays.centre[first, 2] - rays.source[first, 2]),
            float(rays.v[first, 2]),
        )


def _grid(fans: list[_Fan], scan: Scan) -> tuple[Array, Array]:
    """Values of θ and t that every fan covers."""
    assert scan.beam.pitch is not None  # a scan's beam is fitted
    low = max(f.turned[0] + f.alpha.max() for f in fans)
    high = min(f.turned[-1] + f.alpha.min() for f in fans)
    step = math.pi / round(math.pi / np.median(np.diff(fans[0].turned)) * len(fans))
    if high - low < math.pi:
        raise GeometryError(
            f"parallel views cover {math.degrees(max(0, high - low)):.0f}° and half a turn is needed; "
            "give the views of half a turn and the fan angle, or more"
        )
    theta = low + step * np.arange(int((high - low) / step) + 1)
    # As far as the bins of all spots reach on both sides, so that opposed views share their lines.
    width = min(min(-f.t.min(), f.t.max()) for f in fans)
    pitch = scan.beam.pitch / scan.beam.magnification()
    bins = math.floor(width / pitch + 0.5)
    return theta, pitch * (np.arange(-bins, bins) + 0.5)


def _sorted(fan: _Fan, y: Tensor, theta: Array, t: Array) -> ParallelSet:
    order = np.argsort(fan.t)
    bins = np.interp(t, fan.t[order], order.astype(float))
    alpha, distance, reach = (
        np.interp(bins, np.arange(len(fan.t)), a) for a in (fan.alpha, fan.distance, fan.reach)
    )
    views = np.interp(theta[:, None] - alpha, fan.turned, np.arange(len(fan.turned), dtype=float))
    z = np.interp(views, np.arange(len(fan.z)), fan.z)
    y = y.flip(1) if fan.backwards else y
    return ParallelSet(
        _bilinear(y, torch.from_numpy(views), torch.from_numpy(bins)),
        theta,
        t,
        torch.from_numpy(z).float(),
        torch.from_numpy(distance).float(),
        torch.from_numpy(reach).float(),
        fan.drop,
        fan.row_pitch,
    )


def _bilinear(y: Tensor, views: Tensor, bins: Tensor) -> Tensor:
    """Interpolate y (rows, views, bins) at fractional views (n, m) and bins (m,), one row at a time."""
    i = views.floor().long().clamp(0, y.shape[1] - 2)
    k = bins.floor().long().clamp(0, y.shape[2] - 2)
    a, b = (views - i).float(), (bins - k).float()
    out = y.new_empty(len(y), *views.shape)
    for row, values in zip(out, y, strict=True):
        early, late = (torch.lerp(values[i + s, k], values[i + s, k + 1], b) for s in (0, 1))
        row.copy_(torch.lerp(early, late, a))
    return out
