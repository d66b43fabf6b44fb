"""Options that several commands share."""

import math
from enum import StrEnum
from typing import Annotated

import typer

from ctflow.errors import UsageError
from ctflow.registry import importing

SeriesUid = Annotated[
    str | None, typer.Option("--series", metavar="UID", help="Series, where a folder holds more.")
]
Name = Annotated[str, typer.Argument(metavar="PROTOCOL", help="Name of a protocol, or a TOML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]


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
    typer.Option(help="Interpolate missing slices between their neighbours; refused by default."),
]
Split = Annotated[
    bool,
    typer.Option("--split", help="Split a series by thickness, phase and gaps; --series names the part."),
]
Tilt = Annotated[
    TiltBy, typer.Option(help="Tilted gantry: straighten the stack, or keep slices on their sheared grid.")
]
OnBadFile = Annotated[
    BadFile, typer.Option(help="Files that cannot be read or placed: an error, or skipped with a warning.")
]
Unit = Annotated[
    str,
    typer.Option(
        metavar="UNIT",
        help="Unit of the stored numbers where they are not HU: 1/mm, 1/cm, HU+1024 or SLOPE,INTERCEPT; "
        "HU takes them as they are.",
    ),
]
Force = Annotated[bool, typer.Option("--force-read", help="Read DICOM files that lack their marker.")]


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
