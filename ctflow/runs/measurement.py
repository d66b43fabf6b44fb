"""What is measured: series or scan, operator and noise, read and built before anything is computed."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from torch import Tensor

from ctflow import metrics
from ctflow.errors import GeometryError
from ctflow.geometry import VolumeGeometry
from ctflow.noise import Noise
from ctflow.operators import LinearOperator, Radon
from ctflow.operators._composed import Compose
from ctflow.priors import FlowPrior, Prior, PriorWarning
from ctflow.priors.coupled import Coupled
from ctflow.problem import InverseProblem, simulate
from ctflow.registry import Call
from ctflow.runs import measured_data
from ctflow.runs.protocol import Protocol
from ctflow.runs.unknown import Unknown
from ctflow.scan import Scan
from ctflow.scanner import correct_scatter
from ctflow.solving import Method
from ctflow.system.progress import FractionProgress
from ctflow.units import attenuation_to_hu
from ctflow.volume import Volume

_AROUND_MM = 6.0  # of a rod of metal, where no image is judged
_MOST_DATA = 2**33  # numbers, 32 GiB in single precision


@dataclass(frozen=True)
class Measurement:
    """What was measured and how: everything that can be refused has been read and built, nothing computed.

    Args:
        protocol: the validated protocol; its methods are not looked at.
        grid: the chosen slices.
        first: index of the first chosen slice in the series.
        total: slices in the series.
        unknown: what is solved for at once: a slice, or a volume that holds the chosen slices.
        A: operator of that.
        noise: noise model.
        device: where the methods run.
        volume: the chosen slices of a series, HU; None where the data are a scanner's.
        series: all slices, where rays cross some that are not chosen.
        scan: measured slices, all their views; None where the data are simulated.
        kept: the views of `scan` that the protocol takes.
        unusual: what is unusual about a volume that came from no file.
        progress: called with the fraction of a scanner's truth that is reconstructed.

    Raises:
        GeometryError: the data of all slices are more than memory holds.
    """

    protocol: Protocol
    grid: VolumeGeometry
    first: int
    total: int
    unknown: Unknown
    A: LinearOperator
    noise: Noise
    device: str
    volume: Volume | None = None
    series: Volume | None = None
    scan: Scan | None = None
    kept: Scan | None = None
    unusual: tuple[str, ...] = ()
    progress: FractionProgress = lambda fraction: None

    def __post_init__(self) -> None:
        solves, shape = self.solves, self.A.range_shape
        if solves * math.prod(shape) > _MOST_DATA:
            raise GeometryError(
                f"{self.grid.shape[0]} slices with {' × '.join(map(str, shape))} data each are "
                f"{solves * math.prod(shape):.3g} numbers, and {_MOST_DATA:.2g} are the most at once; give "
                "fewer of them (--slices), or fewer views or bins"
            )

    @cached_property
    def truth(self) -> Volume:
        """What images are compared with, HU: the series, or the FBP, FDK or WFBP of all views."""
        if self.volume is not None:
            return self.volume
        first = self.unknown.beyond
        return self._of_all_views.slices(first, first + self.grid.shape[0])

    @cached_property
    def _of_all_views(self) -> Volume:
        """The FBP, FDK or WFBP of a scanner's data, with the slices beyond the chosen ones, HU."""
        scan = cast(Scan, self.scan)
        grid = self.grid if scan.beam.flat else self.unknown.grid
        return measured_data.reference(scan, self.protocol, grid, self.progress)

    @cached_property
    def mu(self) -> Volume:
        """The truth in 1/mm, not below air."""
        return self.truth.to_attenuation(self.protocol.mu_water)

    @property
    def solves(self) -> int:
        """How many times the unknown is solved for: once for each slice, or once."""
        return 1 if self.unknown.grid.shape[0] > 1 else self.grid.shape[0]

    @cached_property
    def x(self) -> Tensor:
        """The truth of every solve, (solves, Z, Y, X), in 1/mm, not below air."""
        if self.series is None:
            whole = self.truth if self.scan is None else self._of_all_views
            mu = whole.to_attenuation(self.protocol.mu_water).data
            return mu.reshape(self.solves, *self.unknown.grid.shape)
        return self.unknown.of(self.series.to_attenuation(self.protocol.mu_water).data, self.first)[None]

    @cached_property
    def masks(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Field of view and body, (Z, Y, X) each, see `ctflow.metrics`, without a rod that a scanner adds."""
        inside = metrics.fov_mask(self.truth)
        body, scanner = metrics.body_mask(self.truth.data, inside), self.protocol.scanner()
        if scanner is None or not scanner.metal:
            return inside, body
        apart = (scanner.rod(self.grid, _AROUND_MM) == 0).numpy()
        return inside & apart, body & apart

    def problem(self, seed: int) -> InverseProblem:
        """Data of every solve, with noise that depends on the seed and its place in the series only.

        Measured data are taken as they are. Of both, the protocol's share of scatter is taken off.

        Returns:
            Problem with y (solves, *range of one).
        """
        problem, share = self._measured(seed), self.protocol.tables.get("scatter_correction")
        return problem if share is None else correct_scatter(problem, share, mu_water=self.protocol.mu_water)

    def _measured(self, seed: int) -> InverseProblem:
        if self.kept is not None:
            acting = "operator" in self.protocol.tables
            problem = measured_data.weighted_problem(self.A, self.kept, self.noise, acting)
            return replace(problem, y=problem.y.to(self.device), W=problem.W.to(self.device))
        seeds = [slice_seed(seed, self.first + k) for k in range(self.solves)]
        scanner, mu_water = self.protocol.scanner(), self.protocol.mu_water
        if scanner is None:
            data = [simulate(self.A, x, self.noise, one).y for x, one in zip(self.x, seeds, strict=True)]
            return InverseProblem(self.A, torch.stack(data).to(self.device), self.noise)
        parts = [
            scanner.measure(self.A, attenuation_to_hu(x, mu_water), self.noise, mu_water, one)
            for x, one in zip(self.x, seeds, strict=True)
        ]
        y, W = (torch.stack([getattr(part, of) for part in parts]).to(self.device) for of in ("y", "W"))
        return InverseProblem(self.A, y, self.noise, W)

    def prior(self, name: str) -> Prior:
        """A prior for these images, on the measurement's device.

        Args:
            name: name, file or folder of the prior.
        """
        return loaded_prior(self.protocol, name, self.grid.spacing[2], self.device)

    @property
    def range(self) -> str:
        """First and one past the last slice, "10:14"."""
        return f"{self.first}:{self.first + self.grid.shape[0]}"

    @property
    def description(self) -> str:
        """Geometry or operator, and noise, in sentences."""
        tables = self.protocol.tables
        acting = _call(tables["operator"]) if "operator" in tables else ""
        if "geometry" in tables:
            radon = self.A.right if isinstance(self.A, Compose) else self.A
            what = str(cast(Radon, radon).beam) + (f" Then {acting} of the projections." if acting else "")
            scanner = self.protocol.scanner()
            what += f" {scanner}" if scanner and self.scan is None else ""
            share = tables.get("scatter_correction")
            what += "" if share is None else f" Scatter of {share:.3g} behind 200 mm of water is taken off."
            if self.solves == 1 and self.unknown.grid.shape[0] > 1:
                what += f" Solved as one volume of {self.unknown.grid.shape[0]} slices"
                what += ", since rays cross those beyond the chosen ones." if self.unknown.beyond else "."
        else:
            what = f"{acting} of every slice, in the image domain."
        if self.kept is not None:
            weights = "photons counted by the scanner" if self.kept.photons is not None and not acting else ""
            weights = weights or f"the protocol's noise, {_call(tables['noise'])}"
            return f"Measured: {self.kept.kind}. {what} Weights: {weights}."
        return f"{what} Noise: {_call(tables['noise'])}."

    def warnings(self, prior: Prior | None) -> list[str]:
        """What a reader of the figures must know of the series, and of the prior on it.

        Args:
            prior: the prior, where a method uses one.
        """
        if self.scan is not None:
            unusual = measured_data.unusual_truth(self.truth, self.scan)
            return [*self.warnings_of_scan, *unusual, *(self._of_coarser(prior) if prior else [])]
        found = list(getattr(self.truth.source, "warnings", []))
        found += [text for text in self.unusual if text not in found]
        found += self.unknown.notes(self.first, self.grid.shape[0], self.total)
        touching = self._truncated()
        if touching and "geometry" in self.protocol.tables:
            found.append(
                f"the body reaches the edge of the field of view in {touching} of {self.grid.shape[0]} "
                "slices; what lies beyond it was not reconstructed by the scanner and is air in this "
                "simulation"
            )
        arc = self.protocol.tables.get("geometry", {}).get("arc_degrees", 360.0)
        if isinstance(arc, int | float) and 0 < arc < 2 * math.pi + 0.01:
            found.append(
                f"the arc is {arc:.3g} degrees; if radians were meant, "
                f"give arc_degrees = {math.degrees(arc):.0f}"
            )
        scanner = self.protocol.scanner()
        if scanner is not None and scanner.metal:
            found.append(f"figures leave out the rod of {scanner.metal_of} and {_AROUND_MM:.0f} mm around it")
        if prior is not None:
            found += prior.mismatches(self.grid.spacing[2], self.truth.data[self.truth.mask])
            found += self._of_coarser(prior)
        return found

    @cached_property
    def coarser(self) -> dict[str, int]:
        """Pixels along the side of those that a method begins in, by method, where they are more than one."""
        found = {}
        for name, method in self.protocol.methods().items():
            mm = coarse_mm(method)
            factor = self.A.domain_shape[-1] // self.A.coarsened(mm).domain_shape[-1] if mm else 1
            if factor > 1:
                found[name] = factor
        return found

    def _of_coarser(self, prior: Prior) -> list[str]:
        """What must be known of methods that begin in coarser pixels with this prior."""
        found = []
        for name, factor in self.coarser.items():
            coarse = prior.coarsened(factor)
            if coarse is None:
                found.append(
                    f"{name}: all of it in the slice's own pixels, which takes longer, since prior "
                    f"'{prior.name}' knows pixels of one size alone"
                )
            else:
                found += [f"{name}: {text}" for text in coarse.mismatches(factor * self.grid.spacing[2])]
        return found

    @property
    def warnings_of_scan(self) -> list[str]:
        """What a scanner's data say of themselves before anything is computed."""
        if self.scan is None or self.kept is None:
            return []
        return [measured_data.no_truth(self.scan), *self.kept.notes]

    def _truncated(self) -> int:
        """Number of slices whose body reaches the edge of what the scanner reconstructed."""
        inside, body = self.masks
        edge = inside & ~binary_erosion(inside, np.ones((1, 3, 3), bool), border_value=0)
        return int((body & edge).any((1, 2)).sum())


def coarse_mm(method: Method) -> float:
    """Largest pixels that a method may begin in, mm; 0 where it begins in the image's own.

    Args:
        method: with a refinement, a refinement itself, or any other.
    """
    found: float = getattr(getattr(method, "refinement", method), "coarse_mm", 0.0)
    return found


def loaded_prior(protocol: Protocol, name: str, spacing: float, device: str) -> Prior:
    """A prior for the images of a protocol, on a device.

    Args:
        protocol: says the attenuation of water, and whether slices are coupled.
        name: name, file or folder of the prior.
        spacing: pixel spacing, mm.
        device: "cpu" or "cuda".
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PriorWarning)  # `Measurement.warnings` says it
        prior = FlowPrior.load(name, protocol.mu_water, spacing).to(device)
    return prior if protocol.coupling is None else Coupled(prior, protocol.coupling)


def slice_seed(seed: int, index: int) -> int:
    """Seed of one slice: a function of the run's seed and of the slice's place in the series."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _call(table: Call) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in table.items() if key != "name")
    return f"{table['name']} ({rest})" if rest else str(table["name"])
