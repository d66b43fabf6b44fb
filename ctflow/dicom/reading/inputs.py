"""List the files of a folder, a zip archive or a DICOMDIR, recognised by content and never by name."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import MediaStorageDirectoryStorage

from ctflow.dicom.reading.archive import unpack
from ctflow.errors import NoDicomError, UnreadableError
from ctflow.system.files import scratch, unfinished

PathLike = str | os.PathLike[str]
MARKER = b"DICM"
"""Bytes 128 to 131 of every DICOM file."""


def listing(path: PathLike | Sequence[PathLike], lost: Counter[str] | None = None) -> list[Path]:
    """List the files of a folder (recursive), a file, or a list of both, sorted by path.

    Args:
        path: file, folder, or list of them.
        lost: counts the files that cannot be reached, by cause.

    Raises:
        NoDicomError: a path does not exist.
    """
    lost = Counter() if lost is None else lost
    return sorted({file for root in _roots(path) for file in _found_in(root, lost)})


def _found_in(root: Path, lost: Counter[str]) -> Iterator[Path]:
    """Files of a folder and its subfolders, links followed, each folder once; a file yields itself."""
    around = {_identity(folder) for folder in root.resolve().parents}
    waiting = [root]
    while waiting:
        path = waiting.pop()
        try:
            if path.is_file():
                yield path
            elif path.is_dir():
                if _identity(path) not in around:  # a link in a circle leads to what holds it
                    around.add(_identity(path))
                    waiting += sorted((p for p in path.iterdir() if not unfinished(p)), reverse=True)
            elif path.is_symlink():
                lost["link to a file that is not there"] += 1
        except OSError as error:
            lost[f"cannot be opened, {error.strerror}"] += 1


def _identity(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino


def _roots(path: PathLike | Sequence[PathLike]) -> list[Path]:
    roots = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(item) for item in path]
    if not all(root.exists() for root in roots):
        raise NoDicomError("expected a folder or files of a CT series, but there is no such path; check it")
    return roots


@contextmanager
def open_input(path: PathLike | Sequence[PathLike]) -> Iterator[tuple[list[Path], Counter[str]]]:
    """The files behind a path, sorted, and what was not reached; archives stay unpacked for the block.

    A folder is searched recursively; archives and DICOMDIRs are opened only when they are given themselves,
    since in a folder their files lie beside them.

    Raises:
        NoDicomError: there is no such path.
        UnreadableError: an archive or a DICOMDIR is damaged or dangerous.
    """
    found: set[Path] = set()
    lost: Counter[str] = Counter()
    with scratch() as folder:
        try:
            for k, root in enumerate(_roots(path)):
                found.update(_behind(root, folder / str(k), lost))
        except (OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or "it is not a path"
            raise UnreadableError(f"the input cannot be opened: {words}; check its rights") from None
        yield sorted(found), lost


def _behind(root: Path, unpacked: Path, lost: Counter[str]) -> Iterable[Path]:
    if not root.is_file():
        return _found_in(root, lost)
    if zipfile.is_zipfile(root) and not is_dicom(root):
        unpacked.mkdir()
        files, damaged = unpack(root, unpacked)
        lost["damaged in the archive"] += damaged
        return files
    directory = _directory(root)
    return [root] if directory is None else _listed(root, directory, lost)


def is_dicom(file: Path) -> bool:
    """Whether a file has the DICOM marker, whatever precedes it."""
    with file.open("rb") as stream:
        return stream.read(132)[128:] == MARKER


def _directory(file: Path) -> Dataset | None:
    """The data set of a DICOMDIR, whatever its name; None for any other file."""
    try:
        meta = read_file_meta_info(file)
        if meta.get("MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:
            return None
    except Exception:  # no file meta, or a damaged one: not a DICOMDIR
        return None
    try:
        directory = pydicom.dcmread(file)
        _ = [record.get("ReferencedFileID") for record in directory.DirectoryRecordSequence]
    except Exception:  # pydicom raises many types on damaged data sets
        raise UnreadableError(
            "expected a DICOMDIR but it is damaged; give the folder that holds it"
        ) from None
    return directory


def _listed(file: Path, directory: Dataset, lost: Counter[str]) -> list[Path]:
    """Files that a DICOMDIR names, beside or below it."""
    home = file.resolve().parent
    parts = [record.get("ReferencedFileID") for record in directory.DirectoryRecordSequence]
    named = [[part] if isinstance(part, str) else [str(step) for step in part] for part in parts if part]
    paths = [home.joinpath(*steps) for steps in named]
    if not all(path.resolve().is_relative_to(home) for path in paths):
        raise UnreadableError("the DICOMDIR names a path outside its own folder; nothing was read")
    present = [path for path in paths if path.is_file()]
    lost["missing of those that the DICOMDIR names, give the folder that holds them"] += len(paths) - len(
        present
    )
    return present
