"""MS-Flow: multiple shooting along the flow, without backpropagation through the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ctflow.errors import ProtocolError
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._path import noise, tikhonov, uniform_times
from ctflow.solving import Callback

__all__ = ["MSFlow"]

_START_SIGMAS = (1.0, 0.05)
"""Noise levels of the start's first and last step, network range."""
_START_RATIO = 3.0
"""Prox variance of the start per squared noise level; tuned on training slices."""


@dataclass(frozen=True)
class MSFlow:
    """Find the whole trajectory of the flow, as states x_0 … x_K at times 0 = t_0 < … < t_K = 1.

    min ½ |A x_K - y|²_W + λ/2 |x_0|² + Σ_k γ/2 |x_{k+1} - Φ_k(x_k)|²
    with Φ_k(x) = x + (t_{k+1} - t_k) v(x, t_k).

    The start is an image from a few denoising steps at falling noise, each followed by a data prox, on
    straight lines to a little noise. Every iteration evaluates the K velocities at the present states,
    replaces each Φ_k by Φ_k(x_k) + ρ_k (x - x_k), and solves the resulting chain exactly: one sweep forward,
    one data prox, one sweep back. Memory holds 2 K + 2 images, whatever the number of iterations, and no
    network graph.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        segments: K, flow steps between noise and image.
        iterations: sweeps; each costs K - 1 network evaluations (at t = 0 the velocity is known).
        start_steps: denoising steps of the start, one network evaluation each; 0 starts from the Tikhonov
            image.
        start_noise: standard deviation of the start noise; what makes samples differ.
        regularisation: λ, weight of the start noise; larger trusts the prior more.
        damping: share of each step that is taken at first.
        decay: the share falls as (1 + iteration / 20)^-decay.
        model_error: standard deviation of one trajectory that the network may be wrong by, in network
            range; γ = K / model_error².
        jacobian: ρ_k: "identity" takes 1; "scaled" takes c(t_{k+1}) / c(t_k), c² = (1 - t)² + t² s, with
            the prior's variance s, exact for white images.
        prox_iterations: conjugate-gradient steps of one data prox.

    Raises:
        ProtocolError: a number is not positive or the Jacobian is unknown.

    References:
        Denker, Eliasof, Kereta, Schönlieb, arXiv:2602.08538 (the objective and the Jacobian-free idea).
        Zhang et al., TPAMI 2022, arXiv:2008.13751 (the start: half-quadratic splitting, falling noise).
        Differs from the first: the exact solution of the linearised chain (a Kalman smoother with scalar
        covariances) replaces the alternation over states; the fixed points are the same.
    """

    needs_prior: ClassVar[bool] = True
    cost: ClassVar[str] = "an iteration: segments - 1 network evaluations, 1 data prox"
    paper: ClassVar[str] = """@article{denker2026msflow,
  title={Trajectory Stitching for Solving Inverse Problems with Flow-Based Models},
  author={Denker, Alexander and Eliasof, Moshe and Kereta, {\\v{Z}}eljko and Sch{\\"o}nlieb, Carola-Bibiane},
  journal={arXiv preprint arXiv:2602.08538}, year={2026}
}"""

    segments: int = 4
    iterations: int = 20
    start_steps: int = 8
    start_noise: float = 0.3
    regularisation: float = 2.0
    damping: float = 0.5
    decay: float = 0.5
    model_error: float = 0.05
    jacobian: str = "identity"
    prox_iterations: int = 30

    def __post_init__(self) -> None:
        if self.jacobian not in ("identity", "scaled"):
            raise ProtocolError(f"jacobian '{self.jacobian}' is unknown; give 'identity' or 'scaled'")
        if min(self.segments, self.iterations, self.prox_iterations) < 1 or not (
            min(self.regularisation, self.model_error) > 0
            and 0 < self.damping <= 1
            and min(self.decay, self.start_steps, self.start_noise) >= 0
        ):
            raise ProtocolError(
                f"{self} needs positive numbers, damping in (0, 1], decay, start_steps and start_noise >= 0"
            )

    def __call__(
        self, problem: InverseProblem, prior: Prior, generator: torch.Generator, callback: Callback
    ) -> Tensor:
        """Reconstruct; see the class for what is minimised."""
        inside = problem.rescaled(prior.scale, prior.shift)
        times = uniform_times(self.segments)
        rho = self._jacobians(times, prior)
        states = self._start(inside, prior, times, generator)
        for iteration in range(self.iterations):
            target = self._solve_chain(inside, prior, times, rho, states)
            share = self.damping * (1 + iteration / 20) ** -self.decay
            states = [x + share * (new - x) for x, new in zip(states, target, strict=True)]
            callback(iteration + 1, self.iterations)
        return prior.scale * states[-1] + prior.shift

    def _jacobians(self, times: list[float], prior: Prior) -> list[float]:
        if self.jacobian == "identity":
            return [1.0] * self.segments
        variance = prior.residual_variance(0.0)
        c = [math.sqrt((1 - t) ** 2 + t**2 * variance) for t in times]
        return [after / before for before, after in pairwise(c)]

    def _start(
        self, inside: InverseProblem, prior: Prior, times: list[float], generator: torch.Generator
    ) -> list[Tensor]:
        """Straight lines from noise to the image of an annealed plug-and-play run."""
        latent = self.start_noise * noise(inside, generator)
        image = tikhonov(inside, prior, 2 * self.prox_iterations)
        for sigma in np.geomspace(*_START_SIGMAS, self.start_steps).tolist():
            t = 1 / (1 + sigma)
            denoised = prior.denoise(t * image, t)
            image = inside.prox(denoised, _START_RATIO * sigma**2, self.prox_iterations, start=image)
        return [(1 - t) * latent + t * image for t in times]

    def _solve_chain(
        self, inside: InverseProblem, prior: Prior, times: list[float], rho: list[float], states: list[Tensor]
    ) -> list[Tensor]:
        """Minimiser of the objective with every Φ_k linearised at the present states."""
        K = self.segments
        stiffness = K / self.model_error**2  # γ
        variance, mean = 1 / self.regularisation, torch.zeros_like(states[0])
        variances, means, predictions = [variance], [mean], []
        for k in range(K):
            ahead = states[k] + (times[k + 1] - times[k]) * prior.velocity(states[k], times[k])
            mean = ahead + rho[k] * (mean - states[k])
            variance = rho[k] ** 2 * variance + 1 / stiffness
            predictions.append(mean)
            means.append(mean)
            variances.append(variance)
        solved = [inside.prox(mean, variance, self.prox_iterations, start=states[K])]
        for k in reversed(range(K)):
            gain = variances[k] * rho[k] / variances[k + 1]
            solved.append(means[k] + gain * (solved[-1] - predictions[k]))
        return solved[::-1]
