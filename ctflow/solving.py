"""`solve(problem, method, prior)`: one call for every reconstruction method."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ctflow.errors import ProtocolError, UsageError, suggestion
from ctflow.linalg import full_precision
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.registry import build, find_class, names
from ctflow.system.counters import counting
from ctflow.system.devices import lost_device
from ctflow.system.memory import peak_memory
from ctflow.system.notebook import spaced, thumbnails
from ctflow.system.progress import StepProgress, shown_steps
from ctflow.system.randomness import seeded, seeded_each
from ctflow.watch import TIMED, Watch

logger = logging.getLogger(__name__)

_COUNTED = ("forward", "adjoint", "network", "backward")


class StepCallback(Protocol):
    """Callback of a method after every step; an image, in the unit of the problem's x, can be traced."""

    def __call__(self, step: int, steps: int, image: Tensor | None = None) -> None:
        """Report that step `step` of `steps` is done, with the current image (*batch, *domain_shape)."""


class Spread(StrEnum):
    """What the standard deviation over a method's samples is that of."""

    POSTERIOR = "posterior"
    """Of the posterior: the samples are draws of it."""
    STARTS = "starts"
    """Of starts and fresh noise: the samples differ, and by how much says nothing of the posterior."""
    NONE = "none"
    """Of nothing: no random number is drawn, and every sample would be the same."""

    @property
    def words(self) -> str:
        """The same as reports and DICOM series say it."""
        return _SPREAD_WORDS[self]


_SPREAD_WORDS = {
    Spread.POSTERIOR: "posterior standard deviation",
    Spread.STARTS: "standard deviation over starts, not of the posterior",
    Spread.NONE: "one image, without a standard deviation",
}


@runtime_checkable
class Method(Protocol):
    """A reconstruction method: a frozen dataclass of numbers with one call.

    One that draws random numbers says by an attribute `spread` what its samples are, see `spread_of`.

    Args:
        needs_prior: whether the method needs a flow prior; the others ignore theirs.
        cost: cost of a step, in words.
        paper: BibTeX entry of the method's publication.

    Examples:
        >>> import ctflow as ct
        >>> isinstance(ct.TV(), ct.Method), ct.TV().needs_prior, ct.MSFlow().needs_prior
        (True, False, True)
    """

    needs_prior: ClassVar[bool]
    cost: ClassVar[str]
    paper: ClassVar[str]

    def __call__(
        self, problem: InverseProblem, prior: Prior, generator: torch.Generator, callback: StepCallback
    ) -> Tensor:
        """Reconstruct the image of the problem, (*batch, *domain_shape), in the unit of its x."""
        ...


def build_method(table: Mapping[str, object]) -> Method:
    """The method that a table of a file names; see `ctflow.registry.build`.

    Raises:
        ProtocolError: the table names no method, or gives it what it does not accept.
    """
    method = build("method", table)
    if not isinstance(method, Method):
        raise ProtocolError(f"method '{table['name']}' cannot be called with a problem; give it __call__")
    return method


def spread_of(method: Method) -> Spread:
    """What the spread of a method's samples is that of: its attribute `spread`, NONE where it has none.

    Raises:
        ProtocolError: the attribute is no kind of spread.
    """
    stated = getattr(method, "spread", Spread.NONE)
    if stated not in list(Spread):
        kinds = ", ".join(Spread)
        raise ProtocolError(f"{type(method).__name__} has spread {stated!r}; give one of {kinds}")
    return Spread(stated)


def samples_of(method: Method, samples: int) -> int:
    """How many images `solve` makes where `samples` are asked for: one by a method that draws nothing."""
    return samples if spread_of(method) is not Spread.NONE else 1


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """Result of a method.

    Shapes: x (samples, *batch, *domain_shape), in 1/mm for CT.

    Args:
        x: images.
        method: the method that made them.
        stats: forward, adjoint, network and backward counts, seconds in all, in the network and in the
            operator, and the final residual per datum (about 1 where the data are fitted to their noise).
        seed: seed of the run, or those of its problems.
        trace: step and residual per datum of the image at that step, for at most 20 steps; mean over samples
            and batch; empty for methods that report no images.
        status: "finished", or "diverged at step k" where the residual ended far above its smallest value.
        peak_memory_bytes: peak memory beyond what was held before; NaN where the system does not tell.

    Examples:
        >>> import ctflow as ct
        >>> from ctflow.datasets.phantoms import disc
        >>> grid = ct.VolumeGeometry((1, 64, 64), (3.0, 3.0, 3.0))  # (Z, Y, X), mm
        >>> truth = disc(radius=60.0).rasterise(grid)  # of water, 0.0192 / mm
        >>> problem = ct.simulate(ct.Radon(grid, ct.ParallelBeam(angles=30)), truth, ct.Poisson(photons=1e5))
        >>> found = ct.solve(problem, ct.FBP())
        >>> found.x.shape, found.mean.shape, found.status
        (torch.Size([1, 1, 64, 64]), torch.Size([1, 64, 64]), 'finished')
        >>> found.citation().splitlines()[0]
        '@book{kak1988principles,'
    """

    x: Tensor
    method: Method
    stats: dict[str, float]
    seed: int | list[int]
    trace: list[tuple[int, float]] = field(default_factory=list)
    status: str = "finished"
    peak_memory_bytes: float = math.nan

    @property
    def mean(self) -> Tensor:
        """Mean over the samples, (*batch, *domain_shape)."""
        return self.x.mean(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the samples, (*batch, *domain_shape); `spread` says what it is that of.

        Raises:
            UsageError: there is one image only: no more were asked for, or the method draws nothing.
        """
        if len(self.x) > 1:
            return self.x.std(0)
        if spread_of(self.method) is Spread.NONE:
            raise UsageError(
                f"{type(self.method).__name__} draws no random numbers and gives one image, which has no "
                "spread; take MomentMatching, whose samples are draws of the posterior"
            )
        raise UsageError("one sample has no spread; call solve(..., samples=8)")

    @property
    def spread(self) -> Spread:
        """What `std` is: of the posterior, or over starts and fresh noise; NONE where there is one image."""
        return spread_of(self.method) if len(self.x) > 1 else Spread.NONE

    def __repr__(self) -> str:
        count, *shape = self.x.shape
        low, high = self.x.aminmax()
        return (
            f"<Solution by {self.method}: {count} of {tuple(shape)}, {low:.4g} to {high:.4g}, "
            f"residual {self.stats['residual']:.3g}, {self.stats['seconds']:.1f} s, {self.status}>"
        )

    def _repr_html_(self) -> str:
        images = self.mean.reshape(-1, *self.x.shape[-2:])
        chosen = spaced(len(images))
        low, high = (float(images[chosen].quantile(share)) for share in (0.01, 0.99))
        pictures = [(f"image {k} of {len(images)}", images[k]) for k in chosen]
        return thumbnails(repr(self), pictures, (low, high), "in the unit of x")

    def citation(self) -> str:
        """BibTeX entry of the method."""
        return str(self.method.paper)


def _silent(step: int, steps: int) -> None:
    """Default callback."""


def _unseen(step: int, image: Tensor) -> None:
    """Default watcher."""


def _refuse_no_method(method: object) -> None:
    if isinstance(method, str):
        known = names("method")
        found = f"give ctflow.{find_class('method', method).__name__}()" if method in known else None
        raise UsageError(
            f"a method is an object, such as ctflow.FBP(), and '{method}' is a name; "
            f"{found or suggestion(method, known)}"
        )
    if isinstance(method, type):
        raise UsageError(f"a method is an object and {method.__name__} is a class; give {method.__name__}()")
    if not (callable(method) and hasattr(method, "needs_prior")):
        raise UsageError(
            f"a {type(method).__name__} is no method, an object with needs_prior, cost, paper and a call; "
            "give one such as ctflow.FBP(), or write a class as CONTRIBUTING.md shows"
        )


@contextmanager
def _plainly(y: Tensor) -> Iterator[None]:
    """Disable gradients and autocast, and inference mode too, in which methods could not take gradients."""
    with torch.inference_mode(False), torch.no_grad(), full_precision(y):
        yield


def solve(
    problem: InverseProblem,
    method: Method,
    prior: Prior | None = None,
    *,
    samples: int = 1,
    seed: int | list[int] = 0,
    callback: StepProgress = _silent,
    watch: Callable[[int, Tensor], None] = _unseen,
    progress: bool = False,
) -> Solution:
    """Solve an inverse problem.

    A method that draws random numbers gives `samples` different images, draws of the posterior or not, see
    `spread_of`; one that draws none is run once. It computes in the type of the data, under autocast too, and
    its images carry no gradient.

    Args:
        problem: operator, data and noise.
        method: FBP(), TV(), MSFlow(), ...
        prior: flow prior, for methods that need one.
        samples: number of images, of a method that draws random numbers.
        seed: seed of the random numbers; the same seed gives the same image on the same machine. A list has
            one for every problem of a batch (n, *range_shape), whose numbers do not depend on the others.
        callback: called as callback(step, steps).
        watch: called by methods with a prior as watch(step, image) with their current images
            (samples, *batch, *domain_shape) after each step; its time does not count.
        progress: show on stderr how far the method is.

    Returns:
        The images and their cost.

    Raises:
        UsageError: the method is none, or needs a prior and none was given, the prior does not fit, there are
            not as many seeds as problems, or the method's image is no longer finite.
        BackendError: the device stopped answering.

    Examples:
        >>> import ctflow as ct
        >>> from ctflow.datasets.phantoms import disc
        >>> grid = ct.VolumeGeometry((1, 64, 64), (3.0, 3.0, 3.0))  # (Z, Y, X), mm
        >>> truth = disc(radius=60.0).rasterise(grid)  # of water, 0.0192 / mm
        >>> problem = ct.simulate(ct.Radon(grid, ct.ParallelBeam(angles=30)), truth, ct.Poisson(photons=1e5))
        >>> found = ct.solve(problem, ct.SIRT(iterations=50))
        >>> truth.with_data(found.mean).to_hu().data.shape, found.stats["forward"]
        (torch.Size([1, 64, 64]), 51)
    """
    _refuse_no_method(method)
    if prior is not None and not isinstance(prior, Prior):
        raise UsageError(f"the prior is {type(prior).__name__}; load it first: FlowPrior.load('ct-256')")
    if method.needs_prior and prior is None:
        raise UsageError(
            f"{type(method).__name__} needs a prior; give FlowPrior.load('ct-256') or another one"
        )
    if prior is not None and prior.latent and not getattr(method, "takes_latents", False):
        raise UsageError(
            f"{type(method).__name__} needs a linear operator, and in the latent space of prior "
            f"'{prior.name}' the operator follows a decoder; use DPS"
        )
    if isinstance(seed, list) and problem.batch_shape != (len(seed),):
        raise UsageError(f"{len(seed)} seeds are given for problems {problem.batch_shape}; give one for each")
    generator = seeded_each(seed) if isinstance(seed, list) else seeded(seed)
    untouched = generator.get_state()
    repeated = problem.samples(samples_of(method, samples))
    device = problem.y.device
    with (
        shown_steps(type(method).__name__, progress) as bar,
        lost_device(device),
        _plainly(problem.y),
        counting() as counts,
        peak_memory(device) as memory,
    ):
        seen = Watch(repeated, method, [callback, bar], watch)
        started = time.perf_counter()
        x = method(repeated, cast(Prior, prior), generator, seen)  # None only where it is not looked at
        finite = bool(torch.isfinite(x).all())  # before the clock is read: it waits for a GPU to end
        seconds = time.perf_counter() - started - seen.seconds
    if samples > samples_of(method, samples) and not torch.equal(generator.get_state(), untouched):
        raise UsageError(
            f"{type(method).__name__} draws random numbers and does not say what its samples are, so that it "
            "would give one alone; give it the attribute spread = 'starts', or 'posterior' where they are "
            "draws of it"
        )
    if not finite:
        raise UsageError(
            f"{type(method).__name__} diverged: its image holds values that are not numbers; "
            "lower its step or weight"
        )
    with _plainly(problem.y):
        residual = float(problem.residual(x.mean(0)).mean())
    if seen.status != "finished":
        logger.warning("%s %s; lower its step or weight", type(method).__name__, seen.status)
    stats: dict[str, float] = {name: counts[name] - seen.spent[name] for name in _COUNTED}
    stats |= {f"{what}_seconds": counts.seconds[what] - seen.spent.seconds[what] for what in TIMED}
    stats |= {"seconds": seconds, "residual": residual}
    return Solution(x, method, stats, seed, seen.trace, seen.status, memory["bytes"])
