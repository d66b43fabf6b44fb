"""What is seen of a method while it runs: residuals of its images, time, and whether it diverges."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ctflow.errors import UsageError
from ctflow.problem import InverseProblem
from ctflow.system.counters import Counts, counting
from ctflow.system.progress import StepProgress

TIMED = ("network", "operator")
"""What is timed beside the whole."""

_TRACED = 20  # largest number of residuals in a trace: each costs a projection
_GROWTH = (
    100.0  # a residual that ends this many times above its smallest value, and above the noise, diverged
)


class Watch:
    """Follows a method step by step, without counting its own cost.

    Args:
        problem: what is solved; its residuals are traced.
        method: what solves it.
        callbacks: each called as callback(step, steps).
        watch: called as watch(step, image) with images (*batch, *domain_shape), in the unit of x.

    Raises:
        UsageError: an image holds values that are not numbers.
    """

    def __init__(
        self,
        problem: InverseProblem,
        method: object,
        callbacks: list[StepProgress],
        watch: Callable[[int, Tensor], None],
    ) -> None:
        self.problem, self.method, self.callbacks, self.watch = problem, method, callbacks, watch
        self.trace: list[tuple[int, float]] = []
        self.seconds = 0.0
        self.spent = Counts()

    def __call__(self, step: int, steps: int, image: Tensor | None = None) -> None:
        """Take note of a step, see `ctflow.solving.StepCallback`."""
        started = time.perf_counter()
        if image is not None:
            if not bool(torch.isfinite(image).all()):
                raise UsageError(
                    f"{type(self.method).__name__} diverged at step {step} of {steps}: its image holds "
                    "values that are not numbers; lower its step or weight"
                )
            with counting() as counts:
                if step == steps or step % math.ceil(steps / _TRACED) == 0:
                    self.trace.append((step, float(self.problem.residual(image).mean())))
                self.watch(step, image)
            self.spent.update(counts)
            for what in TIMED:
                self.spent.seconds[what] += counts.seconds[what]
        for callback in self.callbacks:
            callback(step, steps)
        self.seconds += time.perf_counter() - started

    @property
    def status(self) -> str:
        """ "finished", or the step at which the residual grew for good."""
        least = math.inf
        for step, residual in self.trace:
            if residual > _GROWTH * max(least, 1.0) and self.trace[-1][1] > _GROWTH * max(least, 1.0):
                return f"diverged at step {step}"
            least = min(least, residual)
        return "finished"
