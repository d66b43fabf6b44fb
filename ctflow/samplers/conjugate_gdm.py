"""The conditional conjugate integrator of the diffusion (C-ΠGDM) in its spectral form, for noisy data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ctflow.samplers._conjugate import Conjugate, flow_time
from ctflow.samplers.conjugate import ConjugateIntegrator
from ctflow.search_space import Range

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
        guidance: w; 1 is the statistically right weight for the prior's measured r_t².
        jacobian: share of the Jacobian's term that is kept: 1 is exact; 0 saves the backward pass. Below 1,
            as by default, fine steps do not converge to the ODE above; at few steps it is better in RMSE.
        form: "bayes", the weight of Bayes' rule, w_t = w, with r_t² as measured on the prior, from the
            Tikhonov image, the Jacobian's term no longer than the data's; "paper", w_t = w r_t² μ², r_t² of
            a unit-variance prior, from A⁺y, the Jacobian's term unclipped.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Pandey, Yang, Mandt, NeurIPS 2024, arXiv:2405.17673 (the diffusion's part). Differs from it: exact
        functions of AᵀWA take the place of the pseudo-inverse and of the first-order noise correction; the
        weight, r_t² and the start are others by default. `paper_form()` has the paper's.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Downsample((1, 32, 32), 2), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.ConjugateGDM(steps=5, jacobian=0.0), prior)
        >>> found.stats["network"], found.stats["backward"]
        (5, 0)
        >>> bool((found.mean - truth).std() < 0.1 * truth.std())
        True
    """

    diffusion: ClassVar[bool] = True
    search: ClassVar[dict[str, Range]] = Conjugate.search | {"steps": Range((3, 5, 10), choices=True)}
    cost: ClassVar[str] = ConjugateIntegrator.cost
    paper: ClassVar[str] = ConjugateIntegrator.paper

    @classmethod
    def paper_form(cls) -> ConjugateGDM:
        """The paper's numbers for the diffusion, as its code runs super-resolution without noise.

        The paper searches w, τ and λ for every task; here λ is 0.
        """
        return cls(steps=5, start=flow_time(0.4), guidance=15.0, jacobian=1.0, form="paper")
