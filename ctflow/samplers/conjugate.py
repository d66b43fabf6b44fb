"""The conditional conjugate integrator in its spectral form, for noisy data and any linear operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ctflow.errors import ProtocolError
from ctflow.linalg import inner
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._path import start_between, uniform_times
from ctflow.solving import Callback

__all__ = ["ConjugateIntegrator"]


@dataclass(frozen=True)
class ConjugateIntegrator:
    """Sample the flow guided by the data, with the guidance integrated analytically (C-ΠGFM).

    dx/dt = v + w (1 - t) / t · Jᵀ Aᵀ (r_t² A Aᵀ + W⁻¹)⁻¹ (y - A D),  J = dD/dx. With the velocity frozen
    over a step, every mode of M = AᵀWA decays by a known factor, so that
    x' = x + Δt v + h(M) AᵀW (y - A D) + G(M) J_vᵀ e, with functions h, G of M that stay bounded where M is
    small: no pseudo-inverse and no cut-off. They are exact where the operator's spectrum is known, and by
    Lanczos elsewhere.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: network evaluations, each with one backward pass (none where jacobian = 0).
        start: τ, time at which the integration starts from τ · Tikhonov image + (1 - τ) · noise.
        guidance: w; 1 is the statistically right weight for the prior's measured r_t².
        jacobian: share of the Jacobian's term that is kept, 0 to 1.
        clip: the Jacobian's term is at most this many times as long as the data's term.
        lanczos: steps of one Lanczos run.
        tolerance: relative change at which a Lanczos run stops.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Pandey, Yang, Mandt, NeurIPS 2024, arXiv:2405.17673 (conjugate integration, noiseless projector);
        Pokle et al., TMLR 2024, arXiv:2310.04432 (the weight (1 - t) / t). Differs from the former: exact
        functions of AᵀWA take the place of the pseudo-inverse and of the first-order noise correction.
    """

    needs_prior: ClassVar[bool] = True
    cost: ClassVar[str] = (
        "a step: 1 network evaluation, 1 backward pass (none with jacobian = 0), functions of AᵀWA"
    )
    paper: ClassVar[str] = """@inproceedings{pandey2024conjugate,
  title={Fast Samplers for Inverse Problems in Iterative Refinement Models},
  author={Pandey, Kushagra and Yang, Ruihan and Mandt, Stephan},
  booktitle={Advances in Neural Information Processing Systems}, year={2024}
}"""

    steps: int = 5
    start: float = 0.5
    guidance: float = 1.0
    jacobian: float = 0.5
    clip: float = 1.0
    lanczos: int = 40
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if min(self.steps, self.lanczos) < 1 or not (
            0 < self.start < 1 and self.guidance >= 0 and 0 <= self.jacobian <= 1 and self.clip > 0
        ):
            raise ProtocolError(
                f"{self} needs steps and lanczos >= 1, start in (0, 1), guidance >= 0, jacobian in [0, 1] "
                "and clip > 0"
            )

    def __call__(
        self, problem: InverseProblem, prior: Prior, generator: torch.Generator, callback: Callback
    ) -> Tensor:
        """Draw one image per problem of the batch; see the class for the equation."""
        inside = problem.rescaled(prior.scale, prior.shift)
        x = start_between(inside, prior, self.start, self.lanczos, generator)
        for step, (t, u) in enumerate(pairwise(uniform_times(self.steps, self.start))):
            x = self._step(inside, prior, x, t, u)
            callback(step + 1, self.steps)
        return prior.scale * x + prior.shift

    def _step(self, inside: InverseProblem, prior: Prior, x: Tensor, t: float, u: float) -> Tensor:
        decay = _Decay(prior, self.guidance, t, u)
        pulls: list[Tensor] = []

        def cotangent(denoised: Tensor) -> Tensor:
            pulls.extend(self._apply(inside, -inside.gradient(denoised), [decay.h, decay.e]))
            return pulls[1]

        if self.jacobian == 0:
            denoised = prior.denoise(x, t)
            cotangent(denoised)
            return x + (u - t) / (1 - t) * (denoised - x) + pulls[0]
        denoised, pulled = prior.denoise_vjp(x, t, cotangent)
        # J_vᵀ e = (J_Dᵀ e - e) / (1 - t), since v = (D - x) / (1 - t).
        (bend,) = self._apply(inside, (pulled - pulls[1]) / (1 - t), [decay.G])
        lengths = [inner(term, term, inside.dims).sqrt() for term in (pulls[0], bend)]
        bend = bend * (self.clip * lengths[0] / lengths[1].clamp_min(1e-30)).clamp_max(1.0)
        return x + (u - t) / (1 - t) * (denoised - x) + pulls[0] + self.jacobian * bend

    def _apply(
        self, inside: InverseProblem, b: Tensor, functions: list[Callable[[Tensor], Tensor]]
    ) -> list[Tensor]:
        return inside.functions_of_normal(b, functions, self.lanczos, self.tolerance)


class _Decay:
    """The scalar functions of one step from t to u, as functions of an eigenvalue λ of AᵀWA.

    With rate(s) = w (1 - s) / s / (r_s² λ + 1): E = ∫ rate, h = (1 - exp(-λ E)) / λ,
    G = ∫ w (1 - s)² / (s r_s²) exp(-λ ∫_s^u rate) ds, and e = r_t² / (r_t² λ + 1).
    """

    def __init__(self, prior: Prior, guidance: float, t: float, u: float) -> None:
        self.prior, self.guidance = prior, guidance
        self.r2 = prior.residual_variance(t)
        self.whole = self._rule(t, u, 32)
        self.later = [self._rule(s, u, 16) for s in self.whole[0].tolist()]

    def _rule(self, low: float, high: float, order: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gauss-Legendre nodes, weights, and r² at the nodes."""
        nodes, weights = np.polynomial.legendre.leggauss(order)
        half = (high - low) / 2
        nodes = low + half * (nodes + 1)
        r2 = [self.prior.residual_variance(s) for s in nodes.tolist()]
        return (
            torch.from_numpy(nodes),
            torch.from_numpy(half * weights),
            torch.tensor(r2, dtype=torch.float64),
        )

    def _integral(self, eigenvalues: Tensor, rule: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """∫ rate, shaped like `eigenvalues`."""
        nodes, weights, r2 = rule
        rate = self.guidance * (1 - nodes) / nodes / (r2 * eigenvalues[..., None].double() + 1)
        return (weights * rate).sum(-1)

    def h(self, eigenvalues: Tensor) -> Tensor:
        """What the data term is multiplied by."""
        E = self._integral(eigenvalues, self.whole)
        product = eigenvalues.double() * E
        return torch.where(product > 1e-9, -torch.expm1(-product) / eigenvalues.double().clamp_min(1e-300), E)

    def e(self, eigenvalues: Tensor) -> Tensor:
        """What makes the Jacobian's cotangent out of AᵀW (y - A D)."""
        return self.r2 / (self.r2 * eigenvalues.double() + 1)

    def G(self, eigenvalues: Tensor) -> Tensor:
        """What the Jacobian's term is multiplied by."""
        total = torch.zeros_like(eigenvalues, dtype=torch.float64)
        for s, weight, r2, later in zip(*(part.tolist() for part in self.whole), self.later, strict=True):
            gain = self.guidance * (1 - s) ** 2 / (s * r2)
            total += weight * gain * torch.exp(-eigenvalues.double() * self._integral(eigenvalues, later))
        return total
