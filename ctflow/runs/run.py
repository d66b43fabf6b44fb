"""The main job, station by station: DICOM series, measurement, reconstructions, DICOM series and a report."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctflow import metrics
from ctflow.dicom import ReadOptions
from ctflow.problem import InverseProblem
from ctflow.runs.export import Exports, check_output, export, reserved_run
from ctflow.runs.figures import Provenance
from ctflow.runs.measured_data import REFERENCE
from ctflow.runs.measurement import Job, measure, prepare, slice_seed
from ctflow.runs.protocol import Protocol
from ctflow.runs.report import INPUT, Report, accepted
from ctflow.solving import Solution, solve
from ctflow.system.devices import described
from ctflow.system.version import software
from ctflow.volume import Volume

__all__ = ["Job", "measure", "prepare", "reconstruct", "run"]

Progress = Callable[[float, str], None]
"""Called as progress(fraction of the run from 0 to 1, name of the method at work)."""

_PIXELS_AT_ONCE = 8 * 256 * 256  # solved together: 8 slices of 256², 2 of 512²; bounds the memory
_READING = 0.05  # share of the bar; every fraction of a run is a guess


def run(
    protocol: Protocol,
    series: Path | Volume,
    out: Path | None = None,
    *,
    prior: str = "ct-256",
    slices: tuple[int, int] | None = None,
    uid: str | None = None,
    seed: int = 0,
    samples: int = 1,
    device: str = "cpu",
    overwrite: bool = False,
    options: ReadOptions | None = None,
    exports: Exports | None = None,
    progress: Progress = lambda fraction, method: None,
) -> Report:
    """Measure a CT series as the protocol says, reconstruct it with every method, and compare.

    Args:
        protocol: what to measure and how to solve it.
        series: folder, file, zip archive or DICOMDIR of a DICOM series, NIfTI file, or a volume in HU; or
            measured projections, see `ctflow.rawdata.read_scan`.
        out: folder to write: a DICOM series and a side-car per method, report.json, report.html; None writes
            nothing.
        prior: name or file of the flow prior.
        slices: first and one past the last slice; all by default.
        uid: series to take where the folder holds several.
        seed: seed of the noise and of the methods; the noise of a slice depends on it and on the slice alone.
        samples: images that a random method draws; their mean is reported, and with several their standard
            deviation is written beside it.
        device: "cpu" or "cuda".
        overwrite: replace the output of an earlier run.
        options: repairs that the reader may make; none by default.
        exports: how the images are written, and what beside them.
        progress: called as progress(fraction, method).

    Returns:
        Figures and volumes of all methods; thresholds that were missed are in `Report.failures`.

    Raises:
        OutputError: `out` exists, or cannot be written.
        BackendError: the device is not there.
        SeriesError: the files are not one CT volume.
    """
    check_output(out, series, overwrite)
    (exports or Exports()).check(samples)
    with reserved_run(out, overwrite) as place:
        job = prepare(
            protocol,
            series,
            slices=slices,
            uid=uid,
            prior=prior,
            device=device,
            options=options,
            reading=lambda fraction: progress(_READING * fraction, "reading"),
        )
        report = _computed(job, seed, samples, progress)
        if place is not None:
            with place.folder() as folder:
                export(report, folder, exports)
    return report


def _computed(job: Job, seed: int, samples: int, progress: Progress) -> Report:
    """All methods of a job, their figures and what they cost."""
    problem = measure(job, seed)
    fov = metrics.fov_mask(job.truth)
    body = metrics.body_mask(job.truth.data, fov)
    volumes, figures = {INPUT if job.scan is None else REFERENCE: job.truth}, {}
    spreads: dict[str, Volume] = {}
    for number, (name, method) in enumerate(job.methods.items()):
        at = _share(number, len(job.methods), name, progress)
        deviations: list[Tensor] = []
        volumes[name], figures[name] = reconstruct(
            job, method, problem, samples=samples, seed=seed, progress=at, solved=_collect(deviations)
        )
        if deviations:
            spreads[name] = _spread(job, deviations)
        figures[name] = finite(
            metrics.evaluate(volumes[name].data, job.truth.data, fov, body) | figures[name]
        )
    return _report(job, problem, volumes, figures, {"seed": seed, "samples": samples}, spreads)


def reconstruct(
    job: Job,
    method: Any,
    problem: InverseProblem,
    *,
    samples: int,
    seed: int,
    progress: Callable[[float], None],
    solved: Callable[[Solution], None] = lambda solution: None,
) -> tuple[Volume, dict[str, float]]:
    """Solve all slices with one method, as many at a time as memory allows.

    Args:
        job: what was read and built.
        method: what reconstructs.
        problem: data of all slices.
        samples: images that a random method draws; their mean is the volume.
        seed: of the method.
        progress: called as progress(fraction).
        solved: called with the solution of every portion of the slices, in their order, in 1/mm.

    Returns:
        Volume in HU, and what it cost: counts, seconds, mean residual per datum.
    """
    slices, rows, columns = job.mu.geometry.shape
    at_once = max(1, _PIXELS_AT_ONCE // (rows * columns * (samples if method.needs_prior else 1)))
    images: list[Tensor] = []
    totals: dict[str, float] = {}
    for start in range(0, slices, at_once):
        part = problem.part(slice(start, start + at_once))
        size = part.y.shape[0]

        def callback(step: int, steps: int, start: int = start, size: int = size) -> None:
            progress((start + size * step / max(1, steps)) / slices)

        solution = solve(
            part,
            method,
            job.prior,
            samples=samples,
            seed=slice_seed(seed, job.first + start),
            callback=callback,
        )
        solved(solution)
        images.append(solution.mean[:, 0].cpu())
        for key, value in solution.stats.items():
            totals[key] = totals.get(key, 0) + value * (size / slices if key == "residual" else 1)
        progress((start + size) / slices)
    return job.mu.with_data(torch.cat(images)).to_hu(), totals


def _collect(deviations: list[Tensor]) -> Callable[[Solution], None]:
    """Keep the standard deviation of every portion that has one."""

    def solved(solution: Solution) -> None:
        if len(solution.x) > 1:
            deviations.append(solution.std[:, 0].cpu())

    return solved


def _spread(job: Job, deviations: list[Tensor]) -> Volume:
    """Standard deviation of the samples in HU: a spread has the unit's scale and not its zero."""
    return job.truth.with_data(1000 * torch.cat(deviations) / job.mu.mu_water)


def _share(number: int, methods: int, name: str, progress: Progress) -> Callable[[float], None]:
    return lambda fraction: progress(_READING + (1 - _READING) * (number + fraction) / methods, name)


def _report(
    job: Job,
    problem: InverseProblem,
    volumes: dict[str, Volume],
    figures: dict[str, Any],
    seeds: dict[str, int],
    spreads: dict[str, Volume],
) -> Report:
    protocol, prior, libraries = job.protocol, job.prior, software()
    source = job.truth.source
    provenance: Provenance = {
        "ctflow": libraries.pop("ctflow"),
        "seed": seeds["seed"],
        "samples": seeds["samples"],
        "slices": job.range,
        "prior": {"name": prior.name, "sha256": prior.sha256} if prior else None,
        "input_sha256": (job.scan.sha256 if job.scan else None) or (source.sha256 if source else None),
        "mu_water_per_mm": protocol.mu_water,
        "skipped_files": list(getattr(source, "skipped", [])),
        "device": described(job.device),
        "python": platform.python_version(),
        "libraries": libraries,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return Report(
        {
            "protocol": {
                "name": protocol.name,
                "summary": protocol.summary,
                "text": protocol.dump(),
                "sha256": protocol.sha256,
                "overrides": list(protocol.overrides),
            },
            "method": protocol.main,
            "reference": next(iter(job.methods)),
            "methods": figures,
            "measured": job.scan is not None,
            "residual_of_input": float(problem.residual(job.mu.data[:, None].to(job.device)).mean()),
            "conventions": dict(metrics.CONVENTIONS),
            "accept": accepted(protocol.accept, figures[protocol.main]),
            "warnings": job.warnings,
            "measurement": job.measurement,
            "grid": str(job.truth.geometry),
            "provenance": provenance,
        },
        volumes,
        {name: str(method.paper) for name, method in job.methods.items()},
        spreads,
    )


def finite(value: Any) -> Any:
    """Figures that JSON can hold: None for a PSNR of two images that agree in its window, which is infinite.

    Args:
        value: a number, or a table of figures.
    """
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return value if math.isfinite(value) else None
