"""The commands of `ctflow`, one file for each topic; `ctflow.cli` lists them."""

from enum import StrEnum
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="PROTOCOL", help="Name of a protocol, or a TOML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]


class FillBy(StrEnum):
    """How missing slices may be filled in."""

    LINEAR = "linear"


class TiltBy(StrEnum):
    """What to do with a series from a tilted gantry."""

    REFUSE = "refuse"
    RESAMPLE = "resample"
    IN_PLANE = "in-plane"


class BadFile(StrEnum):
    """What to do with a damaged file."""

    ERROR = "error"
    SKIP = "skip"


Fill = Annotated[
    FillBy | None,
    typer.Option(help="Interpolate missing slices between their neighbours; refused by default."),
]
Split = Annotated[
    bool, typer.Option("--split", help="Part a series by thickness, phase and gaps; --series names the part.")
]
Tilt = Annotated[
    TiltBy, typer.Option(help="Tilted gantry: straighten the stack, or keep slices on their sheared grid.")
]
OnBadFile = Annotated[
    BadFile, typer.Option(help="Damaged files: an error, or skipped where the rest is still one volume.")
]
Unit = Annotated[
    str,
    typer.Option(
        metavar="UNIT",
        help="What the images' numbers are, where they are no HU: 1/mm, 1/cm, HU+1024 or SLOPE,INTERCEPT; "
        "HU takes them as they are.",
    ),
]
Force = Annotated[bool, typer.Option("--force-read", help="Read DICOM files that lack their marker.")]
