"""Simultaneous iterative reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.errors import UsageError
from ctflow.problem import InverseProblem
from ctflow.search_space import Range
from ctflow.system.progress import StepProgress

__all__ = ["SIRT"]


@dataclass(frozen=True)
class SIRT:
    """Simultaneous iterative reconstruction technique: x ← x + C Aᵀ R W (y - A x).

    R = 1 / A(1) and C = 1 / AᵀW(1) are the reciprocal row and column sums, W the noise weights; with equal
    weights it is the textbook's iteration. |y - A x|²_RW never increases.

    Args:
        iterations: number of steps; fewer leave less noise and less detail.
        positivity: keep x >= 0.

    References:
        Gilbert, J. Theor. Biol. 36 (1972); Gregor and Benson, IEEE Trans. Med. Imaging 27 (2008).

    Examples:
        >>> import ctflow as ct
        >>> from ctflow.datasets.phantoms import disc
        >>> grid = ct.VolumeGeometry((1, 64, 64), (3.0, 3.0, 3.0))  # (Z, Y, X), mm
        >>> truth = disc(radius=60.0).rasterise(grid)  # of water, 0.0192 / mm
        >>> problem = ct.simulate(ct.Radon(grid, ct.ParallelBeam(angles=90)), truth, ct.Poisson(photons=1e5))
        >>> found = ct.solve(problem, ct.SIRT(iterations=100))
        >>> bool(found.x.min() >= 0)
        True
        >>> hu = truth.with_data(found.mean).to_hu().data[0, 24:40, 24:40]  # inside the disc
        >>> bool(abs(hu.mean()) < 5), bool(hu.std() < 15)
        (True, True)
    """

    iterations: int = 100
    positivity: bool = True
    needs_prior: ClassVar[bool] = False
    search: ClassVar[dict[str, Range]] = {"iterations": Range((20, 500), log=True)}
    cost: ClassVar[str] = "an iteration: 1 projection, 1 backprojection"
    paper: ClassVar[str] = """@article{gregor2008computational,
  author  = {Gregor, Jens and Benson, Thomas},
  title   = {Computational analysis and improvement of {SIRT}},
  journal = {IEEE Transactions on Medical Imaging},
  volume  = {27},
  number  = {7},
  pages   = {918--924},
  year    = {2008}
}"""

    def __call__(
        self, problem: InverseProblem, prior: object, generator: torch.Generator, callback: StepProgress
    ) -> Tensor:
        """Image, (*batch, *domain_shape), in the unit of x.

        Raises:
            UsageError: the operator has negative row or column sums, where the steps could grow.
        """
        A, W = problem.A, problem.W.expand_as(problem.y)
        ones = torch.ones(A.domain_shape, dtype=problem.y.dtype, device=problem.y.device)
        rows = A(ones)
        columns = A.T(W * (rows > 0))
        if bool((rows < 0).any()) or bool((columns < 0).any()):
            raise UsageError(f"SIRT needs positive weights and {type(A).__name__} has negative; use CGLS")
        R, C = W * _reciprocal(rows), _reciprocal(columns)
        x = torch.zeros_like(columns)
        for step in range(self.iterations):
            x = x + C * A.T(R * (problem.y - A(x)))
            if self.positivity:
                x = x.clamp_min(0)
            callback(step + 1, self.iterations)
        return x


def _reciprocal(sums: Tensor) -> Tensor:
    """1 / sums; zero for rays that miss the image and pixels that no ray meets."""
    met = sums > 1e-6 * sums.max()
    return torch.where(met, 1 / torch.where(met, sums, 1.0), 0.0)
