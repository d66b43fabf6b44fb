"""Small dense problems whose posteriors are closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow.noise import Gaussian
from ctflow.operators import LinearOperator
from ctflow.priors import GaussianPrior
from ctflow.problem import InverseProblem, simulate


class Dense(LinearOperator):
    """A matrix on flattened images: (*batch, 1, n, n) -> (*batch, 1, 1, m)."""

    def __init__(self, matrix: Tensor, side: int) -> None:
        self.matrix = matrix
        self.domain_shape = (1, side, side)
        self.range_shape = (1, 1, len(matrix))

    def _forward(self, x: Tensor) -> Tensor:
        return (x.flatten(-3) @ self.matrix.T)[..., None, None, :]

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y[..., 0, 0, :] @ self.matrix).reshape(*y.shape[:-3], *self.domain_shape)


def random_problem(
    side: int = 6, rows: int = 12, sigma: float = 0.05, seed: int = 0
) -> tuple[InverseProblem, Tensor]:
    """A random matrix with unit rows and noisy data of a random image; and the matrix."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, side**2, generator=generator, dtype=torch.float64)
    matrix = matrix / matrix.norm(dim=1, keepdim=True)
    image = torch.randn(1, side, side, generator=generator, dtype=torch.float64)
    return simulate(Dense(matrix, side), image, Gaussian(sigma), seed), matrix


def stationary_prior(
    side: int = 6, slope: float = 6.0, mean: float = 0.3
) -> tuple[GaussianPrior, Tensor, Tensor]:
    """A Gaussian prior with a falling spectrum in the image's own range, its eigenvalues and vectors."""
    spectrum = torch.exp(-slope * torch.linspace(0, 1, 32, dtype=torch.float64)) * 2
    prior = GaussianPrior(spectrum, mean)
    prior.scale, prior.shift = 1.0, 0.0
    identity = torch.eye(side**2, dtype=torch.float64).reshape(-1, 1, side, side)
    covariance = prior.covariance_product(identity).flatten(1)
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    return prior, values, vectors


def posterior(
    matrix: Tensor, y: Tensor, sigma: float, covariance: Tensor, mean: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x ~ N(mean, covariance) given y = matrix x + N(0, sigma²)."""
    gain = (
        covariance
        @ matrix.T
        @ torch.linalg.inv(
            matrix @ covariance @ matrix.T + sigma**2 * torch.eye(len(matrix), dtype=matrix.dtype)
        )
    )
    prior_mean = torch.zeros(len(covariance), dtype=matrix.dtype) + mean
    return prior_mean + gain @ (y.flatten() - matrix @ prior_mean), covariance - gain @ matrix @ covariance


def white_prior(variance: float, mean: float) -> GaussianPrior:
    """A white Gaussian prior in the image's own range."""
    prior = GaussianPrior(torch.full((8,), variance), mean)
    prior.scale, prior.shift = 1.0, 0.0
    return prior
