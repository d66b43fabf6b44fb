"""What every method with a prior is, a sequence of images; and the family that corrects and renoises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ctflow.errors import ProtocolError, UsageError
from ctflow.linalg import inner
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import noise
from ctflow.samplers._times import uniform_times
from ctflow.search_space import Range
from ctflow.solving import Spread, StepCallback
from ctflow.system.randomness import normal, seeded

PROX_ITERATIONS = 30
"""Most conjugate-gradient steps of one data prox. On CT they end before it is solved, which regularises.

A toy chest of 128² by Flower, DiffPIR and PnP-Flow is 5 to 50 HU worse with 10 of them; with 90 it is 6 to 8
HU better at 60 views, and between 2 better and 3 worse at 120 or more.
"""

_FARTHEST = 30.0  # standard deviations, rms over an image: no image of the prior lies so far from its mean


class Sampler:
    """Methods with a prior: a member yields its image after every step, the last one is the result.

    A member whose samples are draws of the posterior, or that draws no random numbers, says so by `spread`.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    References:
        Every member names its own.
    """

    needs_prior: ClassVar[bool] = True
    spread: ClassVar[Spread] = Spread.STARTS
    cost: ClassVar[str]
    paper: ClassVar[str]
    steps: int

    def __call__(
        self, problem: InverseProblem, prior: Prior, generator: torch.Generator, callback: StepCallback
    ) -> Tensor:
        """One image per problem of the batch; see the class for what a step does.

        Raises:
            UsageError: the data ask for images far outside the prior's range.
        """
        inside = problem.rescaled(prior.scale, prior.shift)
        if not prior.latent:
            refuse_misfit(inside, prior)
        steps = self.rounds(inside)
        x = torch.empty(0)
        for step, image in enumerate(self.images(inside, prior, generator)):
            x = prior.scale * image + prior.shift
            callback(step + 1, steps, x)
        return x

    def rounds(self, inside: InverseProblem) -> int:
        """How many images there will be."""
        return self.steps

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range: what the method would answer after each step."""
        raise TypeError(f"{type(self).__name__} defines no images")

    @property
    def evaluations(self) -> tuple[int, int] | None:
        """Network evaluations and backward passes of a run; None where they are not known before."""
        return None


@dataclass(frozen=True)
class Renoise(Sampler):
    """For t, u along a grid: D = denoised x; D' = `correct` D by the data; x = `renoise` D' to time u.

    Shapes: x (*batch, Z, Y, X), network range.

    Args:
        steps: intervals of the grid; each costs one network evaluation (none at t = 0).

    References:
        Every member names its own. Daras et al. survey the family,
        arXiv:2410.00083.
    """

    # The error of a sample does not fall with every further step; what a trial costs is in the tuner's log.
    search: ClassVar[dict[str, Range]] = {"steps": Range((10, 20, 50), choices=True)}

    steps: int = 50

    def __post_init__(self) -> None:
        require(self.steps >= 1, self, "steps >= 1")

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step; see the class for what one does."""
        x = noise(inside, generator)
        for t, u in pairwise(self.times()):
            denoised = self.predict(prior, x, t)
            corrected = self.correct(inside, prior, denoised, t, generator)
            x = self.renoise(x, denoised, corrected, t, u, generator)
            yield x if u == 1 else corrected

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return sum(t > 0 for t in self.times()[:-1]), 0

    def times(self) -> list[float]:
        """Grid of times; the last is 1."""
        return uniform_times(self.steps)

    def predict(self, prior: Prior, x: Tensor, t: float) -> Tensor:
        """The clean image that x at time t leads to."""
        return prior.denoise(x, t)

    def correct(
        self, inside: InverseProblem, prior: Prior, denoised: Tensor, t: float, generator: torch.Generator
    ) -> Tensor:
        """The denoised image, brought towards the data."""
        raise TypeError(f"{type(self).__name__} defines no correct")

    def renoise(
        self, x: Tensor, denoised: Tensor, corrected: Tensor, t: float, u: float, generator: torch.Generator
    ) -> Tensor:
        """The state at time u."""
        raise TypeError(f"{type(self).__name__} defines no renoise")


def refuse_misfit(inside: InverseProblem, prior: Prior) -> None:
    """Refuse data (*batch, ...) whose images cannot be in network range: another unit, another scale.

    The first iterate of conjugate gradients from the prior's mean is never longer than the least-squares
    solution, so where it lies too far away, every image that fits the data does.

    Raises:
        UsageError: some image would be more than 30 standard deviations from the prior's mean.
    """
    shape = (*inside.batch_shape, *inside.A.domain_shape)
    mean = torch.zeros(shape, dtype=inside.y.dtype, device=inside.y.device) + prior.mean
    gradient = inside.gradient(mean)
    slope = inner(gradient, gradient, inside.dims).sqrt()
    direction = gradient / slope.clamp_min(1e-30)
    curvature = inner(direction, inside.normal(direction), inside.dims)
    length = torch.where(curvature > 0, slope / curvature.clamp_min(1e-30), 0.0)
    pixels = math.prod(inside.A.domain_shape)
    spread = math.sqrt(prior.residual_variance(0.0))
    far = float(length.max()) / (math.sqrt(pixels) * spread)
    if far > _FARTHEST:
        centre = prior.shift + prior.scale * float(torch.as_tensor(prior.mean).mean())
        raise UsageError(
            f"prior '{prior.name}' expects images near {centre:.3g}, give or take "
            f"{abs(prior.scale) * spread:.3g}, and the data ask for one {far:.3g} times as far; give the "
            "problem in the prior's unit (1/mm for CT), or give the prior its scale and shift"
        )


def normal_norm(inside: InverseProblem, iterations: int = 20) -> Tensor:
    """Largest eigenvalue of AᵀWA of every problem of a batch, by power iteration from a fixed start.

    Returns:
        (*batch, 1, ..., 1), so that it divides images in network range; dimensionless, above zero.
    """
    start = normal(inside.A.domain_shape, seeded(0)).to(inside.y)
    x = start.expand(*inside.batch_shape, *inside.A.domain_shape)
    length = torch.ones(())
    for _ in range(iterations):
        x = inside.normal(x / inner(x, x, inside.dims).sqrt().clamp_min(1e-30))
        length = inner(x, x, inside.dims).sqrt()
    return length.clamp_min(1e-30)


def require(holds: bool, method: object, what: str) -> None:
    """Refuse a method's numbers.

    Raises:
        ProtocolError: `holds` is false; the message shows the method and says what it needs.
    """
    if not holds:
        raise ProtocolError(f"{method} needs {what}")
