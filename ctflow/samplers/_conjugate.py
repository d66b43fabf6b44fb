"""Conditional conjugate integration: what the flow's and the diffusion's form share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ctflow.linalg import Function, inner
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._sampler import Sampler, require
from ctflow.samplers._start import start_between
from ctflow.samplers._times import residual_variance, unit_variance
from ctflow.search_space import Range

# Most steps of one Lanczos run, and of the start image's conjugate gradients. On a toy chest of 128², 80 gain
# 1 HU at 60 views and lose 1 to 7 at 120 or more, where ending early regularises; 20 lose up to 18.
_LANCZOS = 40
_TOLERANCE = 1e-3  # relative change at which a Lanczos run stops: far below a step's own error
_BETA_LOW, _BETA_SPAN = 0.1, 19.9  # β(u) = 0.1 + 19.9 u of the diffusion, Song et al., ICLR 2021


@dataclass(frozen=True)
class Form:
    """What a form of the guided ODE fixes; without arguments it is ours.

    Args:
        weighted: the guidance times r_t² and the signal squared; Bayes' rule has neither.
        calibrated: r_t² as measured on the prior; else that of a unit-variance prior.
        start_image: "tikhonov", or "pseudo-inverse" for A⁺y.
        clip: the Jacobian's term is at most this many times as long as the data's term.
        free_rate: λ of the paper, a linear part e^λt that is split off and put back by Euler's rule; what it
            changes vanishes with the step.
    """

    weighted: bool = False
    calibrated: bool = True
    start_image: str = "tikhonov"
    clip: float = 1.0
    free_rate: float = 0.0


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
    forms: ClassVar[dict[str, Form]] = {
        "bayes": Form(),
        "paper": Form(weighted=True, calibrated=False, start_image="pseudo-inverse", clip=1e9),
    }
    search: ClassVar[dict[str, Range]] = {
        "start": Range((0.3, 0.4, 0.5, 0.6, 0.7), choices=True),
        "guidance": Range((0.3, 3.0), log=True),
        "jacobian": Range((0.0, 0.5, 1.0), choices=True),
    }

    steps: int = 5
    start: float = 0.5
    guidance: float = 1.0
    jacobian: float = 0.5
    form: str = "bayes"

    def __post_init__(self) -> None:
        require(self.form in self.forms, self, "form 'bayes' or 'paper'")
        require(
            self.steps >= 1 and 0 < self.start < 1 and self.guidance >= 0 and 0 <= self.jacobian <= 1,
            self,
            "steps >= 1, start in (0, 1), guidance >= 0 and jacobian in [0, 1]",
        )

    @property
    def fixed(self) -> Form:
        """What `form` fixes."""
        return self.forms[self.form]

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.steps, self.steps if self.jacobian > 0 else 0

    def times(self) -> list[float]:
        """steps + 1 times from `start` to 1, even in the flow's time or in the diffusion's."""
        left = 1 - np.arange(self.steps + 1) / self.steps
        if not self.diffusion:
            return [float(t) for t in 1 - (1 - self.start) * left]
        return [flow_time(u) for u in (diffusion_time(self.start) * left).tolist()]

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Denoised images (*batch, Z, Y, X), network range, then the sample."""
        x = start_between(inside, prior, self.start, _LANCZOS, generator, self.fixed.start_image)
        X = x / self.start if self.diffusion else x
        for t, u in pairwise(self.times()):
            decay = _Decay(self, prior, t, u)
            denoised, direction, pull, bend = self._look(inside, prior, X, decay)
            X = self._advance(inside, X, direction, pull, bend, decay)
            yield X if u == 1 else denoised

    def slope(self, s: float) -> float:
        """m(s) of D = X + m d."""
        return -(1 - s) / s if self.diffusion else 1 - s

    def clock(self, s: float) -> float:
        """The time whose linear part λ is split off: the flow's, or the diffusion's, which runs backwards."""
        return diffusion_time(s) if self.diffusion else s

    def _look(
        self, inside: InverseProblem, prior: Prior, X: Tensor, decay: _Decay
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
        decay: _Decay,
    ) -> Tensor:
        if self.fixed.free_rate == 0:
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
            self.fixed.clip * lengths[0] / lengths[1].clamp_min(1e-30)
        ).clamp_max(1)

    def _functions(self, inside: InverseProblem, b: Tensor, functions: list[Function]) -> list[Tensor]:
        return inside.functions_of_normal(b, functions, _LANCZOS, _TOLERANCE)


class _Decay:
    """The scalar functions of one step from t to u, of an eigenvalue λ of AᵀWA.

    With rate = κ r² / (r² λ + 1): h = ∫ Q rate, G = ∫ Q κ (1 - s), Q = exp(-λ ∫_s^u rate), and
    e = r_t² / (r_t² λ + 1). A free rate multiplies Q by exp(-free_rate ∫_s^u), and X by its Euler step.
    """

    def __init__(self, method: Conjugate, prior: Prior, t: float, u: float) -> None:
        self.method, self.form, self.t, self.u = method, method.fixed, t, u
        self.r2_now = residual_variance(prior, t, self.form.calibrated)
        nodes, weights, later = _rule()
        half = (u - t) / 2
        self.s = t + half * (nodes + 1)
        self.weights, self.later = half * weights, half * later
        r2 = [residual_variance(prior, s, self.form.calibrated) for s in self.s.tolist()]
        self.r2 = torch.tensor(r2, dtype=torch.float64)
        strength = [self._strength(s, r) for s, r in zip(self.s.tolist(), r2, strict=True)]
        self.strength = torch.tensor(strength, dtype=torch.float64)
        span = [self.form.free_rate * (method.clock(u) - method.clock(s)) for s in self.s.tolist()]
        self.free = torch.tensor(span, dtype=torch.float64)

    def _strength(self, s: float, r2: float) -> float:
        """κ r²: the guidance w (1 - s) / s with its weight, for X."""
        diffusion = self.method.diffusion
        signal = 1 - unit_variance(s) if diffusion else s**2  # α² of the path
        weight = r2 * signal if self.form.weighted else 1.0
        return self.method.guidance * (1 - s) / s * weight / (s**2 if diffusion else 1.0)

    def _rate(self, eigenvalues: Tensor) -> Tensor:
        """At every node, (..., 32)."""
        return self.strength / (self.r2 * eigenvalues[..., None].double() + 1)

    def _whole(self, eigenvalues: Tensor) -> Tensor:
        """E = ∫ rate over the step, shaped like `eigenvalues`."""
        return (self.weights * self._rate(eigenvalues)).sum(-1)

    def _propagated(self, eigenvalues: Tensor, integrand: Tensor) -> Tensor:
        """∫ integrand · exp(-λ ∫_s^u rate - free_rate ∫_s^u) ds; integrand (..., 32) -> (...)."""
        left = eigenvalues[..., None].double() * (self._rate(eigenvalues) @ self.later.mT)
        return (self.weights * torch.exp(-left - self.free) * integrand).sum(-1)

    def e(self, eigenvalues: Tensor) -> Tensor:
        """What makes the Jacobian's cotangent out of AᵀW (y - A D)."""
        return self.r2_now / (self.r2_now * eigenvalues.double() + 1)

    def h(self, eigenvalues: Tensor) -> Tensor:
        """What the data term is multiplied by: (1 - exp(-λ E)) / λ without a free rate."""
        if self.form.free_rate != 0:
            return self._propagated(eigenvalues, self._rate(eigenvalues))
        E = self._whole(eigenvalues)
        product = eigenvalues.double() * E
        return torch.where(product > 1e-9, -torch.expm1(-product) / eigenvalues.double().clamp_min(1e-300), E)

    def G(self, eigenvalues: Tensor) -> Tensor:
        """What the Jacobian's term is multiplied by."""
        return self._propagated(eigenvalues, self.strength / self.r2 * (1 - self.s))

    def kept(self, eigenvalues: Tensor) -> Tensor:
        """What X is multiplied by where a free rate is split off; 1 without."""
        span = self.form.free_rate * (self.method.clock(self.u) - self.method.clock(self.t))
        decayed = torch.exp(-eigenvalues.double() * self._whole(eigenvalues))
        return math.exp(-span) * (1 + span) * decayed + eigenvalues.double() * self.h(eigenvalues)

    def moved(self, eigenvalues: Tensor) -> Tensor:
        """What the direction is multiplied by where a free rate is split off; m(t) - m(u) without."""
        method, values = self.method, eigenvalues.double()
        fall = -1 / self.s**2 if method.diffusion else torch.ones_like(self.s)  # -m'
        slopes = torch.tensor([method.slope(s) for s in self.s.tolist()], dtype=torch.float64)
        drift = fall - values[..., None] * self._rate(eigenvalues) * slopes
        return self._propagated(eigenvalues, drift) + method.slope(self.t) * values * self.h(eigenvalues)


@cache
def _rule(order: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [-1, 1], and the matrix of ∫ from each node to 1, float64.

    The integrals are those of the polynomial through the values at all nodes, in Legendre's basis.
    """
    nodes, weights = np.polynomial.legendre.leggauss(order)
    P = np.polynomial.legendre.legvander(nodes, order)  # (nodes, 0 … order)
    degree = np.arange(1, order)
    rest = np.column_stack([1 - nodes, (P[:, :-2] - P[:, 2:]) / (2 * degree + 1)])
    coefficients = (np.arange(order)[:, None] + 0.5) * (weights * P[:, :-1].T)
    return torch.from_numpy(nodes), torch.from_numpy(weights), torch.from_numpy(rest @ coefficients)


def diffusion_time(t: float) -> float:
    """Time u of the diffusion, 0 image to 1 noise, with the noise level of the flow's time t."""
    B = -math.log(1 - unit_variance(t))
    return (math.sqrt(_BETA_LOW**2 + 2 * _BETA_SPAN * B) - _BETA_LOW) / _BETA_SPAN


def flow_time(u: float) -> float:
    """Time t of the flow with the noise level of the diffusion's time u."""
    B = _BETA_LOW * u + _BETA_SPAN * u**2 / 2
    signal = math.exp(-B / 2)
    return signal / (signal + math.sqrt(-math.expm1(-B)))
