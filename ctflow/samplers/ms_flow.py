"""MS-Flow: multiple shooting along the flow, without backpropagation through it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._noise import noise
from ctflow.samplers._sampler import Sampler, require
from ctflow.samplers._start import tikhonov
from ctflow.samplers._times import uniform_times
from ctflow.samplers._trajectory import Latent, flow, solve_chain, solve_coordinates
from ctflow.samplers.refinement import Refinement
from ctflow.search_space import Range
from ctflow.tables import Whole

__all__ = ["MSFlow"]

_START = Refinement(first_noise=1.0, noise=0.05, ratio=3.0, momentum=0.0)  # tuned on training slices
_UPDATES = {"chain": solve_chain, "coordinate": solve_coordinates}


@dataclass(frozen=True)
class MSFlow(Sampler):
    """Find the whole trajectory of the flow, as states x_0 … x_K at times 0 = t_0 < … < t_K = 1.

    min ½ |A x_K - y|²_W + λ R(x_0) + Σ_k γ/2 |x_{k+1} - Φ_k(x_k)|²
    with Φ_k(x) = x + (t_{k+1} - t_k) v(x, t_k), near the present states x̄ replaced by Φ_k(x̄_k) + x - x̄_k:
    no gradient of the network is taken. The velocities are one batch, and memory holds some 2 K + 2 images,
    whatever the number of iterations and of flow steps.

    At the fixed point the image is, for images N(m, S), the maximum a posteriori under the covariance S^½ / λ
    in place of S, up to Euler's error: leaving the Jacobian out is a bias that iterations do not remove.

    Shapes: y of the problem (*batch, ...) -> x (*batch, Z, Y, X), in the unit of the problem's x.

    Args:
        segments: K, flow steps between noise and image.
        iterations: each costs K · flow_steps - 1 network evaluations (at t = 0 the velocity is known).
        start_steps: steps of a `Refinement` from noise 1 down to 0.05, with ratio 3 and no momentum, that
            make the first image; one network evaluation each. 0 starts from the Tikhonov image.
        start_noise: standard deviation of the start noise; what makes samples differ.
        regularisation: λ, weight of the start noise; larger trusts the prior more.
        damping: share of each step that the chain takes at first; it falls as (1 + iteration / 20)^-½.
        model_error: standard deviation of one trajectory that the network may be wrong by, in network
            range; γ = K / model_error².
        regulariser: "gaussian", R = ½ |x_0|²; "radial", R = ½ |x_0|² - (d - 1) ln |x_0| for each slice of d
            pixels, which asks for noise of the typical length √(d - 1).
        update: "chain" solves the linearised problem exactly: one sweep forward, one data prox, one back;
            "coordinate" minimises over one state after the other. It needs many more iterations, about
            K² + K γ / λ, so a larger model_error.
        flow_steps: Euler steps of one segment; memory does not depend on them.
        prox_iterations: conjugate-gradient steps of one data prox.

    Raises:
        ProtocolError: a number is not positive or a name is unknown.

    References:
        Denker, Eliasof, Kereta, Schönlieb, arXiv:2602.08538. Differs from it: the exact solution of the
        linearised chain (a Kalman smoother) replaces the alternation over states; both have the same fixed
        points. `MSFlow.paper_form()` is the paper's. Those of `Refinement` for the start.
    """

    search: ClassVar[dict[str, Range]] = {
        "regularisation": Range((0.5, 8.0), log=True),
        "model_error": Range((0.02, 0.3), log=True),
    }
    cost: ClassVar[str] = (
        "an iteration: segments · flow_steps - 1 network evaluations, 1 data prox; before them start_steps "
        "steps of refinement, 1 network evaluation and 1 data prox each"
    )
    paper: ClassVar[str] = """@article{denker2026msflow,
  title={Trajectory Stitching for Solving Inverse Problems with Flow-Based Models},
  author={Denker, Alexander and Eliasof, Moshe and Kereta, {\\v{Z}}eljko and Sch{\\"o}nlieb, Carola-Bibiane},
  journal={arXiv preprint arXiv:2602.08538}, year={2026}
}"""

    segments: Annotated[int, Whole(1, 1000)] = 4
    iterations: Annotated[int, Whole(1, 10_000)] = 4
    start_steps: int = 0
    start_noise: float = 0.3
    regularisation: float = 2.0
    damping: float = 0.5
    model_error: float = 0.05
    regulariser: str = "gaussian"
    update: str = "chain"
    flow_steps: Annotated[int, Whole(1, 1000)] = 1
    prox_iterations: int = 30

    def __post_init__(self) -> None:
        require(self.update in _UPDATES, self, "update 'chain' or 'coordinate'")
        require(self.regulariser in ("gaussian", "radial"), self, "regulariser 'gaussian' or 'radial'")
        require(
            min(self.segments, self.flow_steps, self.iterations, self.prox_iterations) >= 1
            and min(self.regularisation, self.model_error) > 0
            and 0 < self.damping <= 1
            and min(self.start_steps, self.start_noise) >= 0,
            self,
            "positive numbers, damping in (0, 1], start_steps and start_noise >= 0",
        )
        radial = self.regulariser == "radial"
        require(not radial or self.start_noise > 0, self, "start_noise > 0 for the radial regulariser")

    @classmethod
    def paper_form(cls) -> MSFlow:
        """The paper's alternation over states, with radial start noise of the typical length.

        Our reading, since only the abstract and the introduction are public: they name the three parts of the
        objective, the coordinate descent and the Jacobian-free gradients. Numbers are not among them, nor the
        first trajectory: ours is the straight line to the Tikhonov image, and γ is one at which 100
        alternations over 4 segments come to rest.
        """
        return cls(
            iterations=100,
            start_noise=1.0,
            regularisation=1.0,
            model_error=1.0,
            regulariser="radial",
            update="coordinate",
        )

    @property
    def evaluations(self) -> tuple[int, int]:
        """Network evaluations and backward passes of a run."""
        return self.start_steps + self.iterations * (self.segments * self.flow_steps - 1), 0

    def rounds(self, inside: InverseProblem) -> int:
        """As many as iterations."""
        return self.iterations

    def images(self, inside: InverseProblem, prior: Prior, generator: torch.Generator) -> Iterator[Tensor]:
        """x_K, (*batch, Z, Y, X), network range, after every iteration."""
        grid = uniform_times(self.segments)
        first = self.start_noise * noise(inside, generator)
        image = self._start(inside, prior)
        states = [(1 - t) * first + t * image for t in grid]
        latent = Latent(self.regularisation, self.regulariser == "radial")
        stiffness = self.segments / self.model_error**2
        update = _UPDATES[self.update]
        for iteration in range(self.iterations):
            ahead = flow(prior, states, grid, self.flow_steps)
            target = update(inside, states, ahead, latent, stiffness, self.prox_iterations)
            share = self.damping * (1 + iteration / 20) ** -0.5 if self.update == "chain" else 1.0
            states = [x + share * (wanted - x) for x, wanted in zip(states, target, strict=True)]
            yield states[-1]

    def _start(self, inside: InverseProblem, prior: Prior) -> Tensor:
        """The Tikhonov image, (*batch, Z, Y, X), network range, or what a refinement makes of it."""
        image = tikhonov(inside, prior, 2 * self.prox_iterations)
        if self.start_steps == 0:
            return image
        start = replace(_START, steps=self.start_steps, prox_iterations=self.prox_iterations)
        return [*start.refine(inside, prior, image)][-1]
