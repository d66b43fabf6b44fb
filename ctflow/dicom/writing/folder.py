"""Output folders of DICOM files, which appear complete or not at all and never replace anything else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pydicom

from ctflow.errors import OutputError
from ctflow.system import files

_WRITTEN = re.compile(r"IM\d{4,}\.dcm")


def file_name(number: int) -> str:
    """Name of a file by its number in the series, from 1; reveals nothing about the patient."""
    return f"IM{number:04d}.dcm"


def holds_written_series(folder: Path) -> bool:
    """Whether a folder holds only a series that ctflow wrote; one pulled from a PACS does not count."""
    return folder.is_dir() and all(
        _WRITTEN.fullmatch(file.name) and written_by_ctflow(file) for file in folder.iterdir()
    )


def written_by_ctflow(file: Path) -> bool:
    """Whether a file is a DICOM object that ctflow wrote."""
    if file.is_symlink():
        return False
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Manufacturer"])
        return bool(header.get("Manufacturer") == "ctflow")
    except Exception:  # pydicom raises many types on what is no DICOM
        return False


def check_series_folder(target: Path, inputs: Sequence[Path], overwrite: bool) -> None:
    """Refuse a folder that holds anything but a series written earlier.

    Args:
        target: folder to be written.
        inputs: files that must not be overwritten.
        overwrite: whether an earlier series may be replaced.

    Raises:
        OutputError: the folder exists, or holds other files or the input.
    """
    if overwrite and any(file.resolve().is_relative_to(target.resolve()) for file in inputs):
        raise OutputError(
            "expected an output folder apart from the input but it holds the input; give another folder"
        )
    files.check_target(target, holds_written_series if overwrite else None)


def whole_series_folder(target: Path, overwrite: bool = False) -> AbstractContextManager[Path]:
    """A folder beside `target` that takes its name when the block succeeds and vanishes when it does not.

    Raises:
        OutputError: the folder cannot be made or written, or another run is writing it.
    """
    return files.whole_folder(target, holds_written_series if overwrite else None)
