"""PnP-Flow: data step, back onto the path by fresh noise, denoise; with growing times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import normal_like
from ctflow.samplers._sampler import PROX_ITERATIONS, Sampler, normal_norm, require
from ctflow.samplers._start import tikhonov
from ctflow.samplers._times import uniform_times
from ctflow.search_space import Range
from ctflow.tables import Whole

__all__ = ["PnPFlow"]


@dataclass(frozen=True)
class PnPFlow(Sampler):
    """x = mean over draws of D(t z' + (1 - t) z, t), z' = x after a step on the data, for growing t.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: times 0, 1 / steps, ...
        draws: noise images that are averaged, one network evaluation each (none at t = 0).
        update: "prox" solves the data step with variance strength · (1 - t)^decay; "gradient" walks
            strength · (1 - t)^decay times the inverse norm of AᵀWA downhill.
        strength: of the data step; at most 1 is stable for "gradient".
        decay: α of the paper.

    Raises:
        ProtocolError: a number is not positive or the update is unknown.

    References:
        Martin, Gagneux, Hagemann, Steidl, ICLR 2025, arXiv:2410.02423, algorithm 3 ("gradient").
        `paper_form()` has the paper's numbers; it starts from the Tikhonov image, the paper from Aᵀ1.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Blur((1, 32, 32), sigma=1.5), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.PnPFlow(steps=10), prior)
        >>> found.stats["network"]
        9
        >>> bool((found.mean - truth).std() < 0.25 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = {
        "steps": Range((20, 50, 100), choices=True),
        "strength": Range((0.03, 1.0), log=True),
        "decay": Range((0.01, 0.3, 0.5, 1.0), choices=True),
    }
    cost: ClassVar[str] = "a step: `draws` network evaluations, 1 data prox or gradient"
    paper: ClassVar[str] = """@inproceedings{martin2025pnpflow,
  title={PnP-Flow: Plug-and-Play Image Restoration with Flow Matching},
  author={Martin, S{\\'e}gol{\\`e}ne and Gagneux, Anne and Hagemann, Paul and Steidl, Gabriele},
  booktitle={International Conference on Learning Representations}, year={2025}
}"""

    steps: int = 50
    draws: Annotated[int, Whole(1, 1000)] = 1
    update: str = "prox"
    strength: float = 1.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        require(self.update in ("prox", "gradient"), self, "update 'prox' or 'gradient'")
        require(
            min(self.steps, self.draws) >= 1 and self.strength > 0 and self.decay >= 0,
            self,
            "steps and draws >= 1, strength > 0 and decay >= 0",
        )

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step; see the class for what one does."""
        step_length = 1 / normal_norm(inside) if self.update == "gradient" else 0.0
        x = tikhonov(inside, prior, PROX_ITERATIONS)
        for t in uniform_times(self.steps)[:-1]:
            weight = self.strength * (1 - t) ** self.decay
            if self.update == "prox":
                z = inside.prox(x, weight, PROX_ITERATIONS)
            else:
                z = x - weight * step_length * inside.gradient(x)
            noised = [t * z + (1 - t) * normal_like(z, generator) for _ in range(self.draws)]
            x = prior.denoise_each(torch.stack(noised), [t] * self.draws).mean(0)
            yield x

    @classmethod
    def paper_form(cls) -> PnPFlow:
        """100 gradient steps with five draws each, and α of deblurring: the paper tunes it by task."""
        return cls(steps=100, draws=5, update="gradient", decay=0.01)

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.draws * (self.steps - 1), 0
