"""A folder, a file, a zip archive or a DICOMDIR to a list of files; told by content, never by name."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import MediaStorageDirectoryStorage

from ctflow.dicom.archive import unpack
from ctflow.dicom.options import AS_IT_IS, ReadOptions
from ctflow.errors import NoDicomError, UnreadableError
from ctflow.files import below, scratch

PathLike = str | os.PathLike[str]


def listing(path: PathLike | Sequence[PathLike]) -> list[Path]:
    """Files of a folder (recursive), a file, or a list of both, sorted by path.

    Raises:
        NoDicomError: a path does not exist.
    """
    roots = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(item) for item in path]
    if not all(root.exists() for root in roots):
        raise NoDicomError("expected a folder or files of a CT series, but there is no such path; check it")
    found = {file for root in roots for file in ([root] if root.is_file() else below(root)) if file.is_file()}
    return sorted(found)


@contextmanager
def opened(
    path: PathLike | Sequence[PathLike], options: ReadOptions = AS_IT_IS
) -> Iterator[tuple[list[Path], list[str]]]:
    """The files behind what a caller names, sorted, and what to warn about; an archive lives in the block.

    A folder is searched recursively; archives and DICOMDIRs count where they are named themselves, as in a
    folder their files stand beside them.

    Raises:
        NoDicomError: there is no such path.
        UnreadableError: an archive or a DICOMDIR is damaged, dangerous or names missing files.
    """
    roots = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(item) for item in path]
    found: set[Path] = set()
    warnings: list[str] = []
    with scratch() as folder:
        for k, root in enumerate(roots):
            files, said = _behind(root, folder / str(k), options)
            found.update(files)
            warnings += said
        yield sorted(found), warnings


def _behind(root: Path, scratch: Path, options: ReadOptions) -> tuple[list[Path], list[str]]:
    try:
        if not root.is_file():
            return listing(root), []
        if zipfile.is_zipfile(root) and not _is_dicom(root):
            scratch.mkdir()
            return unpack(root, scratch), []
        directory = _directory(root)
        return ([root], []) if directory is None else _listed(root, directory, options)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or "it is not a path"
        raise UnreadableError(f"the input cannot be opened: {words}; check its rights") from None


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _directory(file: Path) -> Dataset | None:
    """The data set of a DICOMDIR, whatever its name; None for any other file."""
    try:
        meta = pydicom.filereader.read_file_meta_info(file)
        if meta.get("MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:
            return None
    except Exception:  # no file meta, or a damaged one: not a DICOMDIR
        return None
    try:
        directory = pydicom.dcmread(file)
        _ = [record.get("ReferencedFileID") for record in directory.DirectoryRecordSequence]
    except Exception:  # pydicom raises many types on damaged data sets
        raise UnreadableError(
            "expected a DICOMDIR but it is damaged; give the folder that it lies in"
        ) from None
    return directory


def _listed(file: Path, directory: Dataset, options: ReadOptions) -> tuple[list[Path], list[str]]:
    """Files that a DICOMDIR names, beside or below it."""
    home = file.resolve().parent
    parts = [record.get("ReferencedFileID") for record in directory.DirectoryRecordSequence]
    named = [[part] if isinstance(part, str) else [str(step) for step in part] for part in parts if part]
    paths = [home.joinpath(*steps) for steps in named]
    if not all(path.resolve().is_relative_to(home) for path in paths):
        raise UnreadableError("the DICOMDIR names a path outside its own folder; nothing was read")
    present = [path for path in paths if path.is_file()]
    missing = len(paths) - len(present)
    if missing and (options.on_bad_file == "error" or not present):
        raise UnreadableError(
            f"{missing} of {len(paths)} files that the DICOMDIR names are missing; give the folder that "
            "holds the files instead, or --on-bad-file skip"
        )
    return present, [f"{missing} files that the DICOMDIR names are missing"] if missing else []
