"""One iteration of MS-Flow: all flow steps as one batch, then new states for the whole trajectory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from ctflow.linalg import inner
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._chain import Gain, Linearised, solve_chain, sweep, times

_DISPLACEMENT = 1e-2  # rms, network range: well above rounding in float32, well below a pixel's spread
_BALANCE = 5.0  # where gaps and movements are further apart than this, γ changes by a factor of two


@dataclass(frozen=True)
class Latent:
    """Regulariser of the start noise: λ/2 |x_0 - mean|², or radial, λ (½ |x_0|² - (d - 1) ln |x_0|).

    The radial one holds for each slice of d pixels by itself, as the prior does.

    Shapes: images (*batch, Z, Y, X), network range.

    Args:
        precision: λ.
        mean: 0, or what the start noise was perturbed to.
        radial: which of the two.
    """

    precision: float
    mean: Tensor
    radial: bool = False

    def quadratic(self, x: Tensor) -> tuple[float, Tensor]:
        """Precision and mean of a quadratic with the regulariser's gradient at x.

        The radial one has curvature 2 λ along the radius √(d - 1) and none across it; 2 λ keeps both stable.
        """
        if not self.radial:
            return self.precision, self.mean
        square = inner(x, x, 2).clamp_min(1e-30)
        return 2 * self.precision, x / 2 * (1 + (x.shape[-2:].numel() - 1) / square)

    def minimise(self, q: Tensor, weight: Gain) -> Tensor:
        """argmin over x_0 of the regulariser + weight/2 |x_0 - q|²; in closed form."""
        if not self.radial:
            share = weight / (weight + self.precision)
            return self.mean + times(share, q - self.mean)
        # A weight for each frequency leaves no closed form: its mean takes its place.
        g = weight.mean((-2, -1), keepdim=True) if isinstance(weight, Tensor) else weight
        length = inner(q, q, 2).sqrt().clamp_min(1e-15)
        pull = g * length
        total = self.precision + g
        root = (pull**2 + 4 * self.precision * total * (q.shape[-2:].numel() - 1)).sqrt()
        return q / length * (pull + root) / (2 * total)


@dataclass(frozen=True)
class Shooting:
    """What all iterations share.

    Shapes: images (*batch, Z, Y, X), network range.

    Args:
        inside: problem in network range.
        prior: flow prior.
        grid: times t_0 … t_K.
        rho: models of the Jacobians, K.
        latent: regulariser of the start noise.
        stiffness: γ.
        prox_iterations: conjugate-gradient steps of the data prox.
        slips: what is added to the flow steps, K; empty for nothing.
        flow_steps: Euler steps of one segment.
    """

    inside: InverseProblem
    prior: Prior
    grid: list[float]
    rho: list[Gain]
    latent: Latent
    stiffness: float
    prox_iterations: int
    slips: list[Tensor] = field(default_factory=list)
    flow_steps: int = 1

    def denoise(self, states: list[Tensor], part: int = 0) -> list[Tensor]:
        """Denoised x_0 … x_{K-1} as states of the times after `part` Euler steps.

        All but the first are one batch: at t = 0 it costs nothing, and later no batch is larger than that.
        """
        times_of = self._times(part)
        first = self.prior.denoise(states[0], times_of[0])
        if len(states) == 2:
            return [first]
        return [first, *self.prior.denoise_each(torch.stack(states[1:-1]), times_of[1:])]

    def _times(self, part: int) -> list[float]:
        return [t + (u - t) * part / self.flow_steps for t, u in pairwise(self.grid)]

    def ahead(self, states: list[Tensor], denoised: list[Tensor]) -> list[Tensor]:
        """Φ_k(x_k), with its slip."""
        x = states[:-1]
        for part in range(self.flow_steps):
            if part:
                denoised = self.denoise([*x, states[-1]], part)
            times_of = zip(self._times(part), self._times(part + 1), strict=True)
            x = [
                x + (u - t) * ((D - x) / (1 - t)) for x, D, (t, u) in zip(x, denoised, times_of, strict=True)
            ]
        return [x + slip for x, slip in zip(x, self.slips, strict=True)] if self.slips else x

    def pulls(self, pulled: list[Tensor], multipliers: list[Tensor], limit: float) -> list[Tensor]:
        """(ρ_k - J_kᵀ) p_k from the denoiser's J_Dᵀ p_k, at most `limit` times as long as ρ_k p_k."""
        pulls = []
        for p, Jp, rho, t, u in zip(
            multipliers, pulled, self.rho, self.grid[:-1], self.grid[1:], strict=True
        ):
            modelled = times(rho, p)
            pull = modelled - p - (u - t) / (1 - t) * (Jp - p)
            allowed = limit * inner(modelled, modelled, self.inside.dims).sqrt()
            length = inner(pull, pull, self.inside.dims).sqrt()
            pulls.append(pull * (allowed / length.clamp_min(1e-30)).clamp_max(1.0))
        return pulls

    def differences(
        self, states: list[Tensor], denoised: list[Tensor], multipliers: list[Tensor]
    ) -> list[Tensor]:
        """J_D p_k by finite differences, one more batch; J_Dᵀ p_k where the Jacobian is symmetric."""
        pixels = math.prod(self.inside.A.domain_shape)
        rms = [(inner(p, p, self.inside.dims) / pixels).sqrt() for p in multipliers]
        directions = [p / r.clamp_min(1e-30) for p, r in zip(multipliers, rms, strict=True)]
        moved = [x + _DISPLACEMENT * d for x, d in zip(states[:-1], directions, strict=True)]
        changed = self.denoise([*moved, states[-1]])
        return [(a - b) * r / _DISPLACEMENT for a, b, r in zip(changed, denoised, rms, strict=True)]

    def gradients(self, states: list[Tensor], multipliers: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Denoised states and J_Dᵀ p_k by backward passes, one state at a time: one graph is held."""
        denoised, pulled = [], []
        for x, t, p in zip(states[:-1], self.grid[:-1], multipliers, strict=True):
            if t > 0:
                D, Jp = self.prior.denoise_vjp(x, t, lambda _, p=p: p)  # type: ignore[misc]
            else:
                D, Jp = self.prior.denoise(x, t), torch.zeros_like(x)
            denoised.append(D)
            pulled.append(Jp)
        return denoised, pulled


class ChainUpdate:
    """The linearised problem, solved exactly; with a correction, its gradient is the true one at rest.

    Args:
        shooting: what all iterations share.
        correction: "none", "finite-difference" or "vjp".
        limit: the correction is at most so many times as long as the modelled gradient.
    """

    def __init__(self, shooting: Shooting, correction: str, limit: float) -> None:
        self.shooting, self.correction, self.limit = shooting, correction, limit
        self.multipliers: list[Tensor] | None = None

    def advance(self, states: list[Tensor], share: float) -> list[Tensor]:
        """The states (*batch, Z, Y, X), network range, after `share` of a step."""
        s = self.shooting
        latent = s.latent.quadratic(states[0])
        target, found = solve_chain(s.inside, self._linearise(states), latent, s.stiffness, s.prox_iterations)
        if self.correction != "none":
            old = self.multipliers or [torch.zeros_like(p) for p in found]
            self.multipliers = towards(old, found, share)
        return towards(states, target, share)

    def _linearise(self, states: list[Tensor]) -> Linearised:
        s, multipliers = self.shooting, self.multipliers
        if multipliers is None:
            return Linearised(states, s.ahead(states, s.denoise(states)), s.rho)
        if self.correction == "vjp":
            denoised, pulled = s.gradients(states, multipliers)
        else:
            denoised = s.denoise(states)
            pulled = s.differences(states, denoised, multipliers)
        return Linearised(states, s.ahead(states, denoised), s.rho, s.pulls(pulled, multipliers, self.limit))


class CoordinateUpdate:
    """One state after the other, from the image down to the noise; with multipliers where asked for.

    Args:
        shooting: what all iterations share.
        penalty: "fixed", "lagrangian" or "adaptive".
    """

    def __init__(self, shooting: Shooting, penalty: str) -> None:
        self.shooting, self.penalty = shooting, penalty
        self.stiffness: Gain = shooting.stiffness
        self.duals: list[Tensor] | None = None
        self.moved: Tensor | None = None

    def advance(self, states: list[Tensor], share: float) -> list[Tensor]:
        """The states (*batch, Z, Y, X), network range, after `share` of a step."""
        s = self.shooting
        ahead = s.ahead(states, s.denoise(states))
        if self.penalty != "fixed":
            ahead = self._shifted(states, ahead)
        target = sweep(
            s.inside, Linearised(states, ahead, s.rho), s.latent.minimise, self.stiffness, s.prox_iterations
        )
        self.moved = self._square(new - x for x, new in zip(states, target, strict=True))
        return towards(states, target, share)

    def _shifted(self, states: list[Tensor], ahead: list[Tensor]) -> list[Tensor]:
        """Φ_k minus the scaled multipliers u_k, which grow by the gaps that the last sweep left."""
        if self.moved is None or self.duals is None:
            self.duals = [torch.zeros_like(x) for x in ahead]
            return ahead
        gaps = [x - new for x, new in zip(states[1:], ahead, strict=True)]
        self.duals = [u + gap for u, gap in zip(self.duals, gaps, strict=True)]
        if self.penalty == "adaptive":
            ratio = (self._square(iter(gaps)) / self.moved.clamp_min(1e-30)).sqrt()
            factor = torch.where(ratio > _BALANCE, 2.0, torch.where(ratio < 1 / _BALANCE, 0.5, 1.0)).to(ratio)
            self.stiffness = self.stiffness * factor
            self.duals = [u / factor for u in self.duals]
        return [x - u for x, u in zip(ahead, self.duals, strict=True)]

    def _square(self, images: Iterator[Tensor]) -> Tensor:
        """Sum of squares over all images, (*batch, 1, 1, 1)."""
        return torch.stack([inner(x, x, self.shooting.inside.dims) for x in images]).sum(0)


def towards(old: list[Tensor], new: list[Tensor], share: float) -> list[Tensor]:
    """Images (*batch, Z, Y, X), any unit, moved by a share of the way."""
    return [x + share * (target - x) for x, target in zip(old, new, strict=True)]
