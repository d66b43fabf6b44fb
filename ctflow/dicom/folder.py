"""Output folders of DICOM files: whole or not there, and never over something else."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ctflow.errors import OutputError

_WRITTEN = r"IM\d{4,}\.dcm"


def file_name(number: int) -> str:
    """Name of a file by its 1-based place in a series; says nothing of the patient."""
    return f"IM{number:04d}.dcm"


def check_target(target: Path, inputs: Sequence[Path], overwrite: bool) -> None:
    """Refuse a folder that holds anything but a series written earlier.

    Args:
        target: folder to be written.
        inputs: files that must survive.
        overwrite: whether an earlier series may be replaced.

    Raises:
        OutputError: the folder exists, or holds other files or the input.
    """
    if not target.exists():
        return
    if not overwrite:
        raise OutputError(
            "expected a new output folder but it exists; give another, or overwrite=True (--overwrite)"
        )
    folders = {file.resolve().parent for file in inputs}
    earlier = target.is_dir() and all(re.fullmatch(_WRITTEN, file.name) for file in target.iterdir())
    if not earlier or target.resolve() in folders:
        raise OutputError(
            "expected to replace a series that ctflow wrote, but the output folder holds other files or "
            "the input; give another folder"
        )


@contextmanager
def whole_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside `target` that takes its name when the block succeeds and vanishes when it does not.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    folder = target.absolute().parent / f".ctflow-{uuid.uuid4().hex}"
    old = folder.with_suffix(".old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        yield folder
        if overwrite and target.exists():
            target.rename(old)
        folder.rename(target)
    except OSError as error:
        # `from None`: the system's text quotes paths, and paths name patients.
        raise OutputError(
            f"the output folder cannot be written: {error.strerror}; free space or choose another"
        ) from None
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
