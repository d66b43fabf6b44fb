"""MS-Flow as its paper has it: one state of the trajectory after the other, on the uniform grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ctflow.linalg import inner
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import noise
from ctflow.samplers._sampler import PROX_ITERATIONS, Sampler, require
from ctflow.samplers._start import tikhonov
from ctflow.samplers._times import uniform_times
from ctflow.samplers.ms_flow import MSFlow
from ctflow.search_space import Range
from ctflow.tables import Whole

__all__ = ["MSFlowPaper"]


@dataclass(frozen=True)
class MSFlowPaper(Sampler):
    """Find the whole trajectory of the flow, as states x_0 … x_K at times 0 = t_0 < … < t_K = 1.

    min ½ |A x_K - y|²_W + λ R(x_0) + Σ_k γ/2 |x_{k+1} - Φ_k(x_k)|²
    with Φ_k(x) = x + (t_{k+1} - t_k) v(x, t_k), near the present states x̄ replaced by Φ_k(x̄_k) + x - x̄_k:
    no gradient of the network is taken. The objective is minimised over one state after the other, from x_K
    down to x_0. The velocities are one batch, and memory holds some 2 K + 2 images, whatever the number of
    iterations.

    Our reading, since only the abstract and the introduction are public: they name the three parts of the
    objective, the coordinate descent and the Jacobian-free gradients. Numbers are not among them, nor the
    first trajectory: ours is the straight line to the Tikhonov image, and γ = K, as if the network were wrong
    by one along a trajectory, at which 100 alternations over 4 segments come to rest. `MSFlow` is what we
    make of the idea.

    At the fixed point the image is, for images N(m, S), the maximum a posteriori under the covariance S^½ / λ
    in place of S, up to Euler's error: leaving the Jacobian out is a bias that iterations do not remove.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        segments: K, flow steps between noise and image.
        iterations: each costs K - 1 network evaluations (at t = 0 the velocity is known); it takes about
            K² + K γ / λ of them.
        regularisation: λ, weight of the start noise; larger trusts the prior more.
        regulariser: "gaussian", R = ½ |x_0|²; "radial", R = ½ |x_0|² - (d - 1) ln |x_0| for each slice of d
            pixels, which asks for noise of the typical length √(d - 1).

    Raises:
        ProtocolError: a number is not positive or a name is unknown.

    References:
        Denker, Eliasof, Kereta, Schönlieb, arXiv:2602.08538.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> truth = prior.scale * prior.sample((1, 32, 32)) + prior.shift  # 1/mm
        >>> problem = ct.simulate(ct.Blur((1, 32, 32), sigma=1.5), truth, ct.Gaussian(4e-4))  # 20 HU
        >>> found = ct.solve(problem, ct.MSFlowPaper(segments=4, iterations=10), prior)
        >>> found.stats["network"]
        30
        >>> bool((found.mean - truth).std() < 0.2 * truth.std())
        True
    """

    search: ClassVar[dict[str, Range]] = {
        "regularisation": Range((0.1, 10.0), log=True),
        "regulariser": Range(("gaussian", "radial"), choices=True),
    }
    cost: ClassVar[str] = "an iteration: segments - 1 network evaluations, 1 data prox"
    paper: ClassVar[str] = MSFlow.paper

    segments: Annotated[int, Whole(1, 1000)] = 4
    iterations: Annotated[int, Whole(1, 10_000)] = 100
    regularisation: float = 1.0
    regulariser: str = "radial"

    def __post_init__(self) -> None:
        require(self.regulariser in ("gaussian", "radial"), self, "regulariser 'gaussian' or 'radial'")
        require(
            min(self.segments, self.iterations) >= 1 and self.regularisation > 0,
            self,
            "segments and iterations >= 1 and regularisation > 0",
        )

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.iterations * (self.segments - 1), 0

    def rounds(self, inside: InverseProblem) -> int:
        """As many as iterations."""
        return self.iterations

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """x_K, (*batch, Z, Y, X), network range, after every iteration."""
        grid = uniform_times(self.segments)
        first = noise(inside, generator)
        image = tikhonov(inside, prior, 2 * PROX_ITERATIONS)
        states = [(1 - t) * first + t * image for t in grid]
        latent = Latent(self.regularisation, self.regulariser == "radial")
        stiffness = float(self.segments)
        for _ in range(self.iterations):
            ahead = flow(prior, states, grid)
            # Going down, a state's left neighbour is still the old one, so that all Φ_k are known beforehand.
            new = [inside.prox(ahead[-1], 1 / stiffness, PROX_ITERATIONS, start=states[-1])]
            for k in reversed(range(self.segments)):
                wanted = states[k] + (new[-1] - ahead[k])  # where Φ_k reaches x_{k+1}
                new.append((ahead[k - 1] + wanted) / 2 if k else latent.minimise(wanted, stiffness))
            states = new[::-1]
            yield states[-1]


@dataclass(frozen=True)
class Latent:
    """Regulariser of the start noise: λ/2 |x_0|², or radial, λ (½ |x_0|² - (d - 1) ln |x_0|).

    The radial one holds for each slice of d pixels by itself, as the prior does.

    Shapes: images (*batch, Z, Y, X), network range.

    Args:
        precision: λ.
        radial: which of the two.
    """

    precision: float
    radial: bool

    def minimise(self, q: Tensor, weight: float) -> Tensor:
        """argmin over x_0 of the regulariser + weight/2 |x_0 - q|²; in closed form."""
        total = self.precision + weight
        if not self.radial:
            return weight / total * q
        length = inner(q, q, 2).sqrt().clamp_min(1e-15)
        pull = weight * length
        root = (pull**2 + 4 * self.precision * total * (q.shape[-2:].numel() - 1)).sqrt()
        return q / length * (pull + root) / (2 * total)


def flow(prior: Prior, states: list[Tensor], grid: list[float]) -> list[Tensor]:
    """Φ_k(x_k) of x_0 … x_{K-1}: an Euler step from t_k to t_{k+1} each.

    All but the first state are one batch: at t = 0 it costs nothing, and later no batch is larger than that.

    Shapes: images (*batch, Z, Y, X), network range.

    Args:
        prior: flow prior.
        states: x_0 … x_K; the last is not looked at.
        grid: times t_0 … t_K.
    """
    first, *others = states[:-1]
    rest = prior.denoise_each(torch.stack(others), grid[1:-1]) if others else ()
    denoised = [prior.denoise(first, grid[0]), *rest]
    steps = zip(states, denoised, pairwise(grid), strict=False)
    return [x + (u - t) * ((D - x) / (1 - t)) for x, D, (t, u) in steps]
