"""The conditional conjugate integrator of the diffusion (C-ΠGDM) in its spectral form, for noisy data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ctflow.samplers._conjugate import Conjugate
from ctflow.samplers.conjugate import ConjugateIntegrator

__all__ = ["ConjugateGDM"]


@dataclass(frozen=True)
class ConjugateGDM(Conjugate):
    """Sample the diffusion's ODE guided by the data, with the guidance integrated analytically (C-ΠGDM).

    The same ODE as that of C-ΠGFM; over a step the noise ẑ is frozen instead of the velocity, as in DDIM:
    x' = u (D + h(M) AᵀW (y - A D) - G(M) J_ẑᵀ e) + (1 - u) ẑ, on the flow's path, where the same network
    serves: t = μ / (μ + σ) for signal μ and noise σ. Without noise and Jacobian it is DDNM's projection,
    relaxed by the right amount, 1 - (μ / μ')^w for the paper's weight.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: network evaluations, each with one backward pass (none where jacobian = 0).
        start: τ, flow time at which the integration starts from τ · Tikhonov image + (1 - τ) · noise.
        guidance: w; 1 is the statistically right weight of "ot" for the prior's measured r_t².
        jacobian: share of the Jacobian's term that is kept: 1 is exact, 0 saves the backward pass.
        clip: the Jacobian's term is at most this many times as long as the data's term.
        lanczos: steps of one Lanczos run.
        tolerance: relative change at which a Lanczos run stops.
        weight: "ot", that of Bayes' rule, w_t = w; "paper", w_t = w r_t² μ².
        free_rate: λ of the paper, in the diffusion's time; 0 is best, and others vanish with the step.
        grid: even in the diffusion's time, "uniform", or in its root, "quadratic", finer towards the image.
        calibrated: r_t² as measured on the prior; else that of a unit-variance prior.
        order: 1, or 2 for the midpoint rule, with two network evaluations a step.
        finish_steps: denoising steps at falling noise, each with a data prox, without backward passes;
            0 leaves the sample as it is, and a finished image is none.
        finish_noise: noise level of the last of them, network range: 0.03 is 15 HU.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Pandey, Yang, Mandt, NeurIPS 2024, arXiv:2405.17673 (the diffusion's part). Differs from it: exact
        functions of AᵀWA take the place of the pseudo-inverse and of the first-order noise correction.
    """

    diffusion: ClassVar[bool] = True
    cost: ClassVar[str] = ConjugateIntegrator.cost
    paper: ClassVar[str] = ConjugateIntegrator.paper
