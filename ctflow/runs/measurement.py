"""What a run works on: source, operator, noise and methods, read and built before anything is computed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.ndimage import binary_erosion

from ctflow import metrics
from ctflow.dicom import ReadOptions, read_series
from ctflow.errors import GeometryError
from ctflow.nifti import is_nifti, read_nifti
from ctflow.noise import Noise
from ctflow.operators import LinearOperator, Radon
from ctflow.operators._composed import Compose
from ctflow.plausibility import converted, require_hu
from ctflow.priors import FlowPrior, Prior, PriorWarning
from ctflow.problem import InverseProblem, simulate
from ctflow.rawdata import holds_scan
from ctflow.runs import measured_data as measured
from ctflow.runs.protocol import Protocol
from ctflow.scan import Scan
from ctflow.solving import Method
from ctflow.system.devices import available_device
from ctflow.volume import Volume

_MOST_DATA = 2**33  # numbers, 32 GiB in single precision


@dataclass(frozen=True)
class Job:
    """What a run works on: everything that can be refused has been read and built.

    Args:
        protocol: the validated protocol.
        truth: the chosen slices of the series, HU.
        mu: the same in 1/mm.
        first: index of the first chosen slice in the series.
        total: slices in the series.
        A: operator of one slice.
        noise: noise model.
        methods: by name, reference first, main method last.
        prior: flow prior, where a method needs one.
        device: where the methods run.
        scan: measured slices, where the data are a scanner's; `truth` is then the FBP of all their views.
        doubts: what is unusual about a volume that came from no file, or about the FBP of measured data.

    Raises:
        GeometryError: the data of all slices are more than memory holds.
    """

    protocol: Protocol
    truth: Volume
    mu: Volume
    first: int
    total: int
    A: LinearOperator
    noise: Noise
    methods: dict[str, Method]
    prior: Prior | None
    device: str
    scan: Scan | None = None
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        slices, shape = self.mu.geometry.shape[0], self.A.range_shape
        if slices * math.prod(shape) > _MOST_DATA:
            raise GeometryError(
                f"{slices} slices with {' × '.join(map(str, shape))} data each are "
                f"{slices * math.prod(shape):.3g} numbers, and {_MOST_DATA:.2g} are the most at once; give "
                "fewer of them (--slices), or fewer views or bins"
            )

    def plan(self) -> dict[str, str]:
        """What a run would do, in sentences."""
        prior = f"{self.prior.name} (sha256 {self.prior.sha256[:12]})" if self.prior else "none needed"
        return {
            "protocol": f"{self.protocol.name}: {self.protocol.summary}",
            "series": str(self.truth.geometry),
            "slices": f"{self.range} of {self.total}",
            "measurement": self.measurement,
            "methods": ", ".join(self.methods),
            "prior": prior,
            "device": self.device,
            "warnings": "; ".join(self.warnings) or "none",
        }

    @property
    def range(self) -> str:
        """First and one past the last slice, "10:14"."""
        return f"{self.first}:{self.first + self.truth.geometry.shape[0]}"

    @property
    def measurement(self) -> str:
        """Geometry or operator, and noise, in sentences."""
        tables = self.protocol.tables
        acting = _call(tables["operator"]) if "operator" in tables else ""
        if "geometry" in tables:
            radon = self.A.right if isinstance(self.A, Compose) else self.A
            what = str(cast(Radon, radon).beam) + (f" Then {acting} of the projections." if acting else "")
        else:
            what = f"{acting} of every slice, in the image domain."
        if self.scan is not None:
            weights = "photons counted by the scanner" if self.scan.photons is not None and not acting else ""
            weights = weights or f"the protocol's noise, {_call(tables['noise'])}"
            return f"Measured: {self.scan.kind}. {what} Weights: {weights}."
        return f"{what} Noise: {_call(tables['noise'])}."

    @property
    def warnings(self) -> list[str]:
        """What a reader of the figures must know of the series, and of the prior on it."""
        found = list(getattr(self.truth.source, "warnings", []))
        if self.scan is not None:
            return [measured.NO_TRUTH, *self.scan.notes, *self.doubts]
        found += [doubt for doubt in self.doubts if doubt not in found]
        touching = _truncated(self.truth)
        if touching and "geometry" in self.protocol.tables:
            found.append(
                f"the body reaches the edge of the field of view in {touching} of "
                f"{self.truth.geometry.shape[0]} slices; what lies beyond it was not reconstructed by the "
                "scanner and is air in this simulation"
            )
        if self.prior is not None:
            found += self.prior.mismatches(self.truth.geometry.spacing[2], self.truth.data[self.truth.mask])
        return found


def prepare(
    protocol: Protocol,
    series: Path | Volume,
    *,
    slices: tuple[int, int] | None = None,
    uid: str | None = None,
    prior: str = "ct-256",
    device: str = "cpu",
    options: ReadOptions | None = None,
    reading: Callable[[float], None] = lambda fraction: None,
) -> Job:
    """Read and build all that a run needs, and refuse what cannot work, before anything is computed.

    `options` are the repairs that the reader may make; `reading` is called with the fraction that is read.

    Returns:
        The job: the series in HU and in 1/mm, operator, noise, methods and prior.

    Raises:
        ProtocolError: the protocol names something that does not exist.
        SeriesError: the files are not one CT volume.
        BackendError: the device is not there.
    """
    protocol.validate()
    device = str(available_device(device))
    if isinstance(series, Path) and holds_scan(series):
        return _measured(protocol, series, slices, prior, device, reading)
    methods = protocol.methods()
    volume, doubts = _read(series, uid, protocol.mu_water, options or ReadOptions(), reading)
    total = volume.geometry.shape[0]
    first, last = slices or (0, total)
    truth = volume.slices(first, last).to_hu()
    mu = truth.to_attenuation(protocol.mu_water)
    A = protocol.operator(mu.geometry.slices(0, 1))
    loaded = _prior(methods, prior, mu, device)
    return Job(protocol, truth, mu, first, total, A, protocol.noise(), methods, loaded, device, doubts=doubts)


def _measured(
    protocol: Protocol,
    path: Path,
    slices: tuple[int, int] | None,
    prior: str,
    device: str,
    reading: Callable[[float], None],
) -> Job:
    """A job on a scanner's own data: its rays in place of the protocol's, FBP of all views as the truth."""
    scan, first, total = measured.load(path, slices)
    protocol = measured.attenuation_of(protocol, scan)
    methods, kept = protocol.methods(), measured.kept_views(scan, protocol)
    truth = measured.reference(scan, protocol, reading)
    mu = truth.to_attenuation(protocol.mu_water)
    A = protocol.operator(mu.geometry.slices(0, 1), kept.beam)
    loaded = _prior(methods, prior, mu, device)
    doubts = measured.doubts_of(truth)
    return Job(protocol, truth, mu, first, total, A, protocol.noise(), methods, loaded, device, kept, doubts)


def _prior(methods: dict[str, Method], name: str, mu: Volume, device: str) -> Prior | None:
    if not any(method.needs_prior for method in methods.values()):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PriorWarning)  # Job.warnings says it
        return FlowPrior.load(name, mu.mu_water, spacing=mu.geometry.spacing[2]).to(device)


def _read(
    series: Path | Volume,
    uid: str | None,
    mu_water: float,
    options: ReadOptions,
    reading: Callable[[float], None],
) -> tuple[Volume, tuple[str, ...]]:
    """The volume, and what is to be said of one that no reader has looked at."""
    if isinstance(series, Volume):
        volume = converted(series, options.unit)
        return volume, tuple(require_hu(volume, options.unit))
    if is_nifti(series):
        return read_nifti(series, mu_water=mu_water, unit=options.unit), ()
    return read_series(series, series=uid, mu_water=mu_water, options=options, progress=reading), ()


def measure(job: Job, seed: int) -> InverseProblem:
    """Data of every slice, with noise that depends on the seed and on the slice's place in the series only.

    Measured data are taken as they are.

    Returns:
        Problem with y (slices, *range of one slice).
    """
    if job.scan is not None:
        acting = "operator" in job.protocol.tables
        problem = measured.weighted_problem(job.A, job.scan, job.noise, acting)
        return replace(problem, y=problem.y.to(job.device), W=problem.W.to(job.device))
    data = [
        simulate(job.A, job.mu.data[k : k + 1], job.noise, slice_seed(seed, job.first + k)).y
        for k in range(job.mu.geometry.shape[0])
    ]
    return InverseProblem(job.A, torch.stack(data).to(job.device), job.noise)


def slice_seed(seed: int, index: int) -> int:
    """Seed of one slice: a function of the run's seed and of the slice's place in the series."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _call(table: dict[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in table.items() if key != "name")
    return f"{table['name']} ({rest})" if rest else str(table["name"])


def _truncated(truth: Volume) -> int:
    """Number of slices whose body reaches the edge of what the scanner reconstructed."""
    inside = metrics.fov_mask(truth)
    edge = inside & ~binary_erosion(inside, np.ones((1, 3, 3), bool), border_value=0)
    return int((metrics.body_mask(truth.data, inside) & edge).any((1, 2)).sum())
