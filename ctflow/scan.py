"""Measured projections: from counts to line integrals, and the position of the rotation axis."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ctflow.errors import GeometryError, UnitError
from ctflow.geometry import Beam, FlyingSpot, ParallelBeam, VolumeGeometry
from ctflow.geometry._long_object import seen_height

# Below it a ray is starved: 16 bits cannot tell less than 1 / 65,536 of full scale from nothing.
_LEAST_TRANSMISSION = 2.0**-16
_NEAR = 3.2  # median steps between views that still count as opposed


@dataclass(frozen=True, eq=False, repr=False)
class Scan:
    """Measured projections, the rays they were measured along, and what the scanner says about them.

    Shapes: y (rows, views, bins), line integrals, dimensionless; rows = slices where the beam is flat.

    Args:
        y: measured data.
        beam: a fitted beam, in mm and rad; the origin of its frame is the middle of the grid.
        kind: description of the file format.
        grid: grid of the image that goes with the data; None lets `image_grid` choose.
        photons: incident photons of every ray, (views, bins) or (1, bins), where the scanner counted them.
        mu_water: the scanner's attenuation of water, 1/mm.
        spot: tables of a scanner whose table moves or whose focal spot flies.
        source: DICOM headers, for `write_series`; never printed.
        sha256: digest of the data and of the geometry; holds nothing about the patient.
        notes: what a reader of the results must know.

    Raises:
        GeometryError: data and beam disagree.
        UnitError: data are not finite.

    Examples:
        >>> import ctflow as ct
        >>> from ctflow.datasets.phantoms import disc
        >>> grid = ct.VolumeGeometry((1, 32, 32), (3.0, 3.0, 3.0))  # (Z, Y, X), mm
        >>> beam = ct.ParallelBeam(angles=60).fitted(grid)
        >>> scan = ct.Scan(disc(radius=30.0).line_integrals(grid, beam), beam, kind="an array")
        >>> scan.kind, scan.y.shape, scan.every(2).y.shape  # (rows, views, bins)
        ('an array', torch.Size([1, 60, 47]), torch.Size([1, 30, 47]))
    """

    y: Tensor
    beam: Beam
    kind: str
    grid: VolumeGeometry | None = None
    photons: Tensor | None = None
    mu_water: float | None = None
    spot: FlyingSpot | None = None
    source: object = field(default=None, repr=False)
    sha256: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        views, bins = len(self.beam.views), self.beam.bins
        if self.y.ndim != 3 or tuple(self.y.shape[1:]) != (views, bins):
            raise GeometryError(
                f"data {tuple(self.y.shape)} must be (rows, views, bins) and the geometry has {views} views "
                f"and {bins} bins; transpose the data, or correct the geometry"
            )
        if not self.beam.flat and (rows := self.beam.rays().rows) != self.y.shape[0]:
            raise GeometryError(
                f"data {tuple(self.y.shape)} must be (rows, views, bins) and the geometry has {rows} rows; "
                "transpose the data, or correct the geometry"
            )
        broken = self.y.numel() - int(torch.isfinite(self.y).sum())
        if broken:
            raise UnitError(
                f"{broken} of {self.y.numel()} data are NaN or infinite; replace them, dead bins by "
                "their neighbours"
            )

    def __repr__(self) -> str:
        size = " × ".join(map(str, self.y.shape))
        return f"<Scan of {size} data (rows, views, bins), {self.kind}: {self.beam}>"

    @property
    def weights(self) -> Tensor | None:
        """Weights photons · exp(-y), 1 / variance of every datum, (rows, views, bins); None if unknown."""
        return None if self.photons is None else self.photons * torch.exp(-self.y)

    def every(self, step: int) -> Scan:
        """Keep every `step`-th view, as if the others had not been measured; same unit."""
        return self._views(slice(None, None, step))

    def first(self, number: int) -> Scan:
        """Keep the first `number` views; same unit."""
        return self._views(slice(0, number))

    def _views(self, kept: slice) -> Scan:
        photons = self.photons
        if photons is not None and len(photons) > 1:
            photons = photons[kept]
        return replace(self, y=self.y[:, kept], beam=self.beam.subset(kept), photons=photons, spot=None)

    def image_grid(self, slices: int = 1, thickness: float = 1.0, largest: int = 512) -> VolumeGeometry:
        """The scan's own grid, or square pixels as fine as the bins, over the field of view of all views.

        Where rays cross slices: cubes, and those slices that every view sees from rim to rim.

        Args:
            slices: number of slices; not used where rays cross them.
            thickness: distance between slices, mm; likewise.
            largest: largest number of voxels along a side.

        Raises:
            GeometryError: a panel sees nothing in all views.
        """
        if self.grid is not None:
            return self.grid
        return self.slice_grid(slices, thickness, largest) if self.beam.flat else self._cubes(largest)

    def slice_grid(self, slices: int, thickness: float, largest: int = 512) -> VolumeGeometry:
        """Square pixels as fine as the bins at the axis, over the field of view of all views, mm.

        Args:
            slices: number of slices.
            thickness: distance between slices, mm.
            largest: largest number of pixels along a side.
        """
        assert self.beam.pitch is not None  # a scan's beam is fitted
        fov = self.beam.field_of_view() * (1 - 1e-4)  # type: ignore[attr-defined]
        pixels = min(largest, math.ceil(fov * self.beam.magnification() / self.beam.pitch))
        return VolumeGeometry((slices, pixels, pixels), (thickness, fov / pixels, fov / pixels))

    def _cubes(self, largest: int) -> VolumeGeometry:
        beam = self.beam
        assert beam.pitch is not None  # a scan's beam is fitted
        fov = beam.field_of_view() * (1 - 1e-4)  # type: ignore[attr-defined]
        height = 2 * seen_height(beam, fov / 2)
        side = max(beam.pitch / beam.magnification(), fov / largest, height / largest)
        if min(fov, height) < side:
            raise GeometryError(
                f"all views together see {fov:.1f} mm around the axis and {height:.1f} mm along it, less "
                f"than a voxel of {side:.2g} mm; correct the detector's shift, its rows and distances"
            )
        pixels = math.ceil(fov / side - 1e-6)
        side = fov / pixels
        return VolumeGeometry((max(1, int(height / side)), pixels, pixels), (side, side, side))


def to_line_integrals(counts: Tensor, flat: Tensor, dark: Tensor) -> Tensor:
    """Convert counts to line integrals -log((counts - dark) / (flat - dark)) by the Beer-Lambert law.

    Args:
        counts: measured with the object, (*batch, rows, views, bins), in any linear unit.
        flat: measured without the object, mean over its exposures; (rows, 1, bins), or broadcastable to it.
        dark: measured without X-rays, likewise.

    Returns:
        (*batch, rows, views, bins), dimensionless; a starved ray gets log(65,536) = 11.1.

    Raises:
        UnitError: a bin of the flat field is no brighter than the dark field.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> counts = torch.tensor([[[600.0, 235.3, 100.0]]])  # (rows, views, bins)
        >>> flat, dark = torch.full((1, 1, 3), 1100.0), torch.full((1, 1, 3), 100.0)
        >>> ct.to_line_integrals(counts, flat, dark).round(decimals=2)  # the last ray is starved
        tensor([[[ 0.6900,  2.0000, 11.0900]]])
    """
    gain = flat - dark
    dead = int((gain <= 0).sum())
    if dead or not bool(torch.isfinite(gain).all()):
        raise UnitError(
            f"{dead} bins of the flat field are no brighter than the dark field, or not finite; "
            "check that the two are not swapped, or interpolate these bins first"
        )
    return -((counts - dark) / gain).clamp_min(_LEAST_TRANSMISSION).log()


def find_axis(y: Tensor, beam: ParallelBeam) -> ParallelBeam:
    """Find the detector shift of a beam from its data, by correlating opposed views.

    Views half a turn apart are mirror images about the axis. Where no pair is exactly opposed, the shift d of
    a pair that misses half a turn by δ is wrong by δ (a cos θ + b sin θ): d, a and b are fitted to all near
    pairs.

    Args:
        y: line integrals, (*batch, rows, views, bins), dimensionless; all rows are used together.
        beam: parallel beam with bins and pitch of the detector; its `shift_bins` is replaced.

    Returns:
        The beam with the new `shift_bins`, accurate to some tenths of a bin; its `axis_offset` is kept.

    Raises:
        GeometryError: the shapes disagree, or no two views are nearly opposed.

    Examples:
        >>> from dataclasses import replace
        >>> import ctflow as ct
        >>> from ctflow.datasets.phantoms import thorax
        >>> grid = ct.VolumeGeometry((1, 64, 64), (6.0, 6.0, 6.0))  # (Z, Y, X), mm
        >>> beam = ct.ParallelBeam(angles=120, arc_degrees=360.0, bins=101, pitch=6.0)
        >>> y = thorax().line_integrals(grid, replace(beam, shift_bins=2.5))
        >>> bool(abs(ct.find_axis(y, beam).shift_bins - 2.5) < 0.3)
        True
    """
    if tuple(y.shape[-2:]) != (len(beam.views), beam.bins) or beam.pitch is None:
        raise GeometryError(
            f"data {tuple(y.shape)} and a beam of {len(beam.views)} views, {beam.bins} bins, pitch "
            f"{beam.pitch} mm do not go together; give bins and pitch (*batch, rows, views, bins)"
        )
    first, second, miss = _opposed(beam)
    rows = y.double().flatten(0, -3)
    apart = _apart(rows[:, first], rows[:, second].flip(-1))
    theta = torch.tensor(beam.views, dtype=torch.float64)[first]
    terms = torch.stack([torch.ones_like(miss), miss * theta.cos(), miss * theta.sin()], 1)
    # Opposed views see the axis at the same place: half of their distance.
    middle = torch.linalg.lstsq(terms, apart[:, None] / 2, driver="gelsd").solution[0, 0]
    return replace(beam, shift_bins=beam.axis_offset / beam.pitch - float(middle))


def _opposed(beam: ParallelBeam) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of views nearly half a turn apart, and their deviation from it, rad."""
    angles = torch.tensor(beam.views, dtype=torch.float64)
    step = angles.sort().values.diff()
    near = _NEAR * float(step[step > 1e-6].median()) if len(step) else 0.0
    miss = (angles[None] - angles[:, None]).remainder(2 * math.pi) - math.pi
    first, second = torch.nonzero(miss.abs() <= near, as_tuple=True)
    if not len(first):
        raise GeometryError(
            "no two views are half a turn apart, so the axis cannot be found; "
            "measure 180° and one more view, or give shift_bins"
        )
    return first, second, miss[first, second]


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Shift of b (rows, pairs, bins) that matches it to a, bins: the peak of their correlation, (pairs,)."""
    bins = a.shape[-1]
    product = torch.fft.rfft(a, 2 * bins) * torch.fft.rfft(b, 2 * bins).conj()
    correlation = torch.fft.irfft(product, 2 * bins).sum(0)
    peak = correlation.argmax(-1, keepdim=True)
    left, top, right = (correlation.gather(-1, (peak + step) % (2 * bins))[:, 0] for step in (-1, 0, 1))
    peak = torch.where(peak >= bins, peak - 2 * bins, peak)[:, 0]
    # The top of the parabola through the three.
    refined: Tensor = peak + (left - right) / 2 / (left - 2 * top + right)
    return refined
