"""The conditional conjugate integrator of the flow (C-ΠGFM) in its spectral form, for noisy data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ctflow.samplers._conjugate import Conjugate, Form

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
        start: τ, time at which the integration starts from τ · start image + (1 - τ) · noise.
        guidance: w; 1 is the statistically right weight for the prior's measured r_t².
        jacobian: share of the Jacobian's term that is kept: 1 is exact; 0 saves the backward pass. Below 1,
            as by default, fine steps do not converge to the ODE above; at few steps it is better in RMSE.
        form: "bayes", as above, with r_t² as measured on the prior, from the Tikhonov image, the Jacobian's
            term no longer than the data's; "paper", the guidance times r_t² t², r_t² of a unit-variance
            prior, from A⁺y, the Jacobian's term unclipped, and with λ = 0.2 (e^λt is split off and put back
            by Euler's rule).

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Pandey, Yang, Mandt, NeurIPS 2024, arXiv:2405.17673 (conjugate integration, noiseless projector);
        Pokle et al., TMLR 2024, arXiv:2310.04432 (the weight (1 - t) / t). Differs from the former: exact
        functions of AᵀWA take the place of the pseudo-inverse and of the first-order noise correction; the
        weight, r_t², the start and λ are others by default. `paper_form()` has the paper's.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Blur((1, 32, 32), sigma=1.5), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.ConjugateIntegrator(steps=5), prior)
        >>> found.stats["network"], found.stats["backward"]
        (5, 5)
        >>> bool((found.mean - truth).std() < 0.25 * truth.std())
        True
    """

    diffusion: ClassVar[bool] = False
    forms: ClassVar[dict[str, Form]] = {
        **Conjugate.forms,
        "paper": replace(Conjugate.forms["paper"], free_rate=0.2),
    }
    cost: ClassVar[str] = (
        "a step: 1 network evaluation and backward pass (none with jacobian = 0), functions of AᵀWA"
    )
    paper: ClassVar[str] = """@inproceedings{pandey2024conjugate,
  title={Fast Samplers for Inverse Problems in Iterative Refinement Models},
  author={Pandey, Kushagra and Yang, Ruihan and Mandt, Stephan},
  booktitle={Advances in Neural Information Processing Systems}, year={2024}
}"""

    @classmethod
    def paper_form(cls) -> ConjugateIntegrator:
        """The paper's numbers for the flow, as its code runs LSUN bedrooms (flow/run.sh).

        The paper searches w, τ and λ for every task.
        """
        return cls(steps=10, start=0.6, guidance=20.0, jacobian=1.0, form="paper")
