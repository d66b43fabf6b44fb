"""MS-Flow: multiple shooting along the flow, without backpropagation through the whole of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._chain import jacobians
from ctflow.samplers._finish import anneal, finish
from ctflow.samplers._path import noise, perturbed, require, tikhonov, uniform_times
from ctflow.samplers._sampler import Sampler
from ctflow.samplers._shooting import ChainUpdate, CoordinateUpdate, Latent, Shooting
from ctflow.tables import Whole

__all__ = ["MSFlow"]

_START_LEVELS = (1.0, 0.05)
"""First and last noise level of the start, network range."""
_START_RATIO = 3.0
"""Prox variance of the start per squared noise level; tuned on training slices."""
_CHOICES = {
    "jacobian": ("identity", "scaled", "spectral"),
    "update": ("chain", "coordinate"),
    "correction": ("none", "finite-difference", "vjp"),
    "regulariser": ("gaussian", "radial"),
    "penalty": ("fixed", "lagrangian", "adaptive"),
}


@dataclass(frozen=True)
class MSFlow(Sampler):
    """Find the whole trajectory of the flow, as states x_0 … x_K at times 0 = t_0 < … < t_K = 1.

    min ½ |A x_K - y|²_W + λ R(x_0) + Σ_k γ/2 |x_{k+1} - Φ_k(x_k)|²
    with Φ_k(x) = x + (t_{k+1} - t_k) v(x, t_k), near the present states x̄ replaced by
    Φ_k(x̄_k) + ρ_k (x - x̄_k). The velocities are one batch. Memory holds some 2 K + 2 images, whatever
    the number of iterations, and the graph of one network evaluation at most.

    Without correction the fixed point for images N(m, S) is the maximum a posteriori under another
    covariance: S^½ / λ for "identity", √s S^½ / λ for "scaled", S / λ, the true one, for "spectral".

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        segments: K, flow steps between noise and image.
        iterations: each costs K · flow_steps - 1 network evaluations (at t = 0 the velocity is known).
        start_steps: denoising steps at falling noise, each with a data prox, that make the first image; 0
            starts from the Tikhonov image.
        finish_steps: denoising steps at falling noise with momentum, each with a data prox, that take the
            last image from the flow's few coarse steps to the fine noise levels; 0 ends with x_K.
        finish_noise: noise level of the last of them, network range: 0.03 is 15 HU. The fewer the data, the
            larger.
        start_noise: standard deviation of the start noise; what makes samples differ.
        regularisation: λ, weight of the start noise; larger trusts the prior more.
        damping: share of each step that is taken at first.
        decay: the share falls as (1 + iteration / 20)^-decay.
        model_error: standard deviation of one trajectory that the network may be wrong by, in network
            range; γ = K / model_error².
        jacobian: ρ_k: "identity" takes 1; "scaled" takes c(t_{k+1}) / c(t_k), c² = (1 - t)² + t² s, with
            the prior's variance s; "spectral" the same for each frequency, with its power s.
        prox_iterations: conjugate-gradient steps of one data prox.
        update: "chain" solves the linearised problem exactly: one sweep forward, one data prox, one back;
            "coordinate" minimises over one state after the other, as the paper does. It needs many more
            iterations, about K² + K γ / λ, so a larger model_error.
        correction: of the gradient, for the Jacobians that ρ_k leaves out: "none"; "finite-difference", with
            K - 1 more evaluations, right where the velocity is a gradient field; "vjp", with K - 1
            backward passes, one at a time. Wants more damping, 0.2. For the chain.
        correction_limit: the correction is at most so many times as long as the gradient itself.
        regulariser: "gaussian", R = ½ |x_0|²; "radial", R = ½ |x_0|² - (d - 1) ln |x_0| for each slice of d
            pixels, which asks for noise of the typical length √(d - 1).
        penalty: for coordinate updates: "fixed" γ; "lagrangian" adds multipliers, so that the gaps close for
            any γ; "adaptive" also doubles or halves γ of a problem to balance gaps and movements.
        stochastic: solve for randomly perturbed data, start noise and steps (randomise, then optimise), with
            no finish. For images N(m, S) and "spectral" or a correction, these are samples of the posterior,
            up to Euler's error; else they have the fixed point's mean, and a spread that is no posterior's.
        flow_steps: Euler steps of one segment; memory does not depend on them.

    Raises:
        ProtocolError: a number is not positive, a name is unknown, or two choices exclude each other.

    References:
        Denker, Eliasof, Kereta, Schönlieb, arXiv:2602.08538 (the objective and the Jacobian-free idea).
        Zhang et al., TPAMI 2022, arXiv:2008.13751 (start and finish: plug and play at falling noise).
        Bardsley et al., SIAM J. Sci. Comput. 36 (2014) (randomise, then optimise).
        Differs from the first: the exact solution of the linearised chain (a Kalman smoother) replaces the
        alternation over states unless asked for; the fixed points are the same.
    """

    cost: ClassVar[str] = (
        "an iteration: segments · flow_steps - 1 network evaluations, 1 data prox (correction 'vjp': as many "
        "backward passes, 'finite-difference': evaluations more); start_steps + finish_steps evaluations"
    )
    paper: ClassVar[str] = """@article{denker2026msflow,
  title={Trajectory Stitching for Solving Inverse Problems with Flow-Based Models},
  author={Denker, Alexander and Eliasof, Moshe and Kereta, {\\v{Z}}eljko and Sch{\\"o}nlieb, Carola-Bibiane},
  journal={arXiv preprint arXiv:2602.08538}, year={2026}
}"""

    segments: Annotated[int, Whole(1, 1000)] = 4
    iterations: Annotated[int, Whole(1, 10_000)] = 4
    start_steps: int = 8
    finish_steps: int = 16
    finish_noise: float = 0.03
    start_noise: float = 0.3
    regularisation: float = 2.0
    damping: float = 0.5
    decay: float = 0.5
    model_error: float = 0.05
    jacobian: str = "identity"
    prox_iterations: int = 30
    update: str = "chain"
    correction: str = "none"
    correction_limit: float = 0.6
    regulariser: str = "gaussian"
    penalty: str = "fixed"
    stochastic: bool = False
    flow_steps: Annotated[int, Whole(1, 1000)] = 1

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            require(getattr(self, name) in known, self, f"{name} {' or '.join(map(repr, known))}")
        require(
            min(self.segments, self.flow_steps, self.iterations, self.prox_iterations) >= 1
            and min(self.regularisation, self.model_error, self.correction_limit, self.finish_noise) > 0
            and 0 < self.damping <= 1
            and min(self.decay, self.start_steps, self.finish_steps, self.start_noise) >= 0,
            self,
            "positive numbers, damping in (0, 1], decay, start_steps, finish_steps and start_noise >= 0",
        )
        chain, radial = self.update == "chain", self.regulariser == "radial"
        require(chain or self.correction == "none", self, "update 'chain' for a correction")
        require(self.flow_steps == 1 or self.correction == "none", self, "flow_steps 1 for a correction")
        whole = not chain and self.damping == 1 and self.decay == 0
        require(
            self.penalty == "fixed" or whole,
            self,
            "update 'coordinate', damping 1 and decay 0 for multipliers: they would add up unfinished steps",
        )
        require(
            not self.stochastic or (not radial and self.finish_steps == 0),
            self,
            "the Gaussian regulariser and finish_steps 0 where it is stochastic",
        )
        require(not radial or self.start_noise > 0, self, "start_noise > 0 for the radial regulariser")

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        corrections = (self.iterations - 1) * (self.segments - 1)
        network = (
            self.start_steps + self.iterations * (self.segments * self.flow_steps - 1) + self.finish_steps
        )
        return (
            network + corrections * (self.correction == "finite-difference"),
            corrections * (self.correction == "vjp"),
        )

    def rounds(self, inside: InverseProblem) -> int:
        """As many as iterations, and the steps of the finish."""
        return self.iterations + self.finish_steps

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """x_K, (*batch, Z, Y, X), network range, after every iteration; then the finish, step by step."""
        grid = uniform_times(self.segments)
        states = self._start(inside, prior, grid, generator)
        shooting = self._shooting(inside, prior, grid, generator)
        update = (
            ChainUpdate(shooting, self.correction, self.correction_limit)
            if self.update == "chain"
            else CoordinateUpdate(shooting, self.penalty)
        )
        for iteration in range(self.iterations):
            states = update.advance(states, self.damping * (1 + iteration / 20) ** -self.decay)
            yield states[-1]
        yield from finish(
            inside, prior, states[-1], self.finish_steps, self.finish_noise, self.prox_iterations
        )

    def _shooting(
        self, inside: InverseProblem, prior: Prior, grid: list[float], generator: torch.Generator
    ) -> Shooting:
        stiffness = self.segments / self.model_error**2
        mean, slips = torch.zeros((), dtype=inside.y.dtype, device=inside.y.device), []
        if self.stochastic:
            inside = perturbed(inside, generator)
            mean = noise(inside, generator) / self.regularisation**0.5
            slips = [noise(inside, generator) / stiffness**0.5 for _ in range(self.segments)]
        latent = Latent(self.regularisation, mean, self.regulariser == "radial")
        rho = jacobians(self.jacobian, grid, prior, inside.A.domain_shape)
        return Shooting(
            inside, prior, grid, rho, latent, stiffness, self.prox_iterations, slips, self.flow_steps
        )

    def _start(
        self, inside: InverseProblem, prior: Prior, grid: list[float], generator: torch.Generator
    ) -> list[Tensor]:
        """Straight lines from noise to the image of an annealed plug-and-play run."""
        latent = self.start_noise * noise(inside, generator)
        image = tikhonov(inside, prior, 2 * self.prox_iterations)
        levels = np.geomspace(*_START_LEVELS, self.start_steps).tolist()
        annealed = anneal(inside, prior, image, levels, _START_RATIO, self.prox_iterations)
        image = [image, *annealed][-1]
        return [(1 - t) * latent + t * image for t in grid]
