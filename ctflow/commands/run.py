"""Reconstruct: `ctflow run`, `ctflow compare` and `ctflow demo`."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ctflow.commands import BadFile, Fill, Force, Json, Name, OnBadFile, Split, Tilt, TiltBy, Unit
from ctflow.errors import AcceptanceError, UsageError
from ctflow.protocol import Protocol
from ctflow.terminal import print_figures, print_plan, progress_bar


class Deidentify(StrEnum):
    """Profiles of PS3.15 annex E."""

    BASIC = "basic"


def run(
    protocol: Name,
    series: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="DICOM CT series: folder, zip or DICOMDIR; NIfTI; or measured projections."
        ),
    ],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; it must not exist.")
    ] = None,
    slices: Annotated[
        str, typer.Option(metavar="A:B", help="Slices A to B - 1, by place; all by default.")
    ] = ":",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="method.iterations=80")
    ] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="Another method to run beside, as the protocol tunes it.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of noise and methods.")] = 0,
    prior: Annotated[str, typer.Option(help="Name, file or folder of the flow prior.")] = "ct-256",
    samples: Annotated[int, typer.Option(min=1, help="Images that a random method draws and averages.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    uid: Annotated[
        str | None, typer.Option("--series", metavar="UID", help="Series, where a folder holds more.")
    ] = None,
    fill: Fill = None,
    split: Split = False,
    tilt: Tilt = TiltBy.REFUSE,
    on_bad_file: OnBadFile = BadFile.ERROR,
    force: Force = False,
    unit: Unit = "",
    energy_kev: Annotated[
        float | None, typer.Option(help="Effective energy; sets the attenuation of water.")
    ] = None,
    hu_scale: Annotated[
        float, typer.Option(metavar="HU", help="HU per stored unit of the DICOM images, 0.04 to 1.")
    ] = 1.0,
    difference: Annotated[
        bool, typer.Option("--difference", help="Write the main method minus the input as a series too.")
    ] = False,
    parametric_map: Annotated[
        bool,
        typer.Option("--parametric-map", help="Write the spread of the samples as a Parametric Map too."),
    ] = False,
    deidentify: Annotated[
        Deidentify | None,
        typer.Option(help="Write no patient, dates, scanner or links to the source; clears no face or text."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; compute and write nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run's output.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a series as PROTOCOL says, reconstruct and compare; write DICOM and a report."""
    changes = [*(settings or []), *([f"energy_kev={energy_kev}"] if energy_kev else [])]
    chosen = Protocol.load(protocol).with_methods(beside or []).override(changes)
    if out is None and not dry_run:
        raise UsageError("there is nowhere to write; give -o FOLDER, or --dry-run")
    from ctflow import pipeline
    from ctflow.dicom import ReadOptions
    from ctflow.output import Exports
    from ctflow.report import check_output

    exports = Exports(hu_scale, difference, parametric_map, deidentify is not None)
    exports.check(samples)
    allowed = ReadOptions(fill or "", split, tilt, on_bad_file, force, unit)
    limits = _slices(slices)
    if dry_run:
        check_output(out, series, overwrite)
        job = pipeline.prepare(
            chosen, series, slices=limits, uid=uid, prior=prior, device=device, options=allowed
        )
        print_plan(job.plan(), as_json)
        return
    options = {"seed": seed, "samples": samples, "device": device, "overwrite": overwrite}
    with progress_bar() as progress:
        report = pipeline.run(
            chosen,
            series,
            out,
            prior=prior,
            slices=limits,
            uid=uid,
            options=allowed,
            exports=exports,
            progress=progress,
            **options,  # type: ignore[arg-type]
        )
    print_figures(report.figures, as_json)
    _accept(report.figures)


def compare(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `ctflow run` wrote.")],
    against: Annotated[
        str | None, typer.Option(help="Method to compare with; the reference by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the table of a finished run; status 8 where a threshold of the protocol was missed."""
    from ctflow.report import read_figures

    figures = read_figures(out)
    print_figures(figures, as_json, against or figures["reference"])
    _accept(figures)


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write; an earlier demo is replaced.")
    ] = Path("out/demo"),
    prior: Annotated[str, typer.Option(help="Name, file or folder of the flow prior.")] = "ct-256",
) -> None:
    """Reconstruct a toy series, written for the purpose, from 60 views with every method."""
    from ctflow import pipeline
    from ctflow.datasets.synthetic import write_toy_series

    with tempfile.TemporaryDirectory() as folder, progress_bar() as progress:
        write_toy_series(Path(folder) / "toy")
        chosen = Protocol.load("sparse-view-60")
        report = pipeline.run(
            chosen, Path(folder) / "toy", out, prior=prior, overwrite=True, progress=progress
        )
    print_figures(report.figures, as_json=False)
    print(f"report: {out / 'report.html'}")


def _slices(text: str) -> tuple[int, int] | None:
    if text == ":":
        return None
    start, colon, stop = text.partition(":")
    if not (colon and start.isdigit() and stop.isdigit()):
        raise UsageError(f"slices '{text}' are not understood; write --slices 10:14 for the slices 10 to 13")
    return int(start), int(stop)


def _accept(figures: dict[str, Any]) -> None:
    from ctflow.report import failures

    missed = failures(figures)
    if missed:
        raise AcceptanceError(f"{'; '.join(missed)}; the output is kept")
