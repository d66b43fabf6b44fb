"""The main line, station by station: series, measurement, reconstructions, report, DICOM series."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ctflow import metrics
from ctflow.dicom import ReadOptions
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.recon import FBP, FDK, WFBP
from ctflow.runs import kept_lesions
from ctflow.runs.export import Exports, check_output, export, reserved_run
from ctflow.runs.figures import Figures, Provenance, finite, sampled
from ctflow.runs.measured_data import reference_name
from ctflow.runs.measurement import Measurement
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import Reconstruction, reconstruct
from ctflow.runs.report import INPUT, Report, acceptance
from ctflow.runs.spread import reconstruct_spread, refuse_volume
from ctflow.runs.support import middle_support
from ctflow.solving import Method, samples_of
from ctflow.system.devices import device_name
from ctflow.system.executors import Engine
from ctflow.system.progress import FractionProgress, Progress
from ctflow.system.version import software
from ctflow.volume import Volume

_UNFITTED = 10.0  # residual per datum
_READING = 0.05  # share of the bar; every fraction of a run is a guess


def run(
    protocol: Protocol,
    series: Path | Volume,
    out: Path | None = None,
    *,
    prior: str = "ct-256",
    slices: tuple[int, int | None] | None = None,
    uid: str | None = None,
    seed: int = 0,
    samples: int = 1,
    support: bool = False,
    device: str = "cpu",
    overwrite: bool = False,
    options: ReadOptions | None = None,
    exports: Exports | None = None,
    engine: Engine | None = None,
    progress: Progress = lambda fraction, method: None,
) -> Report:
    """Measure a CT series as the protocol says, reconstruct it with every method, and compare.

    Args:
        protocol: what to measure and how to solve it.
        series: folder, file, zip archive or DICOMDIR of a DICOM series, NIfTI file, or a volume in HU; or
            measured projections, see `ctflow.rawdata.read_scan`.
        out: folder to write: a DICOM series and a side-car per method, report.json, report.html and viewer/,
            all slices for it; None writes nothing.
        prior: name or file of the flow prior.
        slices: first and one past the last slice, None for the end; all by default.
        uid: series to take where the folder holds several.
        seed: seed of the noise and of the methods; the noise of a slice depends on it and on the slice alone.
        samples: images that a method draws, if it draws; their mean is reported, and with several their
            standard deviation is written beside it, as what it is: see `ctflow.solving.Spread`.
        support: also find what the data determine of the middle slice, for the report.
        device: "cpu" or "cuda".
        overwrite: replace the output of an earlier run.
        options: repairs that the reader may make; none by default.
        exports: how the images are written, and what beside them.
        engine: where the methods run, slice by slice; this process by default. The images are the same.
        progress: called as progress(fraction, method).

    Returns:
        Figures and volumes of all methods; thresholds that were missed are in `Report.failures`.

    Raises:
        OutputError: `out` exists, or cannot be written.
        UsageError: several samples are asked for and no method draws any, or a volume cannot be spread over
            workers.
        BackendError: the device is not there, or the engine's package or scheduler.
        WorkerDiedError: workers died one after the other.
        SeriesError: the files are not one CT volume.

    Examples:
        >>> import ctflow as ct
        >>> from ctflow.datasets.phantoms import disc
        >>> water = disc(radius=100.0).rasterise(ct.VolumeGeometry((1, 32, 32), (12.0, 12.0, 12.0))).to_hu()
        >>> protocol = ct.Protocol.load("sparse-view-60").only_methods(["fbp", "cgls"])
        >>> report = ct.run(protocol, water)  # out="results" writes DICOM series and the page
        >>> list(report.volumes), report.volumes["cgls"].data.shape
        (['input series', 'fbp', 'cgls'], torch.Size([1, 32, 32]))
    """
    engine = engine or Engine()
    check_output(out, series, overwrite)
    methods = protocol.validate().methods()
    (exports or Exports()).check(samples, methods)
    with reserved_run(out, overwrite) as place:
        measurement = prepare(
            protocol,
            series,
            slices=slices,
            uid=uid,
            device=device,
            options=options,
            reading=lambda fraction: progress(_READING * fraction, "reading"),
        )
        refuse_volume(measurement, engine)
        loaded, problem = _prior(measurement, methods, prior), measurement.problem(seed)
        _ = measurement.truth  # of a scanner's data it is reconstructed here, as part of the reading
        if engine.here:
            found = {
                name: reconstruct(
                    measurement,
                    problem,
                    method,
                    loaded,
                    samples=samples,
                    seed=seed,
                    progress=_share(number, len(methods), name, progress),
                )
                for number, (name, method) in enumerate(methods.items())
            }
        else:
            found = reconstruct_spread(
                measurement,
                problem,
                methods,
                (prior, loaded),
                engine,
                samples=samples,
                seed=seed,
                shared=None if out is None else out.absolute().parent,
                progress=lambda fraction, name: progress(_READING + (1 - _READING) * fraction, name),
            )
        report = _report(measurement, problem, methods, found, loaded, {"seed": seed, "samples": samples})
        if support:
            report = replace(report, support=middle_support(measurement, problem, seed))
        if place is not None:
            with place.folder() as folder:
                export(report, folder, exports)
    return report


def plan(
    protocol: Protocol,
    series: Path | Volume,
    *,
    prior: str = "ct-256",
    slices: tuple[int, int | None] | None = None,
    uid: str | None = None,
    device: str = "cpu",
    options: ReadOptions | None = None,
    engine: Engine | None = None,
) -> dict[str, str]:
    """Say in sentences what `run` would do; nothing is computed and nothing written.

    Args:
        protocol: what to measure and how to solve it.
        series: as for `run`; a volume in HU.
        prior: name or file of the flow prior.
        slices: first and one past the last slice, None for the end; all by default.
        uid: series to take where the folder holds several.
        device: "cpu" or "cuda".
        options: repairs that the reader may make.
        engine: where the methods would run; this process by default.

    Raises:
        UsageError: a volume cannot be spread over workers.
    """
    methods = protocol.validate().methods()
    measurement = prepare(protocol, series, slices=slices, uid=uid, device=device, options=options)
    engine = engine or Engine()
    refuse_volume(measurement, engine)
    loaded = _prior(measurement, methods, prior)
    simulated = measurement.scan is None
    warnings = measurement.warnings(loaded) if simulated else measurement.warnings_of_scan
    return {
        "protocol": f"{protocol.name}: {protocol.summary}",
        "series": str(measurement.grid),
        "slices": f"{measurement.range} of {measurement.total}",
        "measurement": measurement.description,
        "methods": ", ".join(methods),
        "prior": f"{loaded.name} (sha256 {loaded.sha256[:12]})" if loaded else "none needed",
        "device": measurement.device,
        "workers": str(engine),
        "warnings": "; ".join(warnings) or "none",
    }


def _prior(measurement: Measurement, methods: dict[str, Method], name: str) -> Prior | None:
    return measurement.prior(name) if any(method.needs_prior for method in methods.values()) else None


def _share(number: int, methods: int, name: str, progress: Progress) -> FractionProgress:
    return lambda fraction: progress(_READING + (1 - _READING) * (number + fraction) / methods, name)


def _few_views(measurement: Measurement) -> list[str]:
    if "geometry" not in measurement.protocol.tables:
        return []
    return kept_lesions.warnings(measurement.protocol, measurement.A.range_shape[-2])


def _unfitted(methods: dict[str, Method], residuals: Mapping[str, object]) -> list[str]:
    """Iterative methods whose images leave data unexplained; filtered backprojection fits none."""
    return [
        f"the image of {name} is far from the data: residual {residual:.3g} per datum, where noise alone "
        "leaves 1; it has not converged, or the geometry, the noise or the scatter is another"
        for name, residual in residuals.items()
        if isinstance(residual, float) and residual > _UNFITTED
        if not isinstance(methods[name], FBP | FDK | WFBP)
    ]


def _report(
    measurement: Measurement,
    problem: InverseProblem,
    methods: dict[str, Method],
    found: dict[str, Reconstruction],
    prior: Prior | None,
    seeds: dict[str, int],
) -> Report:
    protocol, scan, libraries = measurement.protocol, measurement.scan, software()
    truth, source = measurement.truth, measurement.truth.source
    provenance: Provenance = {
        "ctflow": libraries.pop("ctflow"),
        "seed": seeds["seed"],
        "samples": seeds["samples"],
        "slices": measurement.range,
        "prior": {"name": prior.name, "sha256": prior.sha256} if prior else None,
        "input_sha256": (scan.sha256 if scan else None) or (source.sha256 if source else None),
        "mu_water_per_mm": protocol.mu_water,
        "skipped_files": list(getattr(source, "skipped", [])),
        "device": device_name(measurement.device),
        "python": platform.python_version(),
        "libraries": libraries,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    methods_figures = {name: finite(one.figures) for name, one in found.items()}
    figures: Figures = {
        "protocol": {
            "name": protocol.name,
            "summary": protocol.summary,
            "text": protocol.dump(),
            "sha256": protocol.sha256,
            "overrides": list(protocol.overrides),
        },
        "method": protocol.main,
        "reference": next(iter(methods)),
        "methods": methods_figures,
        "samples": {name: sampled(method, seeds["samples"]) for name, method in methods.items()},
        "measured": scan is not None,
        "residual_of_input": float(problem.residual(measurement.x.to(problem.y)).mean()),
        "conventions": dict(metrics.CONVENTIONS),
        "accept": acceptance(protocol.accept, methods_figures[protocol.main]),
        "lesions": {
            name: kept
            for name, kept in kept_lesions.sentences(protocol, prior.sha256 if prior else "").items()
            # The bench measures no means of samples, and nothing that begins in coarser pixels.
            if samples_of(methods[name], seeds["samples"]) == 1 and name not in measurement.coarser
        },
        "warnings": [
            *measurement.warnings(prior),
            *_few_views(measurement),
            *_unfitted(methods, {name: one["residual"] for name, one in methods_figures.items()}),
        ],
        "measurement": measurement.description,
        "grid": str(measurement.grid),
        "provenance": provenance,
    }
    compared_with = reference_name(scan) if scan else INPUT
    return Report(
        figures,
        {compared_with: truth, **{name: one.volume for name, one in found.items()}},
        {name: method.paper for name, method in methods.items()},
        {name: one.spread for name, one in found.items() if one.spread is not None},
    )
