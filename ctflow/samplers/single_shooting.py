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
from ctflow.system.counters import count
from ctflow.tables import Whole

__all__ = ["SingleShooting"]


@dataclass(frozen=True)
class SingleShooting(Sampler):
    """min over z of ½ |A T(z) - y|²_W + λ R(z), T = Euler steps of the flow, by L-BFGS with backpropagation.

    What MS-Flow avoids: the graph of every network call of T is held at once, so that memory grows with
    the number of steps.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        segments: Euler steps of T; each costs one network evaluation (none at t = 0) in every evaluation.
        iterations: L-BFGS iterations; each costs one or more evaluations of T and of its gradient.
        regularisation: λ.
        regulariser: "gaussian", R = ½ |z|²; "radial", R = ½ |z|² - (d - 1) ln |z|, which asks for noise of
            the typical length √(d - 1).
        start_noise: standard deviation of the start noise; 0 starts from the mean, the safest start.

    Raises:
        ProtocolError: a number lies outside its range or the regulariser is unknown.

    References:
        Ben-Hamu et al., ICML 2024, arXiv:2402.14017 (the objective and the radial regulariser).
    """

    cost: ClassVar[str] = "an iteration: segments - 1 network evaluations, all backpropagated through at once"
    paper: ClassVar[str] = """@inproceedings{benhamu2024dflow,
  title={D-Flow: Differentiating through Flows for Controlled Generation},
  author={Ben-Hamu, Heli and Puny, Omri and Gat, Itai and Karrer, Brian and Singer, Uriel and Lipman, Yaron},
  booktitle={International Conference on Machine Learning}, year={2024}
}"""

    segments: Annotated[int, Whole(1, 1000)] = 6
    iterations: int = 20
    regularisation: float = 1.0
    regulariser: str = "gaussian"
    start_noise: float = 0.1

    def __post_init__(self) -> None:
        require(self.regulariser in ("gaussian", "radial"), self, "regulariser 'gaussian' or 'radial'")
        require(
            min(self.segments, self.iterations) >= 1 and min(self.regularisation, self.start_noise) >= 0,
            self,
            "segments and iterations >= 1, regularisation and start_noise >= 0",
        )

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step; see the class for what one does."""
        z = self.start_noise * noise(inside, generator)
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
                loss = inside.data_fit(self._flow(prior, z)) + self.regularisation * self._penalty(z)
                loss.backward()  # type: ignore[no-untyped-call]
            count("backward", self.segments - 1)
            return loss.detach()

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return self._flow(prior, z.detach())

    def _flow(self, prior: Prior, x: Tensor) -> Tensor:
        for t, u in pairwise(uniform_times(self.segments)):
            x = x + (u - t) * prior.velocity(x, t)
        return x

    def _penalty(self, z: Tensor) -> Tensor:
        square = (z**2).sum()
        if self.regulariser == "gaussian":
            return square / 2
        return square / 2 - (z.numel() - 1) / 2 * square.clamp_min(math.ulp(1.0)).log()
