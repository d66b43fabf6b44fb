"""A problem with a known posterior: a matrix, white noise, and a stationary Gaussian prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctflow.noise import Gaussian
from ctflow.operators import LinearOperator
from ctflow.priors import GaussianPrior
from ctflow.problem import InverseProblem, simulate


class Dense(LinearOperator):
    """A matrix (m, n²) on flattened images: (*batch, 1, n, n) -> (*batch, 1, 1, m)."""

    def __init__(self, matrix: Tensor) -> None:
        side = round(matrix.shape[1] ** 0.5)
        self.matrix = matrix
        self.domain_shape = (1, side, side)
        self.range_shape = (1, 1, len(matrix))

    def _forward(self, x: Tensor) -> Tensor:
        return (x.flatten(-3) @ self.matrix.to(x).T)[..., None, None, :]

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y[..., 0, 0, :] @ self.matrix.to(y)).reshape(*y.shape[:-3], *self.domain_shape)


@dataclass(frozen=True)
class GaussianCase:
    """An inverse problem with its prior and its exact posterior mean.

    Shapes: posterior and prior mean (1, n, n), in the unit of the problem's x.

    Args:
        problem: operator, data and noise.
        prior: prior of the images.
        mean: posterior mean.
    """

    problem: InverseProblem
    prior: GaussianPrior
    mean: Tensor

    @property
    def prior_mean(self) -> Tensor:
        """Mean of the prior, (1, n, n)."""
        return torch.full_like(self.mean, self.prior.scale * float(self.prior.mean) + self.prior.shift)


def gaussian_case(seed: int = 0, side: int = 8, rows: int = 24, sigma: float = 0.1) -> GaussianCase:
    """Problem in which random rows of unit length measure a smooth random image in attenuation.

    Args:
        seed: seed of the image and of the noise; the matrix is always the same.
        side: pixels along a side.
        rows: number of data.
        sigma: standard deviation of the noise, in network range.
    """
    prior = GaussianPrior(2 * torch.exp(-6 * torch.linspace(0, 1, 32, dtype=torch.float64)), mean=0.3)
    prior.scale, prior.shift = (
        0.01,
        0.02,
    )  # close to those of attenuation in 1/mm, so that a method that ignores them is noticed
    matrix = torch.randn(rows, side**2, generator=torch.Generator().manual_seed(17), dtype=torch.float64)
    A = Dense(matrix / matrix.norm(dim=1, keepdim=True))
    white = torch.randn(1, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u = prior.mean + prior.covariance_product(white, "sqrt")
    problem = simulate(A, prior.scale * u + prior.shift, Gaussian(prior.scale * sigma), seed)
    return GaussianCase(problem, prior, _posterior_mean(problem, prior, A))


def _posterior_mean(problem: InverseProblem, prior: GaussianPrior, A: Dense) -> Tensor:
    """m + C Aᵀ (A C Aᵀ + W⁻¹)⁻¹ (y - A m), with C from the prior's own product."""
    basis = torch.eye(A.matrix.shape[1], dtype=torch.float64).reshape(-1, *A.domain_shape)
    covariance = prior.scale**2 * prior.covariance_product(basis).flatten(1)
    mean = torch.full(A.domain_shape, prior.scale * float(prior.mean) + prior.shift, dtype=torch.float64)
    gram = A.matrix @ covariance @ A.matrix.T + torch.eye(len(A.matrix), dtype=torch.float64) / problem.W
    weights = torch.linalg.solve(gram, (problem.y - A(mean)).flatten())
    exact: Tensor = mean + (covariance @ A.matrix.T @ weights).reshape(mean.shape)
    return exact
