"""Filtered backprojection of parallel and fan beams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.geometry import Beam, CircularBeam, FanBeam, ParallelBeam3D, VolumeGeometry
from ctflow.problem import InverseProblem
from ctflow.recon._backprojection import backproject, bin_step
from ctflow.recon._ramp import FILTERS, filter_rows, require_window
from ctflow.recon._views import bin_numbers, fan_angles, projection, redundancy, undisplaced, view_weights
from ctflow.search_space import Range
from ctflow.system.progress import StepProgress

__all__ = ["FBP"]


@dataclass(frozen=True)
class FBP:
    """Filtered backprojection: ramp filter along the bins, then every pixel sums what its rays measured.

    For parallel beams and for fans with flat or curved detector, shifted, displaced (half fan) or off the
    axis, full turns and short scans. Views may be unevenly spaced or repeated; each weighs half the gaps to
    its neighbours. A missing wedge of a parallel beam stays unmeasured. Noise weights are not used. Runs
    where the data are.

    Args:
        filter: "ramp", or the ramp under a window: "hann", "shepp-logan" or "cosine".

    Raises:
        ProtocolError: the filter is unknown.

    References:
        Kak and Slaney, Principles of Computerized Tomographic Imaging (1988), eq. 3.61 (ramp), 3.4.1 (curved
        fan) and 3.177 (flat fan).

    Examples:
        >>> import ctflow as ct
        >>> from ctflow.datasets.phantoms import disc
        >>> grid = ct.VolumeGeometry((1, 64, 64), (3.0, 3.0, 3.0))  # (Z, Y, X), mm
        >>> truth = disc(radius=60.0).rasterise(grid)  # of water, 0.0192 / mm
        >>> problem = ct.simulate(ct.Radon(grid, ct.ParallelBeam(angles=90)), truth, ct.Poisson(photons=1e5))
        >>> found = ct.solve(problem, ct.FBP(filter="hann"))
        >>> found.x.shape  # (samples, Z, Y, X), 1/mm
        torch.Size([1, 1, 64, 64])
        >>> hu = truth.with_data(found.mean).to_hu().data[0, 24:40, 24:40]  # inside the disc
        >>> bool(abs(hu.mean()) < 5), bool(hu.std() < 5)
        (True, True)
    """

    filter: str = "ramp"
    needs_prior: ClassVar[bool] = False
    search: ClassVar[dict[str, Range]] = {"filter": FILTERS}
    cost: ClassVar[str] = "1 filtered backprojection"
    paper: ClassVar[str] = """@book{kak1988principles,
  author    = {Kak, Avinash C. and Slaney, Malcolm},
  title     = {Principles of Computerized Tomographic Imaging},
  publisher = {IEEE Press},
  year      = {1988}
}"""

    def __post_init__(self) -> None:
        require_window(self.filter)

    def __call__(
        self, problem: InverseProblem, prior: object, generator: torch.Generator, callback: StepProgress
    ) -> Tensor:
        """Image in 1/mm, (*batch, Z, Y, X).

        Raises:
            UsageError: the operator is not a projection by itself.
            GeometryError: the beam is a cone or given by vectors, or a fan measures less than a short scan.
        """
        A = projection(problem, "FBP")
        volume, beam = A.volume, invertible(A.beam)
        y = problem.y
        if isinstance(beam, ParallelBeam3D):
            y = rows_to_slices(y, volume, beam)
        if isinstance(beam, FanBeam) and beam.displaced:
            y, beam = undisplaced(y, beam, volume.fov / 2)
        y = y.flatten(0, -3) * ray_weights(beam, volume).to(y)
        filtered = filter_rows(y, bin_step(beam), self.filter, isinstance(beam, FanBeam) and beam.curved)
        x = backproject(filtered, volume, beam)
        callback(1, 1)
        return x.reshape(*problem.batch_shape, *volume.shape)


def invertible(beam: Beam) -> CircularBeam:
    """The beam, when FBP has a formula for it.

    Raises:
        GeometryError: it has none.
    """
    if isinstance(beam, CircularBeam) and (beam.flat or isinstance(beam, ParallelBeam3D)):
        return beam
    raise GeometryError(
        f"FBP inverts parallel and fan beams and was given a {type(beam).__name__}; "
        "use FDK for a circular cone, CGLS or SIRT for the others"
    )


def ray_weights(beam: CircularBeam, volume: VolumeGeometry) -> Tensor:
    """What every ray is multiplied with before the filter.

    Args:
        beam: fitted parallel or fan beam.
        volume: grid of the image.

    Returns:
        (views, bins), in float64: the angle that the view stands for, rad; times redundancy and obliquity of
        a fan (in mm when its detector is curved).

    Raises:
        GeometryError: a fan measures less than a short scan.
    """
    weights = view_weights(beam)[:, None]
    if not isinstance(beam, FanBeam):
        return weights
    obliquity = beam.orbit * fan_angles(beam).cos()
    return weights * redundancy(beam, volume.fov / 2) * obliquity / (1 if beam.curved else beam.source_axis)


def rows_to_slices(y: Tensor, volume: VolumeGeometry, beam: ParallelBeam3D) -> Tensor:
    """Detector rows of a parallel beam interpolated linearly to the heights of the slices.

    Args:
        y: (*batch, rows, views, bins), dimensionless.
        volume: grid of the image.
        beam: fitted beam.

    Returns:
        (*batch, Z, views, bins), dimensionless.
    """
    assert beam.rows is not None  # the beam is fitted
    assert beam.row_pitch is not None
    heights = bin_numbers(volume.shape[0]) * volume.spacing[0]
    place = (heights / beam.row_pitch + (beam.rows - 1) / 2).clamp(0, beam.rows - 1).to(y.device)
    low = place.long().clamp_max(max(beam.rows - 2, 0))
    high = (low + 1).clamp_max(beam.rows - 1)
    part = (place - low).to(y)[:, None, None]
    return torch.lerp(y.index_select(-3, low), y.index_select(-3, high), part)
