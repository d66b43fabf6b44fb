"""Inspect a folder: `ctflow inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ctflow.cli.options import BadFile, Fill, Force, Json, OnBadFile, Split, Tilt, TiltBy
from ctflow.cli.terminal import say, say_json
from ctflow.errors import NoDicomError


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder, file, zip archive or DICOMDIR.")],
    fill: Fill = None,
    split: Split = False,
    tilt: Tilt = TiltBy.REFUSE,
    on_bad_file: OnBadFile = BadFile.ERROR,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """List the series in a folder, and why some cannot be used; shows no patient data."""
    from ctflow.dicom import ReadOptions, inspect_folder

    allowed = ReadOptions(fill or "", split, tilt, on_bad_file, force)
    found = [asdict(series) for series in inspect_folder(folder, allowed)]
    if not found:
        raise NoDicomError("there is no DICOM file in the folder; give the folder of a CT series")
    if as_json:
        say_json({"series": found})
        return
    for series in found:
        say(*(f"{key.replace('_', ' '):<18} {_words(value)}" for key, value in series.items()), "")


def _words(value: object) -> str:
    if isinstance(value, list | tuple):
        return "; ".join(map(_words, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
