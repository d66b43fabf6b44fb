"""Split an image into what the data determine and what the method filled in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctflow.errors import UsageError
from ctflow.operators import LinearOperator
from ctflow.problem import InverseProblem
from ctflow.system.randomness import seeded
from ctflow.units import MU_WATER


@dataclass(frozen=True)
class Split:
    """An image as the sum of a part that the data see and a part that they do not.

    HU here are without the offset of air (1000 · mu / mu_water), so that parts add up and 0 is nothing.

    Args:
        measured: part in the row space of the operator, HU above air, (*batch, Z, Y, X).
        filled: part in its null space, HU above air, (*batch, Z, Y, X).
        filled_share: |filled|² / |image|², 0 to 1, (*batch).
    """

    measured: Tensor
    filled: Tensor
    filled_share: Tensor


def split(
    A: LinearOperator,
    image: Tensor,
    mu_water: float = MU_WATER,
    damping: float = 1e-4,
    iterations: int = 200,
) -> Split:
    """Split an image, or a difference of images, into range and null space of an operator.

    Whatever lies in the null space could be exchanged without changing noiseless data: in a reconstruction it
    comes from the prior; in a difference of two images that fit the same data it is nearly everything.

    Args:
        A: operator.
        image: (*batch, Z, Y, X), 1/mm.
        mu_water: attenuation of water, 1/mm.
        damping: singular values below this share of the largest count as unseen.
        iterations: largest number of steps of conjugate gradients.
    """
    measured = A.row_space(image, damping, iterations)
    dims = tuple(range(-len(A.domain_shape), 0))
    filled = image - measured
    share = (filled**2).sum(dims) / (image**2).sum(dims).clamp_min(1e-30)
    scale = 1000 / mu_water
    return Split(scale * measured, scale * filled, share)


def determined(problem: InverseProblem, image: Tensor, prior_sd: float) -> Tensor:
    """Part of an image that is above the noise of the data: AᵀWA (AᵀWA + γ)⁻¹ x with γ = 1 / prior_sd².

    This is a Wiener filter: a mode of the image passes where its signal-to-noise ratio in the data, its
    eigenvalue times prior_sd², is well above 1, and is left to the prior where it is well below. Without
    noise it is the projection onto the row space.

    Args:
        problem: operator and weights.
        image: (*batch, *domain_shape), 1/mm for CT.
        prior_sd: standard deviation of a voxel before the data, in the unit of the image.

    Raises:
        UsageError: prior_sd is not positive.
    """
    if not prior_sd > 0:
        raise UsageError(f"prior_sd {prior_sd} must be positive; give the spread expected before the data")
    gamma = prior_sd**-2

    def share(eigenvalues: Tensor) -> Tensor:
        return eigenvalues / (eigenvalues + gamma)

    return problem.functions_of_normal(image, [share])[0]


def support_map(problem: InverseProblem, prior_sd: float, probes: int = 16, seed: int = 0) -> Tensor:
    """Share of every voxel that the data determine: near 0 it is the prior alone, near 1 the data alone.

    This is the diagonal of AᵀWA (AᵀWA + γ)⁻¹: one minus the share of a white Gaussian prior's variance that
    is left once the data are known. It is estimated without bias by random signs: the standard error of a
    voxel is at most 0.7 / √probes, so that it may lie somewhat below 0 or above 1.

    Args:
        problem: operator and weights of one measurement.
        prior_sd: standard deviation of a voxel before the data, in the unit of the image: 1/mm for CT.
        probes: number of random images.
        seed: seed of their signs.

    Returns:
        Shaped like one image, (Z, Y, X), dimensionless.

    References:
        Backus and Gilbert, Phil. Trans. R. Soc. A 266 (1970), resolution; Bekas et al., Appl. Numer. Math.
        57 (2007), estimator of a diagonal.
    """
    generator = seeded(seed)
    total = torch.zeros(problem.A.domain_shape, dtype=problem.y.dtype, device=problem.y.device)
    for _ in range(probes):
        signs = 2.0 * torch.randint(0, 2, problem.A.domain_shape, generator=generator) - 1
        signs = signs.to(total)
        total += signs * determined(problem, signs, prior_sd)
    return total / probes
