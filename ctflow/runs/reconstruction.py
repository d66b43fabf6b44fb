"""One method on one measurement: images, figures, cost. Runs, studies, benches and tuning stand on it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ctflow import metrics
from ctflow.errors import BackendError
from ctflow.priors import Prior
from ctflow.priors._base import PIXELS_AT_ONCE
from ctflow.problem import InverseProblem
from ctflow.runs.measurement import Measurement, slice_seed
from ctflow.samplers._sampler import Sampler
from ctflow.solving import Method, samples_of, solve
from ctflow.system.progress import FractionProgress
from ctflow.volume import Volume

logger = logging.getLogger(__name__)

_FEW_PIXELS = 8 * 256 * 256  # are solved together in any case
_LANES = 8  # so many slices share the work of a projection; further ones gain little
_PIXELS_AT_ONCE = 2 * PIXELS_AT_ONCE  # bounds the memory: 8 slices of 512²


@dataclass(frozen=True)
class Reconstruction:
    """What a method made of a measurement.

    Args:
        volume: mean over the samples, HU, not below air.
        x: what the method gave, (solves, *A.domain_shape), 1/mm, on its device.
        spread: standard deviation over the samples, HU; None for a single one.
        figures: those of `metrics.evaluate` against the measurement's truth, and the cost: counts and seconds
            in all, mean residual per datum.
        peak_memory_bytes: memory held at most beyond what was held before; NaN where the system does not
            tell.
    """

    volume: Volume
    x: Tensor
    spread: Volume | None
    figures: metrics.Row
    peak_memory_bytes: float


@dataclass(frozen=True)
class Images:
    """What a method made of some solves, not yet looked at.

    Args:
        mean: over the samples, (solves, *A.domain_shape), 1/mm, on its device.
        deviation: the samples' standard deviation, shaped and in the unit of `mean`, on the CPU; None for a
            single one.
        cost: counts and seconds in all, mean residual per datum.
        peak_memory_bytes: memory held at most beyond what was held before; NaN where the system does not
            tell.
    """

    mean: Tensor
    deviation: Tensor | None
    cost: dict[str, float]
    peak_memory_bytes: float

    @classmethod
    def joined(cls, parts: Sequence[Images]) -> Images:
        """Those of parts, one after the other."""
        solves = sum(len(part.mean) for part in parts)
        cost: dict[str, float] = {}
        for part in parts:
            for key, value in part.cost.items():
                cost[key] = cost.get(key, 0) + value * (len(part.mean) / solves if key == "residual" else 1)
        deviations = [part.deviation for part in parts if part.deviation is not None]
        return cls(
            torch.cat([part.mean for part in parts]),
            torch.cat(deviations) if deviations else None,
            cost,
            max(part.peak_memory_bytes for part in parts),
        )


def reconstruct(
    measurement: Measurement,
    problem: InverseProblem,
    method: Method,
    prior: Prior | None = None,
    *,
    samples: int = 1,
    seed: int = 0,
    progress: FractionProgress = lambda fraction: None,
    watch: Callable[[int, Tensor], None] = lambda step, image: None,
) -> Reconstruction:
    """Solve all slices with one method, as many at a time as memory allows, and evaluate the images.

    Where rays cross slices the volume is solved for as a whole, with the slices beyond the chosen ones.

    Args:
        measurement: what was measured.
        problem: its data, as of `Measurement.problem`.
        method: what reconstructs.
        prior: flow prior, for a method that needs one.
        samples: images that a random method draws; their mean is evaluated.
        seed: of the method.
        progress: called as progress(fraction).
        watch: called as watch(step, image) with images in 1/mm, see `solve`.

    Returns:
        Images and figures, HU.
    """
    seeds = [slice_seed(seed, measurement.first + k) for k in range(measurement.solves)]
    found = solve_all(problem, method, prior, samples=samples, seeds=seeds, progress=progress, watch=watch)
    return evaluated(measurement, found)


def solves_at_once(problem: InverseProblem, method: Method, samples: int) -> int:
    """How many images of a problem are solved for together, so that memory holds them."""
    pixels = math.prod(problem.A.domain_shape) * samples_of(method, samples)
    spent = method.evaluations if isinstance(method, Sampler) else (0, 0)
    # A pull-back denoises twice what one call of the network does not hold.
    most = _PIXELS_AT_ONCE if spent is not None and spent[1] == 0 else PIXELS_AT_ONCE
    return max(1, _FEW_PIXELS // pixels, min(_LANES, most // pixels))


def solve_all(
    problem: InverseProblem,
    method: Method,
    prior: Prior | None,
    *,
    samples: int,
    seeds: list[int],
    progress: FractionProgress = lambda fraction: None,
    watch: Callable[[int, Tensor], None] = lambda step, image: None,
) -> Images:
    """Solve a batch of problems with one method, as many at a time as memory allows.

    Args:
        problem: y (solves, *A.range_shape), and its images in 1/mm.
        method: what reconstructs.
        prior: flow prior, for a method that needs one.
        samples: images that a random method draws.
        seeds: of every solve, so that its numbers do not depend on how many are solved together.
        progress: called as progress(fraction).
        watch: called as watch(step, image), see `solve`.

    Returns:
        The images, 1/mm.
    """
    solves, at_once = len(seeds), solves_at_once(problem, method, samples)
    parts: list[Images] = []
    start = 0
    while start < solves:
        part = problem.part(slice(start, start + at_once))
        size = part.y.shape[0]

        def callback(step: int, steps: int, start: int = start, size: int = size) -> None:
            progress((start + size * step / max(1, steps)) / solves)

        try:
            solution = solve(
                part,
                method,
                prior if method.needs_prior else None,
                samples=samples,
                seed=seeds[start : start + size],
                callback=callback,
                watch=watch,
            )
        except torch.OutOfMemoryError as error:
            at_once = _fewer(size, problem.y.device, error)
            continue
        deviation = solution.std.cpu() if len(solution.x) > 1 else None
        parts.append(Images(solution.mean, deviation, solution.stats, solution.peak_memory_bytes))
        start += size
        progress(start / solves)
    return Images.joined(parts)


def evaluated(measurement: Measurement, found: Images) -> Reconstruction:
    """The images of all solves as a volume in HU, compared with the measurement's truth.

    Args:
        measurement: what was measured.
        found: images of all its solves, 1/mm.
    """
    mu = measurement.mu
    chosen = partial(measurement.unknown.chosen, slices=measurement.grid.shape[0])
    volume = mu.with_data(chosen(found.mean.cpu())).to_hu()
    spread = None
    if found.deviation is not None:  # it has the unit's scale and not its zero
        spread = measurement.truth.with_data(1000 / mu.mu_water * chosen(found.deviation))
    figures = metrics.evaluate(volume.data, measurement.truth.data, *measurement.masks)
    return Reconstruction(
        volume, found.mean, spread, metrics.as_row(figures, found.cost), found.peak_memory_bytes
    )


def _fewer(size: int, device: torch.device, error: torch.OutOfMemoryError) -> int:
    """How many slices to solve together where a GPU's memory does not hold `size` of them.

    Raises:
        BackendError: it does not hold one.
    """
    if size == 1:
        raise BackendError(
            f"one slice takes more memory than {device} has; end what else runs there, take fewer --samples, "
            "another method, or --device cpu"
        ) from error
    logger.warning("%s does not hold %d slices at once; going on with %d", device, size, size // 2)
    return size // 2
