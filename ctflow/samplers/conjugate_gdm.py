"""The conditional conjugate integrator of the diffusion (C-ΠGDM) in its spectral form, for noisy data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ctflow.samplers._conjugate import Conjugate, flow_time
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
        start: τ, flow time at which the integration starts from τ · start image + (1 - τ) · noise.
        guidance: w; 1 is the statistically right weight of "ot" for the prior's measured r_t².
        jacobian: share of the Jacobian's term that is kept: 1 is exact; 0 saves the backward pass. Below 1,
            as by default, fine steps do not converge to the ODE above; at few steps it is better in RMSE.
        clip: the Jacobian's term is at most this many times as long as the data's term.
        lanczos: steps of one Lanczos run.
        weight: "ot", that of Bayes' rule, w_t = w; "paper", w_t = w r_t² μ².
        free_rate: λ of the paper, in the diffusion's time; 0 is best, and others vanish with the step.
        calibrated: r_t² as measured on the prior; else that of a unit-variance prior.
        start_image: "tikhonov", or "pseudo-inverse" for A⁺y.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Pandey, Yang, Mandt, NeurIPS 2024, arXiv:2405.17673 (the diffusion's part). Differs from it: exact
        functions of AᵀWA take the place of the pseudo-inverse and of the first-order noise correction; the
        weight, r_t², the start and λ have other defaults. `paper_form()` has the paper's.
    """

    diffusion: ClassVar[bool] = True
    cost: ClassVar[str] = ConjugateIntegrator.cost
    paper: ClassVar[str] = ConjugateIntegrator.paper

    @classmethod
    def paper_form(cls) -> ConjugateGDM:
        """The paper's weight, start and λ for the diffusion, as its code runs super-resolution without noise.

        The unclipped Jacobian is kept whole; the paper searches w, τ and λ for every task.
        """
        return cls(
            steps=5,
            start=flow_time(0.4),
            guidance=15.0,
            jacobian=1.0,
            clip=1e9,
            weight="paper",
            calibrated=False,
            start_image="pseudo-inverse",
        )
