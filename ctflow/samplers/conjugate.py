"""The conditional conjugate integrator of the flow (C-ΠGFM) in its spectral form, for noisy data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ctflow.samplers._conjugate import Conjugate

__all__ = ["ConjugateIntegrator"]


@dataclass(frozen=True)
class ConjugateIntegrator(Conjugate):
    """Sample the flow guided by the data, with the guidance integrated analytically (C-ΠGFM).

    dx/dt = v + w (1 - t) / t · Jᵀ Aᵀ (r_t² A Aᵀ + W⁻¹)⁻¹ (y - A D),  J = dD/dx. With the velocity frozen
    over a step, every mode of M = AᵀWA decays by a known factor, so that
    x' = x + Δt v + h(M) AᵀW (y - A D) + G(M) J_vᵀ e, with functions h, G of M that stay bounded where M is
    small: no pseudo-inverse and no cut-off. They are exact where the operator's spectrum is known, and by
    Lanczos elsewhere. Without noise h(M) AᵀW becomes (1 - q) A⁺.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: network evaluations, each with one backward pass (none where jacobian = 0).
        start: τ, time at which the integration starts from τ · Tikhonov image + (1 - τ) · noise.
        guidance: w; 1 is the statistically right weight for the prior's measured r_t².
        jacobian: share of the Jacobian's term that is kept: 1 is exact, 0 saves the backward pass.
        clip: the Jacobian's term is at most this many times as long as the data's term.
        lanczos: steps of one Lanczos run.
        tolerance: relative change at which a Lanczos run stops.
        weight: "ot", w (1 - t) / t as above; "paper" multiplies it by r_t² t².
        free_rate: λ of the paper, a linear part e^λt that is split off and put back by Euler's rule; 0 is
            best, and other values vanish with the step.
        grid: "uniform" times, or "quadratic", finer towards the image.
        calibrated: r_t² as measured on the prior; else that of a unit-variance prior.
        order: 1, or 2 for the midpoint rule, with two network evaluations a step.
        finish_steps: denoising steps at falling noise, each with a data prox, without backward passes;
            0 leaves the sample as it is, and a finished image is none.
        finish_noise: noise level of the last of them, network range: 0.03 is 15 HU.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Pandey, Yang, Mandt, NeurIPS 2024, arXiv:2405.17673 (conjugate integration, noiseless projector);
        Pokle et al., TMLR 2024, arXiv:2310.04432 (the weight (1 - t) / t). Differs from the former: exact
        functions of AᵀWA take the place of the pseudo-inverse and of the first-order noise correction.
    """

    diffusion: ClassVar[bool] = False
    cost: ClassVar[str] = (
        "a step: `order` network evaluations and backward passes (none with jacobian = 0), functions of AᵀWA"
    )
    paper: ClassVar[str] = """@inproceedings{pandey2024conjugate,
  title={Fast Samplers for Inverse Problems in Iterative Refinement Models},
  author={Pandey, Kushagra and Yang, Ruihan and Mandt, Stephan},
  booktitle={Advances in Neural Information Processing Systems}, year={2024}
}"""
