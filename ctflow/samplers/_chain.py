"""The linearised trajectory of MS-Flow, and the two ways to solve it: at once, or state by state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ctflow.linalg import cg
from ctflow.priors import Prior
from ctflow.problem import InverseProblem

Gain = float | Tensor
"""What multiplies an image: a number, one for each sample (*batch, 1, 1, 1), or one for each frequency of
`rfft2`, (..., Y, X // 2 + 1)."""


def times(gain: Gain, x: Tensor) -> Tensor:
    """The image x (*batch, Z, Y, X), in any unit, multiplied by a number or frequency by frequency."""
    if isinstance(gain, Tensor) and gain.shape[-1] > 1:
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * gain.to(x), s=x.shape[-2:])
        return filtered
    return gain * x


@dataclass(frozen=True)
class Linearised:
    """Every flow step near the present states: Φ_k(x) ≈ ahead_k + ρ_k (x - states_k).

    Shapes: all images (*batch, Z, Y, X), network range; K of each list but K + 1 states.

    Args:
        states: x_0 … x_K.
        ahead: Φ_k(x_k).
        rho: model of the Jacobian of Φ_k.
        pulls: (ρ_k - J_kᵀ) p_k, what the model of the Jacobian leaves out; none by default.
    """

    states: list[Tensor]
    ahead: list[Tensor]
    rho: list[Gain]
    pulls: list[Tensor] | None = None


def jacobians(model: str, grid: list[float], prior: Prior, shape: tuple[int, ...]) -> list[Gain]:
    """ρ_k: 1, or c(t_{k+1}) / c(t_k) with c² = (1 - t)² + t² s for the variance s, or s of each frequency.

    Args:
        model: "identity", "scaled" or "spectral".
        grid: times t_0 … t_K.
        prior: knows s, network range squared.
        shape: of one image, (Z, Y, X).
    """
    if model == "identity":
        return [1.0] * (len(grid) - 1)
    if model == "scaled":
        variance = prior.residual_variance(0.0)
        c = [math.sqrt((1 - t) ** 2 + t**2 * variance) for t in grid]
        return [after / before for before, after in pairwise(c)]
    power = prior.eigenvalues(*shape[-2:])
    root = [((1 - t) ** 2 + t**2 * power).sqrt() for t in grid]
    return [after / before for before, after in pairwise(root)]


def fit_data(
    inside: InverseProblem, center: Tensor, variance: Gain, iterations: int, start: Tensor
) -> Tensor:
    """argmin ½ |A x - y|²_W + ½ (x - center)ᵀ variance⁻¹ (x - center), (*batch, Z, Y, X), network range."""
    if not isinstance(variance, Tensor):
        return inside.prox(center, variance, iterations, start=start)
    if variance.shape[-1] == 1:  # the prox takes one variance for all samples, the weights one for each
        factor = variance.reshape(*inside.batch_shape, *(1 for _ in inside.A.range_shape))
        return replace(inside, W=inside.W * factor).prox(center, 1.0, iterations, start=start)
    root = variance.sqrt()
    white = cg(
        lambda w: w + times(root, inside.normal(times(root, w))),
        times(root, -inside.gradient(center)),
        inside.dims,
        iterations,
        1e-6,
    )
    return center + times(root, white)


def solve_chain(
    inside: InverseProblem,
    chain: Linearised,
    latent: tuple[float, Tensor],
    stiffness: float,
    iterations: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """Minimise ½ |A x_K - y|²_W + precision/2 |x_0 - mean|² + γ/2 Σ |x_{k+1} - linearised Φ_k(x_k)|².

    A Kalman filter forward, one data prox, a Rauch-Tung-Striebel smoother back; their covariances are
    numbers, or numbers for each frequency.

    Args:
        inside: problem in network range.
        chain: linearisation; images (*batch, Z, Y, X).
        latent: precision and mean of x_0.
        stiffness: γ.
        iterations: conjugate-gradient steps of the data prox.

    Returns:
        The K + 1 states and the K multipliers γ e_k.
    """
    precision, mean = latent
    variance: Gain = 1 / precision
    if chain.pulls is not None:
        mean = mean - times(variance, chain.pulls[0])
    variances: list[Gain] = [variance]
    means, predictions, spreads = [mean], [], []
    for k, (ahead, rho) in enumerate(zip(chain.ahead, chain.rho, strict=True)):
        mean = ahead + times(rho, mean - chain.states[k])
        variance = rho**2 * variance + 1 / stiffness
        predictions.append(mean)
        if chain.pulls is not None and k + 1 < len(chain.pulls):
            mean = mean - times(variance, chain.pulls[k + 1])
        means.append(mean)
        variances.append(variance)
        spreads.append(variance)
    solved = [fit_data(inside, mean, variance, iterations, chain.states[-1])]
    multipliers = []
    for k in reversed(range(len(chain.ahead))):
        gap = solved[-1] - predictions[k]
        solved.append(means[k] + times(variances[k] * chain.rho[k] / variances[k + 1], gap))
        multipliers.append(times(1 / variances[k + 1], gap))
    return solved[::-1], multipliers[::-1]


def sweep(
    inside: InverseProblem,
    chain: Linearised,
    latent: Callable[[Tensor, Gain], Tensor],
    stiffness: Gain,
    iterations: int,
) -> list[Tensor]:
    """Minimise the same objective over one state after the other, from x_K down to x_0.

    Going down, a state's left neighbour is still the old one, so that all Φ_k are known beforehand.

    Args:
        inside: problem in network range.
        chain: linearisation; images (*batch, Z, Y, X).
        latent: (q, g) -> argmin over x_0 of its regulariser + g/2 |x_0 - q|².
        stiffness: γ, a number or (*batch, 1, 1, 1).
        iterations: conjugate-gradient steps of the data prox.

    Returns:
        The K + 1 states.
    """
    states, rho = chain.states, chain.rho
    solved = [fit_data(inside, chain.ahead[-1], 1 / stiffness, iterations, states[-1])]
    for k in reversed(range(len(rho))):
        wanted = states[k] + times(1 / rho[k], solved[-1] - chain.ahead[k])  # where Φ_k reaches x_{k+1}
        if k == 0:
            solved.append(latent(wanted, stiffness * rho[0] ** 2))
        else:
            share = rho[k] ** 2 / (1 + rho[k] ** 2)
            solved.append(chain.ahead[k - 1] + times(share, wanted - chain.ahead[k - 1]))
    return solved[::-1]
