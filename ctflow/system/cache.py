"""Keep arrays that take long to compute on disk; a damaged or stale file is rebuilt, with a notice."""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from ctflow.errors import OutputError
from ctflow.system.files import remove_leftovers, whole_file
from ctflow.system.version import source_sha256

Arrays = dict[str, NDArray[np.generic]]
"""Named arrays of any shape and unit."""

logger = logging.getLogger(__name__)

_KEY = "key"  # the entry with the key that a file was computed for
_BY = ("operators", "geometry", "cache.py")  # the code that builds arrays
_LIMIT = 2**32  # bytes of all files together; the least recently read are deleted first


def folder() -> Path:
    """Folder of the files: $CTFLOW_CACHE, else the system's place: on Linux ~/.cache/ctflow."""
    own = os.environ.get("CTFLOW_CACHE")
    return Path(own) if own else user_cache_path("ctflow", appauthor=False)


def cached(kind: str, key: str, build: Callable[[], Arrays]) -> Arrays:
    """Return arrays of an earlier run of the same code, or compute new ones and keep them.

    A file is read completely and compared with its checksums and with `key`, so that a truncated, changed or
    outdated one is noticed. If the folder cannot be written, the arrays are returned all the same. The folder
    is kept below 4 GiB: the least recently read files are deleted.

    Args:
        kind: kind of the arrays, with which the file's name begins: "matrix", "gram".
        key: text that is equal only where the arrays are, for the same code: all numbers of the geometry.
        build: computes the arrays; none may be named "key".

    Returns:
        The arrays by name.
    """
    key = f"{key}, by {source_sha256(*_BY)}"
    path = folder() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if path.exists():
        try:
            return _read(path, key)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("a cached %s is damaged and is computed again: %s", kind, error)
    arrays = build()
    try:
        _write(path, {**arrays, _KEY: np.array(key)})
    except OutputError as error:
        logger.warning("a %s is not cached: %s; CTFLOW_CACHE names another folder", kind, error)
    return arrays


def _read(path: Path, key: str) -> Arrays:
    # The entries of a zip file carry a CRC-32 that is compared when they are read.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if str(arrays.pop(_KEY)) != key:
        raise ValueError("it was computed for another key")
    path.touch()
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    with whole_file(path, Path.is_file, wait=True) as new:
        np.savez(new, **arrays)  # type: ignore[arg-type]
    remove_leftovers(path.parent)
    _prune(path.parent)


def _prune(where: Path) -> None:
    total = 0
    for path in sorted(where.glob("*.npz"), key=lambda file: file.stat().st_mtime, reverse=True):
        total += path.stat().st_size
        if total > _LIMIT:
            path.unlink(missing_ok=True)
