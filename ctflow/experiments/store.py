"""A study's folder: what is in it is whole, whenever the process that wrote it was stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ctflow.experiments.manifest import Manifest
from ctflow.experiments.records import JsonFile, Record, record_file
from ctflow.system.files import explained, remove_leftovers, whole_file, whole_folder

T = TypeVar("T")
Arrays = Mapping[str, NDArray[np.generic]]
"""Named arrays of any shape and unit."""

_ADVICE = "units that are done are kept: correct it and go on with --resume"
_FOLDERS = ("units", "cases", "locks")
_LATER = ("support", "pulled", "viewer")  # made where they are needed


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
            for name in _FOLDERS:
                (self.out / name).mkdir(parents=True, exist_ok=True)

    def lock(self, name: str) -> FileLock:
        """A lock of the operating system on a name; it ends with the process that holds it."""
        return FileLock(self.out / "locks" / f"{name}.lock")

    def record(self, place: str) -> Record | None:
        """The record of a finished unit, done or failed; None where there is none.

        Args:
            place: "units/<hash>".
        """
        return self.read(record_file(place))

    def keep(self, place: str, files: Mapping[str, Arrays], record: Record | None = None) -> None:
        """Write a folder beside its place, and rename it when all is on the disk.

        Args:
            place: "units/<hash>", "cases/<hash>".
            files: arrays by file name and entry.
            record: content of unit.json.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        with whole_folder(self.out / place, Path.is_dir, wait=True, advice=_ADVICE) as folder:
            for name, arrays in files.items():
                np.savez(folder / name, **arrays)  # type: ignore[arg-type]
            if record is not None:
                (folder / "unit.json").write_text(_json(record), encoding="utf-8")

    def keep_texts(self, place: str, texts: Mapping[str, str]) -> None:
        """The same with text files.

        Args:
            place: "viewer/<hash>".
            texts: contents by file name.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        with whole_folder(self.out / place, Path.is_dir, wait=True, advice=_ADVICE) as folder:
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")

    def replace(self, file: JsonFile[T], content: T) -> None:
        """Write a JSON file beside its place and rename it.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        self.write(file.name, _json(content))

    def write(self, name: str, text: str) -> None:
        """Write a text file beside its place and rename it.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        with whole_file(self.out / name, Path.is_file, wait=True, advice=_ADVICE) as new:
            new.write_text(text, encoding="utf-8")

    @contextmanager
    def swept(self) -> Iterator[None]:
        """Remove what dead processes have left: before the block, and after it."""
        folders = [self.out / name for name in (".", *_FOLDERS, *_LATER)]
        for folder in folders:
            remove_leftovers(folder)
        try:
            yield
        finally:
            for folder in folders:
                remove_leftovers(folder)

    def read(self, file: JsonFile[T]) -> T | None:
        """The content of a JSON file; None where there is none, or none that is whole."""
        try:
            content: T = json.loads((self.out / file.name).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return content


def writing() -> AbstractContextManager[None]:
    """Say what a failed write means.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    return explained(_ADVICE)


def _json(content: object) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
