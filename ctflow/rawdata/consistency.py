"""Consistency conditions of projections: levels, moments (Helgason and Ludwig), and opposite rays.

References: Natterer, The Mathematics of Computerized Tomography (2001), II.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, median_filter, uniform_filter1d

from ctflow.errors import GeometryError, UnitError
from ctflow.geometry import CircularBeam, ConeBeam, FanBeam, HelicalBeam
from ctflow.scan import Scan

Array = NDArray[np.float64]

_FEWEST = 8  # views and bins; fewer show nothing
_OPAQUE = 25.0  # no ray is measured through exp(-25)
_BESIDE = 0.03  # of the highest values: largest value of the outermost bins where the whole object is seen
_APART = 0.2  # of the highest values: a dead bin from its neighbours
_NOISE = 4.0  # standard deviations

# Where a law counts as broken, and a limit that no valid data come near. Valid data reached, in this order:
# 0.018 (noise of 1,000 photons), 0.014 and 0.14 (a tooth at a synchrotron), 0.01 (beam-hardened fans).
_BROKEN = {"sum": 0.05, "centre": 0.1, "width": 0.2, "opposite": 0.03}
_SURELY = {"sum": 0.25, "centre": 0.6, "width": 0.6, "opposite": 0.15}
_SUM_OF_PARTS = 0.35  # of views that do not see all of the object; 0.1 in a truncated chest
_LEAST = {"centre": 0.004, "width": 0.02}  # of the object's width, of its square: tubes and detectors drift
_EXPLAINS = 3.0  # factor by which another geometry must fit the laws better
_LAW = {
    "sum": "the sums of the views vary by {:.1%} of their mean, expected one sum",
    "centre": "{:.0%} of the movement of the centre of mass is not a sinusoid of the angles",
    "width": "{:.0%} of the change of the width does not fit any object that turns by these angles",
    "opposite": "opposite rays differ by {:.1%} of the values, expected the same",
}
_LIKELY = "transposed axes, views in another order, wrong angles or an off-centre detector"


def check_consistency(scan: Scan) -> list[str]:
    """Refuse projections that no object can have, and warn about unlikely ones.

    Fan beams are rebinned to parallel ones first; of a circular cone, the row in the plane of the source is a
    fan. For beams given view by view, helices and panels of parallel rays, only the levels are checked.

    Args:
        scan: y (rows, views, bins), line integrals, dimensionless; the laws are linear, and hold for the mean
            of the rows where rays stay in their slices.

    Returns:
        Warnings, with figures and likely causes.

    Raises:
        UnitError: the values are not line integrals.
        GeometryError: the values do not fit the angles or the detector.
    """
    y = scan.y.double().mean(0).numpy()
    beam = scan.beam
    said = _levels(scan, y)
    if isinstance(beam, ConeBeam) and not isinstance(beam, HelicalBeam):
        middle = (len(scan.y) - 1) // 2, len(scan.y) // 2
        y = scan.y[list(middle)].double().mean(0).numpy()
    elif not isinstance(beam, CircularBeam) or not beam.flat:
        return said
    if min(y.shape) < _FEWEST:
        return said
    if dead := _dead(y):
        return [*said, dead]
    whole = max(_edges(y)) < _BESIDE * np.percentile(y, 99)
    found = _figures(y, beam, whole)
    if found is None:
        return said
    sums = found.laws["sum"]
    if sums > (_SURELY["sum"] if whole else _SUM_OF_PARTS):
        raise GeometryError(
            f"{_LAW['sum'].format(sums)}; likely {_LIKELY}: see axes and angles of the geometry"
        )
    centred = _centred(y, beam, found, whole)
    if centred is not found:
        said.append(_off_centre(found.axis, beam))
    return said + _judged(centred, y, beam, whole)


@dataclass(frozen=True)
class _Figures:
    """Deviations from the laws, and the measured axis of rotation, in bins from the assumed one."""

    laws: dict[str, float]
    axis: float = 0.0

    @property
    def broken(self) -> set[str]:
        return {law for law, value in self.laws.items() if value > _BROKEN[law]}

    @property
    def worst(self) -> str:
        return max(self.laws, key=lambda law: self.laws[law] / _BROKEN[law])

    @property
    def breach(self) -> float:
        """More than 1 where a law is broken."""
        return self.laws[self.worst] / _BROKEN[self.worst]


def _levels(scan: Scan, y: Array) -> list[str]:
    highest, mean = float(scan.y.max()), float(y.mean())
    if highest > _OPAQUE:
        raise UnitError(
            f"values reach {highest:.4g} and no line integral above {_OPAQUE:.0f} can be measured; are they "
            'counts? Write values = "counts" with flat = and dark =, or give line integrals without a unit'
        )
    if mean <= 0:
        raise UnitError(
            f"the mean of the line integrals is {mean:.4g}, expected above 0; change the logarithm's sign, "
            "or check that flat and dark are not swapped"
        )
    left, right = _edges(y)
    edge, top = min(left, right), float(np.percentile(y, 99))
    if (
        0.8 < left < 1.2
        and 0.8 < right < 1.2
        and highest < 1.3 * edge
        and float(np.percentile(y, 5)) < 0.8 * edge
    ):
        raise UnitError(
            f"the values are {edge:.3g} beside the object and lower inside it, like transmission; give its "
            "negative natural logarithm"
        )
    if edge > _BESIDE * top:
        return [
            f"the outermost bins hold {left:.3g} and {right:.3g} where air gives 0 and the object {top:.3g}: "
            "it extends beyond the detector, or the data have an offset"
        ]
    low = float((y < -0.1 * top).mean())
    return [f"{low:.1%} of the line integrals are well below 0"] if low > 0.01 else []


def _edges(y: Array) -> tuple[float, float]:
    """Mean level of the outermost bins on either side."""
    outer = max(2, y.shape[1] // 50)
    return abs(float(y[:, :outer].mean())), abs(float(y[:, -outer:].mean()))


def _dead(y: Array) -> str:
    """Describe bins and views with one constant value that differs from their neighbours; "" if none."""
    far = _APART * float(np.percentile(y, 99))
    bins, views = (
        int(
            (
                (np.ptp(a, axis=0) == 0) & (np.abs(a[0] - median_filter(a.mean(0), 41, mode="nearest")) > far)
            ).sum()
        )
        for a in (y, y.T)
    )
    if not 0 < bins / y.shape[1] + views / y.shape[0] < 0.1:  # more than a tenth are not defects
        return ""
    return f"{bins} bins and {views} views hold a single value: interpolate them, or leave such views out"


def _centred(y: Array, beam: CircularBeam, found: _Figures, whole: bool) -> _Figures:
    """Deviations about the measured axis, if that is more than a bin from the assumed one."""
    if abs(found.axis) <= 1:
        return found
    return _figures(y, replace(beam, shift_bins=beam.shift_bins - found.axis), whole) or found


def _off_centre(shift: float, beam: CircularBeam) -> str:
    finding = "" if isinstance(beam, FanBeam) else ", or find_axis = true"
    return (
        f"the object turns about a point {shift:.1f} bins from the assumed axis; likely the detector is "
        f"off-centre or mirrored: give shift_bins = {beam.shift_bins - shift:.2f}{finding}"
    )


def _judged(found: _Figures, y: Array, beam: CircularBeam, whole: bool) -> list[str]:
    """Refuse a broken law if another geometry fixes it or no valid data come near; otherwise warn."""
    if found.breach <= 1:
        return []
    text = _LAW[found.worst].format(found.laws[found.worst])
    mended = {}
    for cause, other in _alternatives(beam):
        figures = _figures(y, other, whole)
        if figures is not None and found.broken & set(figures.laws):  # otherwise it explains nothing
            mended[cause] = _centred(y, other, figures, whole).breach
    cause = min(mended, key=mended.__getitem__, default="")
    if cause and mended[cause] < found.breach / _EXPLAINS:
        raise GeometryError(f"{text}; likely {cause}, with which they are consistent: correct the geometry")
    surely = {law for law in found.broken if found.laws[law] > _SURELY[law]}
    if surely - {"centre"} or (surely and len(found.broken) > 1):  # the centre alone moves with the patient
        raise GeometryError(f"{text}; likely {_LIKELY}: see axes and angles of the geometry")
    return [f"{text}; likely {_LIKELY}, a moved object, or wrong distances"]


def _alternatives(beam: CircularBeam) -> Iterator[tuple[str, CircularBeam]]:
    """Common mistakes in the geometry, each with its description."""
    views = np.asarray(beam.views)
    if isinstance(beam, FanBeam):
        yield (
            "a reversed direction of rotation or of the detector's bins",
            replace(beam, angles=tuple(-views)),
        )
    for factor, words in ((2.0, "twice"), (0.5, "half")):
        if factor * np.ptp(views) < beam.longest_span:
            yield f"an arc {words} as long", replace(beam, angles=tuple(factor * views))


def _figures(y: Array, beam: CircularBeam, whole: bool) -> _Figures | None:
    """Deviations from the laws over at most one turn; None where a fan's arc holds no parallel view."""
    y, views = _one_turn(y, beam)
    rebinned = _parallel(y, views, beam)
    if rebinned is None:
        return None
    p, theta, s = rebinned
    sums = p.sum(1)
    varying = float(sums.std() / abs(sums.mean()))
    if not whole:  # only opposite rays, which see the same part, are checked more finely
        # Then each view sees another half of the object.
        one_sided = min(abs(s[[0, -1]])) < max(abs(s[[0, -1]])) / 2
        sums_say = varying > _SUM_OF_PARTS and not one_sided
        return _Figures({"sum": varying if sums_say else 0.0} | _opposite(p, theta, s))
    if sums.min() < sums.mean() / 2:
        return _Figures({"sum": varying})
    axis, moments = _moments(p, theta, s)
    return _Figures({"sum": varying} | moments | _opposite(p, theta, s), axis)


def _one_turn(y: Array, beam: CircularBeam) -> tuple[Array, Array]:
    """Views in the order of their angles, from one turn only."""
    views = np.asarray(beam.views)
    order = np.argsort(views, kind="stable")
    y, views = y[order], views[order]
    kept = views < views[0] + 2 * math.pi - np.median(np.diff(views)) / 2
    return y[kept], views[kept]


def _closed(views: Array) -> bool:
    """Whether views cover a whole turn, evenly enough to interpolate between them."""
    steps = np.diff(views, append=views[0] + 2 * math.pi)
    return bool(steps.max() < 2 * np.median(steps))


def _parallel(y: Array, views: Array, beam: CircularBeam) -> tuple[Array, Array, Array] | None:
    """Parallel projections (angles, positions), their angles in rad and positions in mm."""
    assert beam.pitch is not None  # a scan's beam is fitted
    bins: Array = np.arange(y.shape[1], dtype=np.float64)
    u: Array = (bins - (len(bins) - 1) / 2 + beam.shift_bins) * beam.pitch
    if not isinstance(beam, FanBeam):
        return y, views, np.asarray(u - beam.axis_offset, np.float64)
    # A ray γ off the central one of view φ belongs to the parallel view φ - γ.
    fan = u / beam.source_detector if beam.curved else np.arctan(u / beam.source_detector)
    places = beam.orbit * np.sin(fan - beam.axis_angle)
    s = np.linspace(places[0], places[-1], len(places)).astype(np.float64)
    gamma = np.arcsin(s / beam.orbit) + beam.axis_angle
    theta = views
    if not (closed := _closed(views)):
        first, last = views[0] - gamma[0], views[-1] - gamma[-1]
        number = int(len(views) * (last - first) / max(views[-1] - views[0], 1e-6))
        if number < _FEWEST:
            return None
        theta = np.linspace(first, last, number).astype(np.float64)
    phi = theta[:, None] + gamma
    column: Array = np.broadcast_to(np.interp(gamma, fan, bins), phi.shape)
    return _at(y, _place(phi, views, closed), column, closed), theta, s


def _place(angle: Array, views: Array, closed: bool) -> Array:
    """Fractional indices of angles among the views."""
    n = len(views)
    if not closed:
        return np.asarray(np.interp(angle, views, np.arange(n)), np.float64)
    turns = np.concatenate([views - 2 * math.pi, views, views + 2 * math.pi])
    within = (angle - views[0]) % (2 * math.pi) + views[0]
    return np.asarray(np.interp(within, turns, np.arange(-n, 2 * n)) % n, np.float64)


def _at(y: Array, view: Array, column: Array, closed: bool) -> Array:
    values: Array = map_coordinates(y, [view, column], order=1, mode="grid-wrap" if closed else "nearest")
    return values


def _variance(p: Array) -> Array:
    """Variance of white noise in every bin, from second differences along the bins; structure adds to it."""
    inner: Array = (np.diff(p, 2, axis=1) ** 2).mean(0) / 6
    return np.pad(inner, 1, mode="edge")


def _moments(p: Array, theta: Array, s: Array) -> tuple[float, dict[str, float]]:
    """Distance from s = 0 to the measured axis, and the residuals of the moment conditions."""
    step = float(s[1] - s[0])
    sums, variance = p.sum(1), _variance(p)
    centre = p @ s / sums
    middle = float(centre.mean())
    width = math.sqrt(max(float(p.sum(0) @ (s - middle) ** 2 / p.sum()), step**2))
    half_turn = theta[-1] - theta[0] + np.median(np.diff(theta)) > 0.95 * math.pi
    # Less than half a turn shows no axis.
    waves = [np.cos(theta), np.sin(theta), *([np.ones_like(theta)] if half_turn else [])]
    left, found = _left(centre / width, waves)
    axis = float(found[2]) * width / step if half_turn else 0.0
    noise = {
        name: math.sqrt(float(variance @ weight**2)) / float(sums.mean())
        for name, weight in (("centre", (s - middle) / width), ("width", ((s - middle) / width) ** 2))
    }
    if abs(axis) < _NOISE * noise["centre"] * width / step / math.sqrt(len(p) / 2):
        axis = 0.0
    second = p @ s**2 / sums.mean() / width**2
    waves = [np.cos(2 * theta), np.sin(2 * theta), np.ones_like(theta)]
    parts = {"centre": (centre / width, left), "width": (second, _left(second, waves)[0])}
    return axis, {
        name: float(rest.std() / max(moment.std(), _LEAST[name]))
        if rest.std() > max(_LEAST[name], _NOISE * noise[name])
        else 0.0
        for name, (moment, rest) in parts.items()
    }


def _left(moment: Array, waves: list[Array]) -> tuple[Array, Array]:
    """Residual of a fit of sinusoids, and their amplitudes."""
    columns = np.stack(waves, 1)
    heights: Array = np.linalg.lstsq(columns, moment, rcond=None)[0].astype(np.float64)
    return moment - columns @ heights, heights


def _opposite(p: Array, theta: Array, s: Array) -> dict[str, float]:
    """RMS difference of rays and their reverses, relative to their RMS; for a whole turn only."""
    if not _closed(theta):
        return {}
    seen = (-s >= s[0]) & (-s <= s[-1])
    column = np.interp(-s[seen], s, np.arange(len(s)))
    view = np.broadcast_to(_place(theta + math.pi, theta, closed=True)[:, None], (len(theta), len(column)))
    other = _at(p, view, np.broadcast_to(column, view.shape), closed=True)
    smooth = max(1, p.shape[1] // 40)
    one, other = (uniform_filter1d(values, smooth, axis=1) for values in (p[:, seen], other))
    size = math.sqrt(float((one**2).mean()))
    apart = math.sqrt(float(((one - other) ** 2).mean())) / size
    noise = math.sqrt(2 * float(_variance(p).mean()) / smooth) / size
    return {"opposite": apart if apart > _NOISE / 2 * noise else 0.0}
