"""Reconstruct: `ctflow run`, `ctflow compare` and `ctflow demo`."""

from __future__ import annotations

import os
import re
import sys
import webbrowser
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctflow.cli.completion import complete_method
from ctflow.cli.options import (
    SEED_MOST,
    WORKERS,
    AllowImports,
    BadFile,
    Device,
    Executor,
    Fill,
    Force,
    Jobs,
    Json,
    Name,
    OnBadFile,
    PriorName,
    Scheduler,
    SeriesUid,
    Split,
    Tilt,
    TiltBy,
    Unit,
    finite_option,
)
from ctflow.cli.terminal import print_figures, print_plan, progress_bar, say
from ctflow.errors import AcceptanceError, OutputError, UsageError
from ctflow.runs.protocol import Protocol

if TYPE_CHECKING:
    from ctflow.runs.figures import Figures


WRITING = "Writing the results"


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
        str,
        typer.Option(metavar="A:B", help="Slices A to B - 1, counted from 0; A: and :B leave an end open."),
    ] = ":",
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Methods to run in place of the protocol's, the reference first and the main one last, with "
            "the parameters that the protocol has for them.",
            autocompletion=complete_method,
        ),
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a number of the protocol by its name in the file, such as method.states=36.",
        ),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Another method to run as well, with the protocol's parameters.",
            autocompletion=complete_method,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=SEED_MOST, metavar="N", help="Seed of the noise and the methods.")
    ] = 0,
    prior: PriorName = "ct-256",
    samples: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            metavar="N",
            help="Images to draw and average; their SD is the posterior's for moment-matching alone.",
        ),
    ] = 1,
    support: Annotated[
        bool,
        typer.Option("--support", help="Show in the report what the data determine of the middle slice."),
    ] = False,
    device: Device = "cpu",
    jobs: Jobs = 1,
    executor: Executor = "processes",
    scheduler: Scheduler = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Parameter of the Slurm jobs, as submitit names it, such as timeout_min=600.",
            rich_help_panel=WORKERS,
        ),
    ] = None,
    uid: SeriesUid = None,
    fill: Fill = None,
    split: Split = False,
    tilt: Tilt = TiltBy.REFUSE,
    on_bad_file: OnBadFile = BadFile.ERROR,
    force: Force = False,
    unit: Unit = "",
    energy_kev: Annotated[
        float | None,
        typer.Option(callback=finite_option, help="Effective energy; sets the attenuation of water."),
    ] = None,
    hu_scale: Annotated[
        float,
        typer.Option(
            metavar="HU",
            callback=finite_option,
            help="HU per stored unit of the DICOM images, 0.04 to 1.",
            rich_help_panel=WRITING,
        ),
    ] = 1.0,
    difference: Annotated[
        bool,
        typer.Option(
            "--difference",
            help="Write the main method minus the input as a series too.",
            rich_help_panel=WRITING,
        ),
    ] = False,
    parametric_map: Annotated[
        bool,
        typer.Option(
            "--parametric-map",
            help="Write the samples' standard deviation as a Parametric Map too.",
            rich_help_panel=WRITING,
        ),
    ] = False,
    deidentify: Annotated[
        Deidentify | None,
        typer.Option(
            help="Write no patient, dates, scanner or links to the source; faces and text in pixels stay.",
            rich_help_panel=WRITING,
        ),
    ] = None,
    allow_imports: AllowImports = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; compute and write nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run's output.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a series by PROTOCOL, reconstruct, compare, and write DICOM series and a report."""
    changes = [*(settings or []), *([f"energy_kev={energy_kev}"] if energy_kev is not None else [])]
    chosen = Protocol.load(protocol)
    if methods:
        chosen = chosen.only_methods([name.strip() for name in methods.split(",")])
    if beside:
        chosen = chosen.with_methods(beside)
    chosen = chosen.override(changes)
    if out is None and not dry_run:
        raise UsageError("no output folder was given; give -o FOLDER, or --dry-run")
    from ctflow.dicom import ReadOptions
    from ctflow.runs import run as runs
    from ctflow.runs.export import Exports, check_output
    from ctflow.system.executors import Engine

    if slurm and executor != "slurm":
        raise UsageError(f"--slurm is given and the executor is {executor}; give --executor slurm")
    engine = Engine(executor, jobs, scheduler, _parameters(slurm or []))
    exports = Exports(hu_scale, difference, parametric_map, deidentify is not None)
    exports.check(samples, chosen.validate().methods())
    allowed = ReadOptions(fill or "", split, tilt, on_bad_file, force, unit)
    limits = _slices(slices)
    if dry_run:
        check_output(out, series, overwrite)
        print_plan(
            runs.plan(
                chosen,
                series,
                prior=prior,
                slices=limits,
                uid=uid,
                device=device,
                options=allowed,
                engine=engine,
            ),
            as_json,
        )
        return
    options = {"seed": seed, "samples": samples, "support": support, "device": device, "overwrite": overwrite}
    with progress_bar() as progress:
        report = runs.run(
            chosen,
            series,
            out,
            prior=prior,
            slices=limits,
            uid=uid,
            options=allowed,
            exports=exports,
            engine=engine,
            progress=progress,
            **options,  # type: ignore[arg-type]
        )
    print_figures(report.figures, as_json)
    if out is not None and not as_json:
        say(f"report: {out / 'report.html'}")
    _accept(report.figures)


def compare(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `ctflow run` wrote.")],
    against: Annotated[
        str | None, typer.Option(help="Method to compare with; the reference by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the table of a finished run; status 8 if a threshold of the protocol was missed."""
    figures = _finished(out)
    print_figures(figures, as_json, against or figures["reference"])
    _accept(figures)


def view(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that a run or a study wrote.")],
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the path alone.")] = False,
) -> None:
    """Open the report of a run or a study, with all its slices, in the browser, and print its path."""
    from ctflow.runs.report import read_figures

    out = out.parent if out.name == "report.html" else out
    if "study" not in read_figures(out):
        _finished(out)
    page = (out / "report.html").absolute()
    if not page.is_file():
        raise UsageError("the folder lacks report.html; run again with --overwrite, or ctflow study report")
    say(f"report: {page}")
    # Without a display Python would start a browser of text in this terminal.
    shown = sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    if not no_browser and not (shown and webbrowser.open(page.as_uri())):
        say("no browser starts here; open the path in one", error=True)


def _finished(out: Path) -> Figures:
    """Figures of the run that a folder holds.

    Raises:
        UsageError: it holds none.
    """
    from ctflow.runs.report import read_figures

    figures = read_figures(out)
    if not {"methods", "reference", "warnings"} <= figures.keys():
        words = "the folder holds no run: report.json is another's; give one that ctflow run wrote"
        raise UsageError(f"{words}, and a study's to ctflow study report")
    return figures


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write; an earlier demo is replaced.")
    ] = Path("out/demo"),
    prior: PriorName = "ct-256",
) -> None:
    """Reconstruct a toy series, written for this purpose, from 60 views with four methods."""
    from ctflow.datasets.synthetic import write_toy_series
    from ctflow.dicom import read_series
    from ctflow.runs import run as runs
    from ctflow.system.files import scratch

    with scratch() as folder, progress_bar() as progress:
        toy = read_series(write_toy_series(folder / "toy"))
        assert toy.source is not None  # it was read
        _check_demo(out, toy.source.sha256)
        chosen = Protocol.load("sparse-view-60")
        report = runs.run(chosen, toy, out, prior=prior, overwrite=True, progress=progress)
    print_figures(report.figures, as_json=False)
    say(f"report: {out / 'report.html'}")


def _check_demo(out: Path, sha256: str) -> None:
    """Refuse to replace a run of anything but the toy series."""
    from ctflow.runs.export import written_run
    from ctflow.runs.report import read_figures

    if written_run(out) and read_figures(out)["provenance"].get("input_sha256") != sha256:
        raise OutputError("expected to replace an earlier demo but the folder holds a run; give another")


def _slices(text: str) -> tuple[int, int | None] | None:
    found = re.fullmatch(r"(\d{0,9}):(\d{0,9})", text, re.ASCII)
    if found is None:
        raise UsageError(
            f"slices '{text}' are not understood; write --slices 10:14 for the slices 10 to 13, 10:11 for 10 "
            "alone, 10: for all from 10 on, or :12 for the first twelve"
        )
    start, stop = found.groups()
    return (int(start or 0), int(stop) if stop else None) if start or stop else None


def _parameters(texts: list[str]) -> dict[str, object]:
    """Parameters of Slurm's jobs; numbers are numbers."""
    found: dict[str, object] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--slurm '{text}' is no parameter; write --slurm timeout_min=600")
        found[key] = int(value) if re.fullmatch(r"\d{1,9}", value, re.ASCII) else value
    return found


def _accept(figures: Figures) -> None:
    from ctflow.runs.report import failures

    missed = failures(figures)
    if missed:
        raise AcceptanceError(f"{'; '.join(missed)}; the output is kept")
