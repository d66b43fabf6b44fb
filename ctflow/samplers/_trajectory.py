"""MS-Flow's trajectory: its flow steps as one batch, then new states, all at once or one by one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ctflow.linalg import inner
from ctflow.priors import Prior
from ctflow.problem import InverseProblem


@dataclass(frozen=True)
class Latent:
    """Regulariser of the start noise: λ/2 |x_0|², or radial, λ (½ |x_0|² - (d - 1) ln |x_0|).

    The radial one holds for each slice of d pixels by itself, as the prior does.

    Shapes: images (*batch, Z, Y, X), network range.

    Args:
        precision: λ.
        radial: which of the two.
    """

    precision: float
    radial: bool

    def quadratic(self, x: Tensor) -> tuple[float, Tensor]:
        """Precision and mean of a quadratic with the regulariser's gradient at x.

        The radial one has curvature 2 λ along the radius √(d - 1) and none across it; 2 λ keeps both stable.
        """
        if not self.radial:
            return self.precision, torch.zeros_like(x)
        square = inner(x, x, 2).clamp_min(1e-30)
        return 2 * self.precision, x / 2 * (1 + (x.shape[-2:].numel() - 1) / square)

    def minimise(self, q: Tensor, weight: float) -> Tensor:
        """argmin over x_0 of the regulariser + weight/2 |x_0 - q|²; in closed form."""
        total = self.precision + weight
        if not self.radial:
            return weight / total * q
        length = inner(q, q, 2).sqrt().clamp_min(1e-15)
        pull = weight * length
        root = (pull**2 + 4 * self.precision * total * (q.shape[-2:].numel() - 1)).sqrt()
        return q / length * (pull + root) / (2 * total)


def flow(prior: Prior, states: list[Tensor], grid: list[float], parts: int) -> list[Tensor]:
    """Φ_k(x_k) of x_0 … x_{K-1}: `parts` Euler steps from t_k to t_{k+1} each.

    All but the first state are one batch: at t = 0 it costs nothing, and later no batch is larger than that.

    Shapes: images (*batch, Z, Y, X), network range.

    Args:
        prior: flow prior.
        states: x_0 … x_K; the last is not looked at.
        grid: times t_0 … t_K.
        parts: Euler steps of one segment.
    """
    x = states[:-1]
    for part in range(parts):
        now, then = ([t + (u - t) * p / parts for t, u in pairwise(grid)] for p in (part, part + 1))
        rest = prior.denoise_each(torch.stack(x[1:]), now[1:]) if len(x) > 1 else ()
        denoised = [prior.denoise(x[0], now[0]), *rest]
        x = [x + (u - t) * ((D - x) / (1 - t)) for x, D, t, u in zip(x, denoised, now, then, strict=True)]
    return x


def solve_chain(
    inside: InverseProblem,
    states: list[Tensor],
    ahead: list[Tensor],
    latent: Latent,
    stiffness: float,
    iterations: int,
) -> list[Tensor]:
    """All states at once: a Kalman filter forward, one data prox, a Rauch-Tung-Striebel smoother back.

    Minimises ½ |A x_K - y|²_W + R(x_0) + γ/2 Σ |x_{k+1} - (ahead_k + x_k - states_k)|² over x_0 … x_K, with
    R replaced by its quadratic at states_0. The covariances are numbers.

    Args:
        inside: problem in network range.
        states: the present x_0 … x_K, (*batch, Z, Y, X), network range.
        ahead: Φ_k of all but the last.
        latent: R.
        stiffness: γ.
        iterations: conjugate-gradient steps of the data prox.

    References:
        Rauch, Tung, Striebel, AIAA Journal 3 (1965).
    """
    precision, mean = latent.quadratic(states[0])
    means, variances = [mean], [1 / precision]
    for x, reached in zip(states[:-1], ahead, strict=True):
        means.append(reached + (means[-1] - x))
        variances.append(variances[-1] + 1 / stiffness)
    solved = [inside.prox(means[-1], variances[-1], iterations, start=states[-1])]
    for k in reversed(range(len(ahead))):
        gain = variances[k] / variances[k + 1]
        solved.append(means[k] + gain * (solved[-1] - means[k + 1]))
    return solved[::-1]


def solve_coordinates(
    inside: InverseProblem,
    states: list[Tensor],
    ahead: list[Tensor],
    latent: Latent,
    stiffness: float,
    iterations: int,
) -> list[Tensor]:
    """One state after the other, from x_K down to x_0, each the minimiser of the same objective by itself.

    Going down, a state's left neighbour is still the old one, so that all Φ_k are known beforehand.

    Args:
        inside: problem in network range.
        states: the present x_0 … x_K, (*batch, Z, Y, X), network range.
        ahead: Φ_k of all but the last.
        latent: R.
        stiffness: γ.
        iterations: conjugate-gradient steps of the data prox.
    """
    solved = [inside.prox(ahead[-1], 1 / stiffness, iterations, start=states[-1])]
    for k in reversed(range(len(ahead))):
        wanted = states[k] + (solved[-1] - ahead[k])  # where Φ_k reaches x_{k+1}
        solved.append((ahead[k - 1] + wanted) / 2 if k else latent.minimise(wanted, stiffness))
    return solved[::-1]
