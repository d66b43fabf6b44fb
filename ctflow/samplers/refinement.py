"""Refinement: plug and play with the flow's denoiser at falling noise, alone or after another method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ctflow.errors import ProtocolError
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._sampler import Sampler, require
from ctflow.samplers._start import tikhonov
from ctflow.search_space import Range
from ctflow.solving import Spread

__all__ = ["Refinement", "Refined"]  # noqa: RUF022 (a protocol names the first)


@dataclass(frozen=True)
class Refinement(Sampler):
    """x = prox of the data at D(x + momentum · (x - x before)), with variance ratio · σ², for falling σ.

    By itself it starts from the Tikhonov image. `Refinement().after(MSFlow())` starts from what another
    method ends with, as `refine = { steps = 16 }` does in that method's table: a flow's few coarse steps
    leave the fine noise levels to it. What comes out of it is no sample of a posterior.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        steps: noise levels, falling by one factor (one alone is the first); one network evaluation each.
        noise: the last of them, network range: 0.03 is 15 HU. The fewer the data, the larger.
        first_noise: the first of them, network range.
        ratio: variance of the data prox over that of the noise; larger trusts the data more.
        momentum: share of the last change that is added before denoising.
        prox_iterations: conjugate-gradient steps of one data prox.
        coarse_mm: what comes before is found in the largest pixels of at most so many mm that hold a whole
            number of the image's, and resampled; 0: in the image's own, as with a prior of one pixel size
            alone. Of projections alone. At 512² 2 mm take a quarter of the network's time.

    Raises:
        ProtocolError: a number lies outside its range, or the noise ends above where it starts.

    References:
        Zhang et al., TPAMI 2022, arXiv:2008.13751 (DPIR: half-quadratic splitting at noise that falls);
        Martin et al., ICLR 2025, arXiv:2410.02423 (PnP-Flow: the denoiser of a flow at its own time);
        Kamilov, Mansour, Wohlberg, IEEE Signal Process. Lett. 24 (2017) (momentum with a denoiser). Differs
        from the second: no noise is drawn. The defaults were chosen on two training slices.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Mask((1, 32, 32), missing=0.5), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.Refinement(steps=16).after(ct.MSFlow()), prior)
        >>> found.stats["network"]
        32
        >>> bool((found.mean - truth).std() < 0.25 * truth.std())
        True
    """

    spread: ClassVar[Spread] = Spread.NONE
    search: ClassVar[dict[str, Range]] = {
        "noise": Range((0.015, 0.1), log=True),
        "first_noise": Range((0.1, 1.0), log=True),
        "ratio": Range((1.5, 20.0), log=True),
    }
    cost: ClassVar[str] = "a step: 1 network evaluation, 1 data prox"
    paper: ClassVar[str] = """@article{zhang2022dpir,
  title={Plug-and-Play Image Restoration with Deep Denoiser Prior},
  author={Zhang, Kai and Li, Yawei and Zuo, Wangmeng and Zhang, Lei and Van Gool, Luc and Timofte, Radu},
  journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},
  volume={44}, number={10}, pages={6360--6376}, year={2022}
}"""

    steps: int = 16
    noise: float = 0.03
    first_noise: float = 0.2
    ratio: float = 5.0
    momentum: float = 0.9
    prox_iterations: int = 30
    coarse_mm: float = 0.0

    def __post_init__(self) -> None:
        require(
            min(self.steps, self.prox_iterations) >= 1 and self.ratio > 0 and 0 <= self.momentum < 1,
            self,
            "steps and prox_iterations >= 1, ratio > 0 and momentum in [0, 1)",
        )
        require(0 <= self.coarse_mm <= 100, self, "0 <= coarse_mm <= 100; 0 is the image's own pixels")
        require(
            0 < self.noise <= self.first_noise, self, "0 < noise <= first_noise: it falls from first to last"
        )

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.steps, 0

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step from the Tikhonov image."""
        image = tikhonov(*self.before(inside, prior), 2 * self.prox_iterations)
        return self.refine(inside, prior, resampled(image, inside))

    def before(self, inside: InverseProblem, prior: Prior) -> tuple[InverseProblem, Prior]:
        """The problem and the prior of what comes before, in its pixels."""
        if self.coarse_mm == 0:
            return inside, prior
        coarse = inside.coarsened(self.coarse_mm)
        factor = inside.A.domain_shape[-1] // coarse.A.domain_shape[-1]
        known = prior.coarsened(factor) if factor > 1 else None
        return (inside, prior) if known is None else (coarse, known)

    def refine(self, inside: InverseProblem, prior: Prior, image: Tensor) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, after every step from `image`, shaped alike."""
        before = image
        for sigma in np.geomspace(self.first_noise, self.noise, self.steps).tolist():
            t = 1 / (1 + sigma)
            denoised = prior.denoise(t * (image + self.momentum * (image - before)), t)
            before = image
            image = inside.prox(denoised, self.ratio * sigma**2, self.prox_iterations, start=image)
            yield image

    def after(self, method: Sampler) -> Refined:
        """The method that runs `method` and then refines its image.

        Raises:
            ProtocolError: `method` has no prior.
        """
        return Refined(method, self)


@dataclass(frozen=True)
class Refined(Sampler):
    """A method, and the refinement of its image: both are steps, both are counted, both are cited.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        method: what makes the image.
        refinement: what goes on with it.

    Raises:
        ProtocolError: the method has no prior.

    References:
        Those of the method and of `Refinement`.
    """

    method: Sampler
    refinement: Refinement

    def __post_init__(self) -> None:
        if not isinstance(self.method, Sampler):
            raise ProtocolError(
                f"a refinement goes on from a sampler's image, and {type(self.method).__name__} is no "
                "sampler: it has no prior; take method 'refinement' itself, which starts from the data"
            )

    @property
    def spread(self) -> Spread:  # type: ignore[override]
        """Never the posterior's: a refined draw is none, and its refinement draws nothing."""
        return Spread.NONE if self.method.spread == Spread.NONE else Spread.STARTS

    @property
    def cost(self) -> str:  # type: ignore[override]
        """What a step costs, in words."""
        return f"{self.method.cost}; then {self.refinement.steps} steps of refinement, {self.refinement.cost}"

    @property
    def paper(self) -> str:  # type: ignore[override]
        """BibTeX of both."""
        return f"{self.method.paper}\n\n{self.refinement.paper}"

    @property
    def evaluations(self) -> tuple[int, int] | None:
        """Network evaluations and backward passes of a run; None where they depend on the data."""
        spent = self.method.evaluations
        return spent and (spent[0] + self.refinement.steps, spent[1])

    def rounds(self, inside: InverseProblem) -> int:
        """As many as the method has, and the steps of the refinement."""
        return self.method.rounds(inside) + self.refinement.steps

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """Images (*batch, Z, Y, X), network range, of the method, then of the refinement."""
        image = torch.empty(0)
        for before in self.method.images(*self.refinement.before(inside, prior), generator):
            image = resampled(before, inside)
            yield image
        yield from self.refinement.refine(inside, prior, image)


def resampled(image: Tensor, inside: InverseProblem) -> Tensor:
    """An image in larger pixels, (*batch, Z, Y, X), in those of a problem."""
    if image.shape[-2:] == inside.A.domain_shape[-2:]:
        return image
    stacks = image.reshape(-1, *image.shape[-3:])
    fine = interpolate(stacks, inside.A.domain_shape[-2:], mode="bilinear")
    return fine.reshape(*image.shape[:-2], *fine.shape[-2:])
