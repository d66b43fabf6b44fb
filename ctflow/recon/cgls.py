"""Conjugate gradients for least squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.errors import ProtocolError
from ctflow.linalg import inner
from ctflow.problem import InverseProblem
from ctflow.search_space import Range
from ctflow.system.progress import StepProgress

__all__ = ["CGLS"]


@dataclass(frozen=True)
class CGLS:
    """Conjugate gradients on min ½ |A x - y|²_W, from zero, with x scaled voxel by voxel.

    With C = 1 / AᵀWA(1), step k minimises the misfit over the Krylov space of C AᵀWA and C AᵀWy; stopping
    early is what regularises. Without C the middle of a body, behind which few photons are left, would come
    last and be dark after ten steps.

    Args:
        iterations: number of steps; fewer leave less noise and less detail. For CT 10 are enough.

    Raises:
        ProtocolError: there is no step.

    References:
        Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49 (1952), section 10; Clinthorne et al., IEEE Trans.
        Med. Imaging 12 (1993) (what scaling does to weighted least squares).

    Examples:
        >>> import ctflow as ct
        >>> from ctflow.datasets.phantoms import disc
        >>> grid = ct.VolumeGeometry((1, 64, 64), (3.0, 3.0, 3.0))  # (Z, Y, X), mm
        >>> truth = disc(radius=60.0).rasterise(grid)  # of water, 0.0192 / mm
        >>> problem = ct.simulate(ct.Radon(grid, ct.ParallelBeam(angles=90)), truth, ct.Poisson(photons=1e5))
        >>> found = ct.solve(problem, ct.CGLS(iterations=10))
        >>> found.stats["forward"], found.stats["adjoint"]
        (11, 12)
        >>> hu = truth.with_data(found.mean).to_hu().data[0, 24:40, 24:40]  # inside the disc
        >>> bool(abs(hu.mean()) < 5), bool(hu.std() < 15)
        (True, True)
    """

    iterations: int = 20
    needs_prior: ClassVar[bool] = False
    search: ClassVar[dict[str, Range]] = {"iterations": Range((3, 60), log=True)}
    cost: ClassVar[str] = "an iteration: 1 projection, 1 backprojection"
    paper: ClassVar[str] = """@article{hestenes1952methods,
  author  = {Hestenes, Magnus R. and Stiefel, Eduard},
  title   = {Methods of conjugate gradients for solving linear systems},
  journal = {Journal of Research of the National Bureau of Standards},
  volume  = {49},
  number  = {6},
  pages   = {409--436},
  year    = {1952}
}"""

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ProtocolError(f"{self.iterations} iterations are none; give 1 or more")

    def __call__(
        self, problem: InverseProblem, prior: object, generator: torch.Generator, callback: StepProgress
    ) -> Tensor:
        """Image, (*batch, *domain_shape), in the unit of x."""
        A, W, data_dims = problem.A, problem.W, len(problem.A.range_shape)
        residual = problem.y
        slope = A.T(W * residual)
        scale = _scale(problem, slope)
        x, direction = torch.zeros_like(slope), scale * slope
        steepness = inner(slope, direction, problem.dims)
        # Below rounding the recursion has no direction left: such a sample stands still.
        goal = torch.finfo(slope.dtype).eps ** 2 * steepness
        for step in range(self.iterations):
            image = A(direction)
            curvature = inner(image, W * image, data_dims).reshape(steepness.shape)
            moves = (steepness > goal) & (curvature > 0)
            length = torch.where(moves, steepness / curvature, 0.0)
            x = x + length * direction
            residual = residual - length.reshape(*problem.batch_shape, *(1,) * data_dims) * image
            slope = A.T(W * residual)
            ahead = scale * slope
            previous, steepness = steepness, inner(slope, ahead, problem.dims)
            direction = ahead + torch.where(moves, steepness / previous, 0.0) * direction
            callback(step + 1, self.iterations)
        return x


def _scale(problem: InverseProblem, slope: Tensor) -> Tensor:
    """C of every problem, shaped like the images; 1 where weights of the operator are negative."""
    sums = problem.normal(torch.ones_like(slope))
    image = tuple(range(-problem.dims, 0))
    most = sums.amax(image, keepdim=True)
    # The voxels that hardly a datum sees are as those that are seen best.
    scale = 1 / torch.where(sums > 1e-6 * most, sums, most)
    return torch.where((sums < 0).any(image, keepdim=True) | (most <= 0), 1.0, scale)
