"""Options that several commands share."""

import math
from enum import StrEnum
from typing import Annotated

import typer

from ctflow.cli.completion import complete_prior, complete_protocol
from ctflow.errors import UsageError
from ctflow.registry import importing

READING = "Reading the series"

SeriesUid = Annotated[
    str | None,
    typer.Option(
        "--series",
        metavar="UID",
        help="Take this series, where a folder holds several.",
        rich_help_panel=READING,
    ),
]
Name = Annotated[
    str,
    typer.Argument(
        metavar="PROTOCOL", help="Name of a protocol, or a TOML file.", autocompletion=complete_protocol
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
PriorName = Annotated[
    str, typer.Option(help="Name, file or folder of the flow prior.", autocompletion=complete_prior)
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps or xpu.")]

WORKERS = "Spreading over workers"
Jobs = Annotated[
    int,
    typer.Option(min=1, max=1024, help="Processes, Dask workers or Slurm jobs.", rich_help_panel=WORKERS),
]
Executor = Annotated[str, typer.Option(help="processes, dask or slurm.", rich_help_panel=WORKERS)]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Dask scheduler; a local cluster without it.", rich_help_panel=WORKERS
    ),
]


def examples(*lines: str) -> str:
    """Epilog of a command's help: lines to type, which are tried by tests."""
    return "\n\n".join(["Examples:", *(f"$ {line}" for line in lines)])


class FillBy(StrEnum):
    """Ways to fill in missing slices."""

    LINEAR = "linear"


class TiltBy(StrEnum):
    """Treatments of a series from a tilted gantry."""

    REFUSE = "refuse"
    RESAMPLE = "resample"
    IN_PLANE = "in-plane"


class BadFile(StrEnum):
    """Treatments of a damaged file."""

    ERROR = "error"
    SKIP = "skip"


Fill = Annotated[
    FillBy | None,
    typer.Option(
        help="Interpolate missing slices between their neighbours; they are refused by default.",
        rich_help_panel=READING,
    ),
]
Split = Annotated[
    bool,
    typer.Option(
        "--split",
        help="Split a series by thickness, phase and gaps; --series names the part.",
        rich_help_panel=READING,
    ),
]
Tilt = Annotated[
    TiltBy,
    typer.Option(
        help="Straighten the stack of a tilted gantry, or keep the slices on their sheared grid.",
        rich_help_panel=READING,
    ),
]
OnBadFile = Annotated[
    BadFile,
    typer.Option(
        help="Refuse files that cannot be read or placed, or skip them with a warning.",
        rich_help_panel=READING,
    ),
]
Unit = Annotated[
    str,
    typer.Option(
        metavar="UNIT",
        help="Unit of the stored numbers where they are not HU: 1/mm, 1/cm, HU+1024 or SLOPE,INTERCEPT; "
        "HU takes them as they are.",
        rich_help_panel=READING,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force-read", help="Read DICOM files that lack their marker.", rich_help_panel=READING),
]


def finite_option(value: float | None) -> float | None:
    """Refuse NaN and infinity, which the range of an option does not exclude.

    Raises:
        UsageError: the number is not finite.
    """
    if value is not None and not math.isfinite(value):
        raise UsageError(f"an option is {value} and must be a finite number; give one")
    return value


SEED_MOST = 2**63 - 1


def _allow(context: typer.Context, allowed: bool) -> bool:
    context.with_resource(importing(allowed))
    return allowed


AllowImports = Annotated[
    bool,
    typer.Option(
        "--allow-imports",
        callback=_allow,
        help="Let files name classes of any module, package.module:Name, whose code then runs.",
    ),
]
