"""MS-Flow: the states of the flow's trajectory one by one, stitched by multipliers, with the data at each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._sampler import Sampler, require
from ctflow.samplers._start import tikhonov
from ctflow.search_space import Range
from ctflow.solving import Spread
from ctflow.tables import Whole

__all__ = ["MSFlow"]


@dataclass(frozen=True)
class MSFlow(Sampler):
    """Find the flow's trajectory state by state, with matching and data at every state, no backpropagation.

    In u = x_t / t, with noise levels σ = (1 - t) / t, one Euler step of the flow is
        Φ_k(u) = D(u; σ_k) + σ_{k+1} z_k  with the predicted noise  z_k = (u - D(u; σ_k)) / σ_k.
    Unknown are the states u_1 … u_{K+1} at falling levels, even in log σ. Each has an end point, the image
    c_k = u_{k+1} - σ_{k+1} z_k, and the data hold for every one:
        min Σ_k ½ |A c_k - y|²_W  subject to  u_{k+1} = Φ_k(u_k).
    A block step of its augmented Lagrangian, with stiffness 1 / V_k and D's Jacobian left out, is
        c_k = argmin_c ½ |A c - y|²_W + |c - D(u_k; σ_k) + σ_{k+1} z_k|² / (2 V_k),
        u_{k+1} = c_k + σ_{k+1} z_k,
    with V_k = trust · r(σ_k)² and r the prior's own error. The multiplier of the matching is σ z, the noise
    of the flow, and falls as it does. A next sweep starts from u_1 = c_K + σ_1 z_K. Memory holds four images
    and one network evaluation, whatever K.

    Where the data see nothing, u_{k+1} = D(u_k) carries no noise on; where they decide, it goes on in full.
    At one level, for images N(m, S), the fixed point is the maximum a posteriori under the covariance
    V / σ² · S: the exact one where V = σ².

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        states: K, states of one sweep; one network evaluation and one data prox each.
        sweeps: times over the trajectory. Two of 8 states keep more of small contrasts than one of 16: at 60
            views 0.75 in place of 0.64 of lesions of 12 mm, for 0.1 dB.
        trust: V_k over r(σ_k)²; larger trusts the data more.
        first_noise: σ_1, network range.
        last_noise: σ_K, network range: 0.06 is 30 HU.
        prox_iterations: conjugate-gradient steps of one data prox, warm from the last end point.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Denker, Eliasof, Kereta, Schönlieb, arXiv:2602.08538 (multiple shooting without Jacobians). Differs
        from it: data and a multiplier at every state, not a penalty and the data at the last alone; levels
        even in log σ, not in time. `MSFlowPaper` is the paper's form.
        Chan, Wang, Elgendy, IEEE Trans. Comput. Imaging 3 (2017) (plug-and-play ADMM with continuation, which
        a sweep is, but for the dual: ours falls with the noise, and V follows the prior's error).
        Song, Meng, Ermon, ICLR 2021 (Euler's step in u).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Mask((1, 32, 32), missing=0.5), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.MSFlow(states=8, sweeps=2), prior)
        >>> found.stats["network"]
        16
        >>> bool((found.mean - truth).std() < 0.3 * truth.std())
        True
    """

    spread: ClassVar[Spread] = Spread.NONE
    cost: ClassVar[str] = "a state of a sweep: 1 network evaluation, 1 data prox"
    search: ClassVar[dict[str, Range]] = {
        "trust": Range((5.0, 80.0), log=True),
        "first_noise": Range((0.5, 4.0), log=True),
        "last_noise": Range((0.015, 0.12), log=True),
    }
    paper: ClassVar[str] = """@article{denker2026msflow,
  title={Trajectory Stitching for Solving Inverse Problems with Flow-Based Models},
  author={Denker, Alexander and Eliasof, Moshe and Kereta, {\\v{Z}}eljko and Sch{\\"o}nlieb, Carola-Bibiane},
  journal={arXiv preprint arXiv:2602.08538}, year={2026}
}"""

    states: Annotated[int, Whole(1, 1000)] = 8
    sweeps: Annotated[int, Whole(1, 1000)] = 2
    trust: float = 20.0
    first_noise: float = 1.0
    last_noise: float = 0.06
    prox_iterations: int = 30

    def __post_init__(self) -> None:
        require(
            min(self.states, self.sweeps, self.prox_iterations) >= 1
            and self.trust > 0
            and 0 < self.last_noise <= self.first_noise,
            self,
            "states, sweeps and prox_iterations >= 1, trust > 0 and 0 < last_noise <= first_noise",
        )

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.states * self.sweeps, 0

    def rounds(self, inside: InverseProblem) -> int:
        """One for each state of each sweep."""
        return self.states * self.sweeps

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """End points c_k, (*batch, Z, Y, X), network range, after every state."""
        ratio = (self.last_noise / self.first_noise) ** (1 / max(1, self.states - 1))
        levels = (self.first_noise * ratio ** np.arange(self.states + 1)).tolist()
        image = tikhonov(inside, prior, 2 * self.prox_iterations)
        z = torch.zeros_like(image)
        for _ in range(self.sweeps):
            for now, then in pairwise(levels):
                t = 1 / (1 + now)
                state = image + now * z
                denoised = prior.denoise(t * state, t)
                z = (state - denoised) / now
                variance = self.trust * prior.residual_variance(t)
                image = inside.prox(denoised - then * z, variance, self.prox_iterations, start=image)
                yield image
