"""Weighted filtered backprojection as a method: the reference of helical beams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.geometry import ConeBeam, VectorBeam
from ctflow.problem import InverseProblem
from ctflow.rebinning.wfbp import wfbp
from ctflow.recon._ramp import FILTERS, require_window
from ctflow.recon._views import bin_numbers, projection
from ctflow.scan import Scan
from ctflow.search_space import Range
from ctflow.system.progress import StepProgress

__all__ = ["WFBP"]


@dataclass(frozen=True)
class WFBP:
    """Weighted filtered backprojection of a helical or circular cone, after rebinning to parallel rays.

    Every voxel is the mean, over the directions modulo half a turn, of all rays that see it. A slice is 0
    where it is not seen from all directions, as before the first and after the last half turn of a helix.
    Noise weights are not used. On the CPU.

    Args:
        filter: "ramp", or the ramp under a window: "hann", "shepp-logan" or "cosine".

    Raises:
        ProtocolError: the filter is unknown.

    References:
        Stierstorfer, Rauscher, Boese, Bruder, Schaller and Flohr, Phys. Med. Biol. 49 (2004), eq. 10 to 17.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((3, 24, 24), (4.0, 4.0, 4.0))  # (Z, Y, X), mm
        >>> beam = ct.HelicalBeam(angles=360, arc_degrees=1080.0, rows=16, row_pitch=4.0, feed=16.0)
        >>> A = ct.Radon(grid, beam)
        >>> water = torch.zeros(grid.shape)
        >>> water[:, 8:16, 8:16] = 0.02  # 1/mm
        >>> found = ct.solve(ct.simulate(A, water, ct.Gaussian(sigma=1e-3)), ct.WFBP())
        >>> f"{found.mean[1, 10:14, 10:14].mean():.3f} / mm"  # in the middle of the block
        '0.020 / mm'
    """

    filter: str = "ramp"
    needs_prior: ClassVar[bool] = False
    search: ClassVar[dict[str, Range]] = {"filter": FILTERS}
    cost: ClassVar[str] = "1 filtered backprojection"
    paper: ClassVar[str] = """@article{stierstorfer2004weighted,
  author  = {Stierstorfer, Karl and Rauscher, Annabella and Boese, Jan and Bruder, Herbert and
             Schaller, Stefan and Flohr, Thomas},
  title   = {Weighted {FBP}---a simple approximate {3D} {FBP} algorithm for multislice spiral {CT} with good
             dose usage for arbitrary pitch},
  journal = {Physics in Medicine and Biology},
  volume  = {49},
  number  = {11},
  pages   = {2209--2218},
  year    = {2004}
}"""

    def __post_init__(self) -> None:
        require_window(self.filter)

    def __call__(
        self, problem: InverseProblem, prior: object, generator: torch.Generator, callback: StepProgress
    ) -> Tensor:
        """Volume in 1/mm, (*batch, Z, Y, X).

        Raises:
            UsageError: the operator is not a projection by itself.
            GeometryError: the beam is no cone that turns around the axis, as by one that is given view by
                view and whose focal spot may fly, or measures less than half a turn.
        """
        A = projection(problem, "WFBP")
        volume, beam = A.volume, A.beam
        if not isinstance(beam, ConeBeam | VectorBeam) or beam.flat:
            raise GeometryError(
                f"WFBP inverts helices and circular cones and was given a {type(beam).__name__}; "
                "use FBP for parallel and fan beams, CGLS or SIRT for the others"
            )
        heights = (bin_numbers(volume.shape[0]) * volume.spacing[0]).tolist()
        data = problem.y.flatten(0, -4) if problem.batch_shape else problem.y[None]
        images = [
            wfbp(Scan(y.cpu(), beam, "projections"), volume, heights, self.filter, callback, whole=False).data
            for y in data
        ]
        return torch.stack(images).to(problem.y).reshape(*problem.batch_shape, *volume.shape)
