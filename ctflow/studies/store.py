"""A study's folder: what is in it is whole, whenever the process that wrote it was stopped."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ctflow.errors import OutputError
from ctflow.studies.manifest import Manifest

Arrays = Mapping[str, np.ndarray[Any, Any]]
"""Named arrays of any shape and unit."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Store:
    """Results of units under their hashes; every folder appears with all its files or not at all.

    Args:
        out: the study's folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.manifest = Manifest(out / "manifest.jsonl", out / "locks" / "manifest.lock")

    def create(self) -> None:
        """Make the folders.

        Raises:
            OutputError: they cannot be made.
        """
        with writing():
            for name in ("units", "cases", "locks"):
                (self.out / name).mkdir(parents=True, exist_ok=True)

    def lock(self, name: str) -> FileLock:
        """A lock of the operating system on a name; it ends with the process that holds it."""
        return FileLock(self.out / "locks" / f"{name}.lock")

    def record(self, place: str) -> dict[str, Any] | None:
        """The record of a finished unit, done or failed; None where there is none.

        Args:
            place: "units/<hash>".
        """
        record: dict[str, Any] | None = self.read(f"{place}/unit.json")
        return record

    def keep(self, place: str, files: Mapping[str, Arrays], record: dict[str, Any] | None = None) -> None:
        """Write a folder beside its place, and rename it when all is on the disk.

        The caller holds the lock of the name, so that what lies beside is a dead owner's.

        Args:
            place: "units/<hash>", "cases/<hash>".
            files: arrays by file name and entry.
            record: content of unit.json.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        final = self.out / place
        partial = final.with_name(f".{final.name}")
        with writing():
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir()
                for name, arrays in files.items():
                    _save(partial / name, arrays)
                if record is not None:
                    _flushed(partial / "unit.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                raise

    def replace(self, name: str, value: Any) -> None:
        """Write a JSON file beside its place and rename it.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        final = self.out / name
        partial = final.with_name(f".{final.name}")
        with writing(), self.lock(name.replace("/", "-")):
            try:
                _flushed(partial, json.dumps(value, indent=1, allow_nan=False) + "\n")
                partial.replace(final)
            finally:
                partial.unlink(missing_ok=True)

    def read(self, name: str) -> Any:
        """The content of a JSON file; None where there is none, or none that is whole."""
        try:
            return json.loads((self.out / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None


@contextmanager
def writing() -> Iterator[None]:
    """Say what a failed write means.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise OutputError(
                "the study needs more space than the disk or its quota has left; units that are done are "
                "kept: free some space and go on with --resume"
            ) from error
        raise OutputError(
            f"the study's folder cannot be written: {error.strerror}; units that are done are kept: correct "
            "it and go on with --resume"
        ) from error


def _save(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())


def _flushed(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
