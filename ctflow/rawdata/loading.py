"""Load arrays from files that may be damaged, or claim to be larger than they are."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.errors import BackendError, UnreadableError, UsageError

_DEFLATE = 1040  # the highest compression ratio of deflate, so a file cannot hold more
_MOST_BYTES = 2**36

Array = NDArray[Any]

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFF and BigTIFF begin."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into a typed error.

    Raises:
        UnreadableError: the file is damaged.
        BackendError: the library is not installed.
    """
    try:
        yield
    except (UnreadableError, UsageError, BackendError):
        raise
    except ModuleNotFoundError as error:
        raise BackendError(f"reading {what} needs {error.name}; pip install {error.name}") from error
    except (Exception, MemoryError):  # parsers raise many types on damaged files
        # `from None`: their texts quote paths, and paths name patients.
        raise UnreadableError(
            f"expected {what} but the file is damaged or cut short; copy it again"
        ) from None


def require_size(shape: tuple[int, ...], itemsize: int, file: Path, packed: bool) -> None:
    """Refuse an array that the file cannot hold, before memory is allocated for it.

    Raises:
        UnreadableError: the header claims more than is there.
    """
    claimed = int(np.prod([int(n) for n in shape], dtype=object)) * itemsize
    room = os.path.getsize(file) * (_DEFLATE if packed else 1)
    if claimed > min(room, _MOST_BYTES):
        raise UnreadableError(
            f"the header claims {'×'.join(map(str, shape))} numbers ({claimed / 2**30:.1f} GiB), more than "
            "the file can hold; copy the file again"
        )


def load_mat(file: Path, name: str) -> Any:
    """Load a variable of a MATLAB file of version 5 or 7.3; structures become dictionaries.

    Raises:
        UnreadableError: the file is damaged.
        UsageError: it has no such variable.
    """
    from scipy.io import loadmat, whosmat

    with reading("a MATLAB file"):
        if _magic(file, 4) == b"\x89HDF":
            return _mat73(file, name)
        if _magic(file, 124)[:19] == b"MATLAB 7.3 MAT-file":
            return _mat73(file, name)
        for _, shape, _ in whosmat(str(file)):
            require_size(shape, 1, file, packed=True)
        found = loadmat(str(file), simplify_cells=True)
    if name not in found:
        names = ", ".join(key for key in found if not key.startswith("__"))
        raise UsageError(f"the MATLAB file has no variable '{name}'; it has {names or 'none'}")
    return found[name]


def _mat73(file: Path, name: str) -> Any:
    import h5py

    with h5py.File(file) as opened:
        return _plain(opened[name], file)


def _plain(item: Any, file: Path) -> Any:
    if hasattr(item, "keys"):
        return {key: _plain(item[key], file) for key in item}
    require_size(item.shape, item.dtype.itemsize, file, packed=True)
    values = np.asarray(item[()]).T  # MATLAB stores columns first
    if item.attrs.get("MATLAB_class") == b"char":
        return "".join(map(chr, values.ravel()))
    return values.squeeze()[()]


def load_hdf5(file: Path, name: str) -> tuple[Array, dict[str, Any]]:
    """Load a data set of an HDF5 file, and its attributes.

    Raises:
        UnreadableError: the file is damaged.
        UsageError: it has no such data set.
    """
    with reading("an HDF5 file"):
        import h5py

        with h5py.File(file) as opened:
            found = opened.get(name)
            if not isinstance(found, h5py.Dataset):
                raise UsageError(
                    f"the HDF5 file has no data set '{name}'; it has {', '.join(_datasets(opened)) or 'none'}"
                )
            require_size(found.shape, found.dtype.itemsize, file, packed=True)
            return np.asarray(found[()]), dict(found.attrs)


def hdf5_names(file: Path) -> list[str]:
    """List the names of all data sets of an HDF5 file.

    Raises:
        UnreadableError: the file is damaged.
    """
    with reading("an HDF5 file"):
        import h5py

        with h5py.File(file) as opened:
            return _datasets(opened)


def _datasets(opened: Any) -> list[str]:
    found: list[str] = []
    opened.visititems(lambda name, item: found.append(name) if hasattr(item, "shape") else None)
    return found


def load_numpy(file: Path, name: str | None = None) -> Array:
    """Load the array of a .npy file, or one of a .npz file.

    Raises:
        UnreadableError: the file is damaged.
        UsageError: the .npz file has several arrays and none was named.
    """
    with reading("a NumPy file"):
        if not zipfile.is_zipfile(file):
            return np.array(np.lib.format.open_memmap(file, mode="r"))  # refuses pickles and false sizes
        with zipfile.ZipFile(file) as archive:
            for item in archive.infolist():
                require_size((item.file_size,), 1, file, packed=True)
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            if name is None and len(arrays.files) == 1:
                name = arrays.files[0]
            if name not in arrays.files:
                raise UsageError(
                    f"name one of the arrays {', '.join(arrays.files)} with dataset = in the geometry file"
                )
            return np.asarray(arrays[name])


def load_tiff(file: Path) -> Array:
    """Load the pages of a TIFF, (rows, columns) or (pages, rows, columns).

    Raises:
        UnreadableError: the file is damaged, or its pages differ in shape.
        BackendError: it is compressed in a way that needs the extra `codecs`.
    """
    with reading("a TIFF image"):
        import tifffile

        with _errors_raised("tifffile"), tifffile.TiffFile(file) as opened:
            pages = list(opened.pages)
            for page in pages:
                require_size((len(pages), *page.shape), np.dtype(page.dtype).itemsize, file, packed=True)
                if page.compression not in tifffile.TIFF.DECOMPRESSORS:
                    raise BackendError(
                        f"the TIFF image is compressed by {tifffile.COMPRESSION(page.compression).name}; "
                        "pip install 'ctflow[codecs]', or save it without"
                    )
                if 0 in page.databytecounts:  # the library would fill in zeros
                    raise UnreadableError("a strip of the TIFF image is missing; copy the file again")
            shown = [page.asarray(maxworkers=1) for page in pages]
    return np.stack(shown) if len(shown) > 1 else shown[0]


@contextmanager
def _errors_raised(library: str) -> Iterator[None]:
    """A block in which a library raises the errors that it logs, in place of going on without a page."""
    handler = logging.Handler(logging.ERROR)
    handler.emit = _raise  # type: ignore[method-assign]
    logging.getLogger(library).addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger(library).removeHandler(handler)


def _raise(record: logging.LogRecord) -> None:
    raise ValueError(record.msg)


def load_array(file: Path, name: str | None = None) -> Array:
    """Load an array of a .npy, .npz, .tif, .h5 or .mat file, recognised by content.

    Raises:
        UnreadableError: the file is damaged, or of no known kind.
        UsageError: the file has several arrays and none was named, or there is no such file.
    """
    if not file.is_file():
        raise UsageError("the geometry file names a data file that is not there; data = is relative to it")
    start = _magic(file, 128)
    if start[:6] == b"\x93NUMPY" or start[:4] == b"PK\x03\x04":
        return load_numpy(file, name)
    if start[:4] in TIFF:
        return load_tiff(file)
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return load_hdf5(file, name or _only(hdf5_names(file)))[0]
    if start[:6] == b"MATLAB":
        return np.asarray(load_mat(file, name or _only(_mat_names(file))))
    raise UnreadableError(
        "expected a NumPy, TIFF, HDF5 or MATLAB file but it is none, or truncated; save the array as .npy"
    )


def is_stack(path: Path) -> bool:
    """Whether a path stands for several files: a folder, or a pattern with * in its name."""
    return "*" in path.name or path.is_dir()


def stack_files(path: Path) -> list[Path]:
    """The TIFF files of a folder, or all files of a pattern.

    They are in the order of the numbers in their names, so that view2 goes before view10.

    Args:
        path: folder, or a path whose name holds a *.

    Raises:
        UsageError: there are none.
    """
    inside = [file for ending in ("*.tif", "*.tiff") for file in path.glob(ending)]
    found = sorted(inside if path.is_dir() else path.parent.glob(path.name), key=_natural)
    if not found:
        raise UsageError(
            "there is no image of a view at the named place; give a folder of .tif files or *.tif"
        )
    return found


def load_stack(path: Path) -> Array:
    """Load images of one view each.

    Args:
        path: as for `stack_files`.

    Returns:
        (views, rows, columns).

    Raises:
        UnreadableError: a file is damaged, or the images differ.
        UsageError: there are none.
    """
    found = stack_files(path)
    first = load_array(found[0])
    stack = np.empty((len(found), *first.shape), first.dtype)
    for number, file in enumerate(found):
        image = first if number == 0 else load_array(file)
        if image.ndim != 2 or image.shape != first.shape or image.dtype != first.dtype:
            raise UnreadableError(
                f"image {number + 1} of {len(found)} has {image.shape} values of {image.dtype}; a view of "
                f"{first.shape} of {first.dtype} like the first was expected; put other files elsewhere"
            )
        stack[number] = image
    return stack


def _natural(file: Path) -> list[tuple[int, str]]:
    """Key by which numbers in names are ordered as numbers."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", file.name.lower())
    ]


def _mat_names(file: Path) -> list[str]:
    from scipy.io import whosmat

    with reading("a MATLAB file of version 5"):
        return [name for name, _, _ in whosmat(str(file))]


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise UsageError(f"name one of the data sets {', '.join(names)} with dataset = in the geometry file")
    return names[0]


def _magic(file: Path, size: int) -> bytes:
    with file.open("rb") as opened:
        return opened.read(size)


def magic(file: Path) -> bytes:
    """The first bytes of a file, which identify its kind."""
    return _magic(file, 128)
