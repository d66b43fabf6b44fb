"""Change the file format: `ctflow convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctflow.cli.options import BadFile, Fill, Force, OnBadFile, SeriesUid, Split, Tilt, TiltBy, Unit
from ctflow.cli.terminal import print_warnings, progress_bar, say


def convert(
    series: Annotated[
        Path, typer.Argument(metavar="SERIES", help="DICOM CT series: folder, file, zip or DICOMDIR.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="NIfTI file to write: .nii.gz or .nii.")],
    *,
    uid: SeriesUid = None,
    fill: Fill = None,
    split: Split = False,
    tilt: Tilt = TiltBy.REFUSE,
    on_bad_file: OnBadFile = BadFile.ERROR,
    force: Force = False,
    unit: Unit = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Write a CT series, also one that `ctflow run` wrote, as NIfTI in HU; it holds no patient data."""
    from ctflow.dicom import ReadOptions, read_series
    from ctflow.nifti import reserved_nifti, save_nifti

    allowed = ReadOptions(fill or "", split, tilt, on_bad_file, force, unit)
    with reserved_nifti(out, overwrite) as place, progress_bar() as progress:
        volume = read_series(
            series, series=uid, options=allowed, progress=lambda fraction: progress(fraction, "reading")
        )
        save_nifti(volume, place)
    say(volume.geometry)
    assert volume.source is not None  # it was read
    print_warnings(volume.source.warnings)
