"""MetaImage, the .mha and .mhd files of ITK: an array of numbers on a grid."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.errors import UnreadableError, UsageError
from ctflow.rawdata.loading import reading, require_size

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_LONGEST_HEADER = 2**16  # bytes
# Names that the format has had for the same thing.
_ALIASES = {
    "Position": "Offset",
    "Origin": "Offset",
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
    "ElementSize": "ElementSpacing",
}


@dataclass(frozen=True, eq=False)
class MetaImage:
    """Three axes of numbers, the first in the file being the last here.

    Args:
        data: (n_3, n_2, n_1).
        origin: place of the first element along axes 1, 2 and 3, mm.
        spacing: steps along axes 1, 2 and 3, mm.
    """

    data: NDArray[Any]
    origin: tuple[float, ...]
    spacing: tuple[float, ...]


def read_metaimage(file: Path) -> MetaImage:
    """Read a .mha file, or a .mhd file with the file of numbers that it names beside it.

    Raises:
        UnreadableError: the file is damaged.
        UsageError: it is not what is supported: three upright axes of one number, in one file.
    """
    with reading("a MetaImage"):
        header, start = _header(file)
        shape = tuple(int(n) for n in reversed(_numbers(header, "DimSize", 3)))
        _require_upright(header)
        spacing = _numbers(header, "ElementSpacing", 3)
        kind = header.get("ElementType", "")
        if kind not in _TYPES:
            raise UsageError(f"the elements are {kind or 'of no type'}; write them as MET_FLOAT")
        order = ">" if _is_true(header, "BinaryDataByteOrderMSB") else "<"
        data = _elements(file, header, start, shape, np.dtype(order + _TYPES[kind]))
        return MetaImage(data, _numbers(header, "Offset", 3, "0 0 0"), spacing)


def _header(file: Path) -> tuple[dict[str, str], int]:
    """Keys and values, and where the numbers begin if they are in the same file."""
    found: dict[str, str] = {}
    with file.open("rb") as opened:
        while "ElementDataFile" not in found:
            line = opened.readline(_LONGEST_HEADER).decode("latin-1")
            key, equals, value = line.partition("=")
            if not equals or opened.tell() > _LONGEST_HEADER:
                raise UnreadableError("expected the header of a MetaImage and it ends early; copy it again")
            found[_ALIASES.get(key.strip(), key.strip())] = value.strip()
        return found, opened.tell()


def _numbers(header: dict[str, str], key: str, number: int, default: str = "") -> tuple[float, ...]:
    values = tuple(float(text) for text in header.get(key, default).split())
    if len(values) != number or not np.isfinite(values).all():
        raise UsageError(f"a MetaImage with {number} numbers of {key} was expected and it has {len(values)}")
    return values


def _is_true(header: dict[str, str], key: str) -> bool:
    return header.get(key, "False").lower() in ("true", "t", "1")


def _require_upright(header: dict[str, str]) -> None:
    turned = _numbers(header, "TransformMatrix", 9, "1 0 0 0 1 0 0 0 1")
    if not np.array_equal(np.reshape(turned, (3, 3)), np.eye(3)):
        raise UsageError("the axes of the MetaImage are turned (TransformMatrix); write it with the identity")
    if header.get("ElementNumberOfChannels", "1") != "1":
        raise UsageError("the MetaImage has several numbers at every place; write one")


def _elements(
    file: Path, header: dict[str, str], start: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    name, packed = header["ElementDataFile"], _is_true(header, "CompressedData")
    if name != "LOCAL":
        if name == "LIST" or "%" in name or Path(name).name != name:
            raise UsageError("the MetaImage is spread over files, or over folders; write it as one .mha file")
        file, start = file.parent / name, max(0, int(header.get("HeaderSize", "0")))
        if not file.is_file():
            raise UnreadableError("the .mhd file names a file of numbers that is not beside it; copy both")
    require_size(shape, dtype.itemsize, file, packed)
    number = int(np.prod(shape))
    if not packed:
        if os.path.getsize(file) - start < number * dtype.itemsize:
            raise UnreadableError("the MetaImage is cut short; copy it again")
        return np.fromfile(file, dtype, number, offset=start).reshape(shape)
    with file.open("rb") as opened:
        opened.seek(start)
        # One byte more than claimed is asked for, so that a longer stream shows.
        plain = zlib.decompressobj().decompress(opened.read(), number * dtype.itemsize + 1)
    return np.frombuffer(plain, dtype).reshape(shape)


def write_metaimage(image: MetaImage, file: Path) -> None:
    """Write a .mha file of single precision.

    Args:
        image: the array (n_3, n_2, n_1) and its grid, mm.
        file: to write.
    """
    sizes = " ".join(map(str, reversed(image.data.shape)))
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "CompressedData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        f"Offset = {' '.join(map(repr, image.origin))}\nCenterOfRotation = 0 0 0\n"
        f"AnatomicalOrientation = RAI\nElementSpacing = {' '.join(map(repr, image.spacing))}\n"
        f"DimSize = {sizes}\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    )
    with file.open("wb") as opened:
        opened.write(header.encode("ascii"))
        np.ascontiguousarray(image.data, "<f4").tofile(opened)
