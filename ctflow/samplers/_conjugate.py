"""Conditional conjugate integration: what the flow's and the diffusion's form share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ctflow.linalg import Function, inner
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._path import require, residual_variance, start_between, unit_variance
from ctflow.samplers._sampler import Sampler

_BETA_LOW, _BETA_SPAN = 0.1, 19.9  # β(u) = 0.1 + 19.9 u of the diffusion, Song et al., ICLR 2021


@dataclass(frozen=True)
class Conjugate(Sampler):
    """Guided ODE dX/ds = -m' d + κ (e + (1 - s) Bᵀ e), solved exactly while d and Bᵀ e are frozen.

    D = X + m d is the denoised image, e = (r² M + 1)⁻¹ r² AᵀW (y - A D) the pull of the data, M = AᵀWA.
    A mode of M with eigenvalue λ decays by exp(-λ E), E = ∫ κ r² / (r² λ + 1), so that
    X' = X + (m - m') d + h(M) AᵀW (y - A D) + G(M) Bᵀ e.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Members say what X and d are; see them for the numbers.
    """

    diffusion: ClassVar[bool]

    steps: int = 5
    start: float = 0.5
    guidance: float = 1.0
    jacobian: float = 0.5
    clip: float = 1.0
    lanczos: int = 40
    tolerance: float = 1e-3
    weight: str = "ot"
    free_rate: float = 0.0
    grid: str = "uniform"
    calibrated: bool = True
    order: int = 1

    def __post_init__(self) -> None:
        require(self.weight in ("ot", "paper"), self, "weight 'ot' or 'paper'")
        require(self.grid in ("uniform", "quadratic"), self, "grid 'uniform' or 'quadratic'")
        require(
            min(self.steps, self.lanczos) >= 1
            and 0 < self.start < 1
            and self.guidance >= 0
            and 0 <= self.jacobian <= 1
            and self.clip > 0
            and self.tolerance >= 0
            and self.order in (1, 2),
            self,
            "steps and lanczos >= 1, start in (0, 1), guidance >= 0, jacobian in [0, 1], clip > 0, "
            "tolerance >= 0 and order 1 or 2",
        )

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        network = self.steps * self.order
        return network, network if self.jacobian > 0 else 0

    def times(self) -> list[float]:
        """steps + 1 times from `start` to 1, even in the flow's time or in the diffusion's, or squared."""
        power = 1 if self.grid == "uniform" else 2
        left = (1 - np.arange(self.steps + 1) / self.steps) ** power
        if not self.diffusion:
            return [float(t) for t in 1 - (1 - self.start) * left]
        return [flow_time(u) for u in (diffusion_time(self.start) * left).tolist()]

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Denoised images (*batch, Z, Y, X), network range, and at last the sample."""
        x = start_between(inside, prior, self.start, self.lanczos, generator)
        X = x / self.start if self.diffusion else x
        for t, u in pairwise(self.times()):
            decay = Decay(self, prior, t, u)
            if self.order == 1:
                denoised, direction, pull, bend = self._look(inside, prior, X, decay)
            else:
                half = Decay(self, prior, t, (t + u) / 2)
                middle = self._advance(inside, X, *self._look(inside, prior, X, half)[1:], half)
                after = Decay(self, prior, half.u, u)
                denoised, direction, _, bend = self._look(inside, prior, middle, after)
                (pull,) = self._functions(inside, -inside.gradient(X + self.slope(t) * direction), [decay.h])
            X = self._advance(inside, X, direction, pull, bend, decay)
            yield X if u == 1 else denoised

    def slope(self, s: float) -> float:
        """m(s) of D = X + m d."""
        return -(1 - s) / s if self.diffusion else 1 - s

    def clock(self, s: float) -> float:
        """The time whose linear part λ is split off: the flow's, or the diffusion's, which runs backwards."""
        return diffusion_time(s) if self.diffusion else s

    def _look(
        self, inside: InverseProblem, prior: Prior, X: Tensor, decay: Decay
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Denoised image, direction d, the data's term, and Bᵀ e where the Jacobian is kept."""
        t = decay.t
        x = t * X if self.diffusion else X
        pulls: list[Tensor] = []

        def cotangent(denoised: Tensor) -> Tensor:
            pulls.extend(self._functions(inside, -inside.gradient(denoised), [decay.h, decay.e]))
            return pulls[1]

        bend = None
        if self.jacobian == 0:
            denoised = prior.denoise(x, t)
            cotangent(denoised)
        else:
            denoised, pulled = prior.denoise_vjp(x, t, cotangent)
            # J_vᵀ e = (J_Dᵀ e - e) / (1 - t) as v = (D - x) / (1 - t); -J_ẑᵀ e as ẑ = (x - t D) / (1 - t).
            bend = ((t * pulled if self.diffusion else pulled) - pulls[1]) / (1 - t)
        direction = ((x - t * denoised) if self.diffusion else (denoised - x)) / (1 - t)
        return denoised, direction, pulls[0], bend

    def _advance(
        self,
        inside: InverseProblem,
        X: Tensor,
        direction: Tensor,
        pull: Tensor,
        bend: Tensor | None,
        decay: Decay,
    ) -> Tensor:
        if self.free_rate == 0:
            ahead = X + (self.slope(decay.t) - self.slope(decay.u)) * direction + pull
        else:
            (kept,) = self._functions(inside, X, [decay.kept])
            (moved,) = self._functions(inside, direction, [decay.moved])
            ahead = kept + moved + pull
        if bend is None:
            return ahead
        (bent,) = self._functions(inside, bend, [decay.G])
        lengths = [inner(term, term, inside.dims).sqrt() for term in (pull, bent)]
        return ahead + self.jacobian * bent * (
            self.clip * lengths[0] / lengths[1].clamp_min(1e-30)
        ).clamp_max(1)

    def _functions(self, inside: InverseProblem, b: Tensor, functions: list[Function]) -> list[Tensor]:
        return inside.functions_of_normal(b, functions, self.lanczos, self.tolerance)


class Decay:
    """The scalar functions of one step from t to u, of an eigenvalue λ of AᵀWA.

    With rate = κ r² / (r² λ + 1): h = ∫ Q rate, G = ∫ Q κ (1 - s), Q = exp(-λ ∫_s^u rate), and
    e = r_t² / (r_t² λ + 1). A free rate multiplies Q by exp(-free_rate ∫_s^u), and X by its Euler step.
    """

    def __init__(self, method: Conjugate, prior: Prior, t: float, u: float) -> None:
        self.method, self.prior, self.t, self.u = method, prior, t, u
        self.r2 = residual_variance(prior, t, method.calibrated)
        self.whole = self._rule(t, u, 32)
        self.later = [self._rule(s, u, 16) for s in self.whole[0].tolist()]

    def _rule(self, low: float, high: float, order: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gauss-Legendre nodes, weights, and at the nodes κ r² and r²."""
        nodes, weights = np.polynomial.legendre.leggauss(order)
        half = (high - low) / 2
        nodes = low + half * (nodes + 1)
        r2 = [residual_variance(self.prior, s, self.method.calibrated) for s in nodes.tolist()]
        strength = [self._strength(s, r) for s, r in zip(nodes.tolist(), r2, strict=True)]
        return (
            torch.from_numpy(nodes),
            torch.from_numpy(half * weights),
            torch.tensor(strength, dtype=torch.float64),
            torch.tensor(r2, dtype=torch.float64),
        )

    def _strength(self, s: float, r2: float) -> float:
        """κ r²: the guidance w (1 - s) / s with its weight, for X."""
        diffusion = self.method.diffusion
        signal = 1 - unit_variance(s) if diffusion else s**2  # α² of the path
        weight = 1.0 if self.method.weight == "ot" else r2 * signal
        return self.method.guidance * (1 - s) / s * weight / (s**2 if diffusion else 1.0)

    def _exponent(self, eigenvalues: Tensor, rule: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """∫ rate, shaped like `eigenvalues`."""
        _, weights, strength, r2 = rule
        rate = strength / (r2 * eigenvalues[..., None].double() + 1)
        return (weights * rate).sum(-1)

    def e(self, eigenvalues: Tensor) -> Tensor:
        """What makes the Jacobian's cotangent out of AᵀW (y - A D)."""
        return self.r2 / (self.r2 * eigenvalues.double() + 1)

    def h(self, eigenvalues: Tensor) -> Tensor:
        """What the data term is multiplied by: (1 - exp(-λ E)) / λ without a free rate."""
        if self.method.free_rate != 0:
            return self._propagated(eigenvalues, lambda s, rate, kappa: rate)
        E = self._exponent(eigenvalues, self.whole)
        product = eigenvalues.double() * E
        return torch.where(product > 1e-9, -torch.expm1(-product) / eigenvalues.double().clamp_min(1e-300), E)

    def G(self, eigenvalues: Tensor) -> Tensor:
        """What the Jacobian's term is multiplied by."""
        return self._propagated(eigenvalues, lambda s, rate, kappa: torch.full_like(rate, kappa * (1 - s)))

    def kept(self, eigenvalues: Tensor) -> Tensor:
        """What X is multiplied by where a free rate is split off; 1 without."""
        span = self.method.free_rate * (self.method.clock(self.u) - self.method.clock(self.t))
        left = (
            math.exp(-span)
            * (1 + span)
            * torch.exp(-eigenvalues.double() * self._exponent(eigenvalues, self.whole))
        )
        return left + eigenvalues.double() * self.h(eigenvalues)

    def moved(self, eigenvalues: Tensor) -> Tensor:
        """What the direction is multiplied by where a free rate is split off; m(t) - m(u) without."""
        method, values = self.method, eigenvalues.double()

        def drift(s: float, rate: Tensor, kappa: float) -> Tensor:
            fall = -1 / s**2 if method.diffusion else 1.0  # -m'
            return fall - values * rate * method.slope(s)

        return self._propagated(eigenvalues, drift) + method.slope(self.t) * values * self.h(eigenvalues)

    def _propagated(self, eigenvalues: Tensor, integrand: Callable[[float, Tensor, float], Tensor]) -> Tensor:
        """∫ integrand(s, rate, κ) · exp(-λ ∫_s^u rate - free_rate ∫_s^u) ds, shaped like `eigenvalues`."""
        values = eigenvalues.double()
        total = torch.zeros_like(values)
        end = self.method.clock(self.u)
        nodes = zip(*(part.tolist() for part in self.whole), self.later, strict=True)
        for s, weight, strength, r2, later in nodes:
            free = self.method.free_rate * (end - self.method.clock(s))
            left = torch.exp(-values * self._exponent(eigenvalues, later) - free)
            total += weight * left * integrand(s, strength / (r2 * values + 1), strength / r2)
        return total


def diffusion_time(t: float) -> float:
    """Time u of the diffusion, 0 image to 1 noise, with the noise level of the flow's time t."""
    B = -math.log(1 - unit_variance(t))
    return (math.sqrt(_BETA_LOW**2 + 2 * _BETA_SPAN * B) - _BETA_LOW) / _BETA_SPAN


def flow_time(u: float) -> float:
    """Time t of the flow with the noise level of the diffusion's time u."""
    B = _BETA_LOW * u + _BETA_SPAN * u**2 / 2
    signal = math.exp(-B / 2)
    return signal / (signal + math.sqrt(-math.expm1(-B)))
