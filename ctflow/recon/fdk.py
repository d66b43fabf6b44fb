"""Feldkamp, Davis and Kress: filtered backprojection of a circular cone beam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.geometry import Beam, ConeBeam, HelicalBeam
from ctflow.problem import InverseProblem
from ctflow.recon._backprojection import backproject_cone, bin_step
from ctflow.recon._ramp import FILTERS, filter_rows, require_window
from ctflow.recon._views import bin_numbers, fan_angles, projection, undisplaced
from ctflow.recon.fbp import ray_weights
from ctflow.search_space import Range
from ctflow.system.progress import StepProgress

__all__ = ["FDK"]


@dataclass(frozen=True)
class FDK:
    """Filtered backprojection of a circular cone: FBP of every tilted fan, summed along the cone's rays.

    Exact in the plane of the source; away from it errors grow with the cone angle, since a circle does not
    measure the whole volume. Flat and curved panels, shifted, displaced (half fan) or off the axis, full
    turns and short scans. Noise weights are not used. Runs where the data are.

    Args:
        filter: "ramp", or the ramp under a window: "hann", "shepp-logan" or "cosine".

    Raises:
        ProtocolError: the filter is unknown.

    References:
        Feldkamp, Davis and Kress, J. Opt. Soc. Am. A 1 (1984), eq. 28 to 30.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((9, 24, 24), (4.0, 4.0, 4.0))  # (Z, Y, X), mm
        >>> A = ct.Radon(grid, ct.ConeBeam(angles=60, source_axis=1000.0, source_detector=1500.0))
        >>> water = torch.zeros(grid.shape)
        >>> water[2:7, 8:16, 8:16] = 0.02  # 1/mm
        >>> found = ct.solve(ct.simulate(A, water, ct.Gaussian(sigma=1e-3)), ct.FDK())
        >>> f"{found.mean[4, 10:14, 10:14].mean():.3f} / mm"  # in the middle of the block
        '0.020 / mm'
    """

    filter: str = "ramp"
    needs_prior: ClassVar[bool] = False
    search: ClassVar[dict[str, Range]] = {"filter": FILTERS}
    cost: ClassVar[str] = "1 filtered backprojection"
    paper: ClassVar[str] = """@article{feldkamp1984practical,
  author  = {Feldkamp, L. A. and Davis, L. C. and Kress, J. W.},
  title   = {Practical cone-beam algorithm},
  journal = {Journal of the Optical Society of America A},
  volume  = {1},
  number  = {6},
  pages   = {612--619},
  year    = {1984}
}"""

    def __post_init__(self) -> None:
        require_window(self.filter)

    def __call__(
        self, problem: InverseProblem, prior: object, generator: torch.Generator, callback: StepProgress
    ) -> Tensor:
        """Volume in 1/mm, (*batch, Z, Y, X).

        Raises:
            UsageError: the operator is not a projection by itself.
            GeometryError: the beam is not a circular cone, or measures less than a short scan.
        """
        A = projection(problem, "FDK")
        volume, beam = A.volume, _circular(A.beam)
        y = problem.y.flatten(0, -4) if problem.batch_shape else problem.y[None]
        if beam.displaced:
            y, beam = undisplaced(y, beam, volume.fov / 2)
        y = y * ray_weights(beam, volume).to(y) * _tilt(beam).to(y)
        x = backproject_cone(filter_rows(y, bin_step(beam), self.filter, beam.curved), volume, beam)
        callback(1, 1)
        return x.reshape(*problem.batch_shape, *volume.shape)


def _circular(beam: Beam) -> ConeBeam:
    if isinstance(beam, ConeBeam) and not isinstance(beam, HelicalBeam):
        return beam
    raise GeometryError(
        f"FDK inverts a circular cone beam and was given a {type(beam).__name__}; "
        "use FBP for parallel and fan beams, CGLS or SIRT for the others"
    )


def _heights(beam: ConeBeam) -> Tensor:
    """Heights of the rows on the detector, (rows,), mm."""
    assert beam.rows is not None  # the beam is fitted
    assert beam.row_pitch is not None
    return bin_numbers(beam.rows) * beam.row_pitch


def _tilt(beam: ConeBeam) -> Tensor:
    """Cosine of every ray's tilt out of the plane of the source, (rows, 1, bins)."""
    across = torch.full((beam.bins or 1,), beam.source_detector, dtype=torch.float64)
    if not beam.curved:
        across /= (fan_angles(beam) + beam.axis_angle).cos()
    return across / torch.hypot(across, _heights(beam)[:, None, None])
