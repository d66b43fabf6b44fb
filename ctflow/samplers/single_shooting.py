"""Single shooting (D-Flow): optimise the start noise through the whole flow, with backpropagation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import noise
from ctflow.samplers._sampler import Sampler, require
from ctflow.samplers._times import uniform_times
from ctflow.search_space import Range
from ctflow.system.counters import count
from ctflow.tables import Whole

__all__ = ["SingleShooting"]

_START_NOISE = 0.1  # standard deviation: near the mean, from where a line search is safest


@dataclass(frozen=True)
class SingleShooting(Sampler):
    """min over z of ½ |A T(z) - y|²_W + λ/2 |z|², T = Euler steps of the flow, by L-BFGS with gradients.

    What MS-Flow avoids: the graph of every network call of T is held at once, so that memory grows with
    the number of steps. z starts at a tenth of the noise: near its mean, and different in every sample.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        segments: Euler steps of T; each costs one network evaluation (none at t = 0) in every evaluation.
        iterations: L-BFGS iterations; each costs one or more evaluations of T and of its gradient.
        regularisation: λ.

    Raises:
        ProtocolError: a number lies outside its range.

    References:
        Ben-Hamu et al., ICML 2024, arXiv:2402.14017. Differs from it: the regulariser is the density of
        the noise, where the paper's asks for noise of the typical length.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Downsample((1, 32, 32), 2), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.SingleShooting(segments=4, iterations=20), prior)
        >>> bool((found.mean - truth).std() < 0.25 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = {
        "iterations": Range((5, 10, 20, 40), choices=True),
        "regularisation": Range((0.1, 10.0), log=True),
    }
    cost: ClassVar[str] = "an iteration: segments - 1 network evaluations, all backpropagated through at once"
    paper: ClassVar[str] = """@inproceedings{benhamu2024dflow,
  title={D-Flow: Differentiating through Flows for Controlled Generation},
  author={Ben-Hamu, Heli and Puny, Omri and Gat, Itai and Karrer, Brian and Singer, Uriel and Lipman, Yaron},
  booktitle={International Conference on Machine Learning}, year={2024}
}"""

    segments: Annotated[int, Whole(1, 1000)] = 6
    iterations: int = 20
    regularisation: float = 1.0

    def __post_init__(self) -> None:
        require(
            min(self.segments, self.iterations) >= 1 and self.regularisation >= 0,
            self,
            "segments and iterations >= 1 and regularisation >= 0",
        )

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step; see the class for what one does."""
        z = _START_NOISE * noise(inside, generator)
        x = z.reshape(-1, *inside.A.domain_shape)
        y = inside.y.reshape(-1, *inside.A.range_shape)
        W = inside.W.expand(inside.y.shape).reshape(y.shape)
        for k in range(len(x)):
            x[k] = self._shoot(replace(inside, y=y[k], W=W[k]), prior, x[k])
            yield x.reshape(z.shape)

    def rounds(self, inside: InverseProblem) -> int:
        """As many as problems: a line search must not couple those of a batch."""
        return math.prod(inside.batch_shape)

    @property
    def evaluations(self) -> None:
        """Known afterwards only: a line search takes as many as it needs."""
        return None

    def _shoot(self, inside: InverseProblem, prior: Prior, start: Tensor) -> Tensor:
        z = start.clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [z], max_iter=self.iterations, history_size=50, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            with torch.enable_grad():
                loss = inside.data_fit(self._flow(prior, z)) + self.regularisation * (z**2).sum() / 2
                loss.backward()  # type: ignore[no-untyped-call]
            count("backward", self.segments - 1)
            return loss.detach()

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return self._flow(prior, z.detach())

    def _flow(self, prior: Prior, x: Tensor) -> Tensor:
        for t, u in pairwise(uniform_times(self.segments)):
            x = x + (u - t) * prior.velocity(x, t)
        return x
