"""Stored pixels of images: sizes are checked before anything is allocated, damage is told apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import JPEGExtended12Bit

from ctflow.dicom import decoders
from ctflow.dicom.codestream import coded_size
from ctflow.dicom.files import Slice, read_whole
from ctflow.errors import CTFlowError, DecoderError, UnreadableError

# A lossless coder packs a blank slice a thousandfold; what is small anyway may be packed further.
_RATIO = 1000
_HARMLESS_BYTES = 8 << 20


def decode(item: Slice) -> NDArray[np.integer]:
    """Stored values of one image, native byte order, (rows, columns).

    Raises:
        DecoderError: no installed package reads the transfer syntax.
        UnreadableError: the pixels are missing, truncated or damaged, or their size is a lie.
    """
    return next(decoded([item]))


def decoded(items: Iterable[Slice]) -> Iterator[NDArray[np.integer]]:
    """Stored values of images one by one, (rows, columns); images of one file in a row open it once.

    A lossy transfer syntax is noted in the headers, flagged in the file or not.

    Raises:
        DecoderError: no installed package reads the transfer syntax.
        UnreadableError: the pixels are missing, truncated or damaged, or their size is a lie.
    """
    for _, run in groupby(items, key=lambda item: item.path):
        images = list(run)
        _require_decoder(images[0])
        try:
            for item, stored in zip(images, _pixels(images), strict=True):
                yield _checked(item, stored)
        except CTFlowError:
            raise
        except Exception:  # decoders raise many types on damaged pixels
            # `from None`: their texts quote paths and header values, which name patients.
            raise _failure(images[0]) from None


def require_sizes(items: Iterable[Slice]) -> None:
    """Refuse headers that promise more pixels than their files can hold, before anything is allocated.

    Raises:
        DecoderError: no installed package reads the transfer syntax.
        UnreadableError: a file is too small for what its header says.
    """
    for path, run in groupby(items, key=lambda item: item.path):
        first = next(run)
        _require_decoder(first)
        _require_size(first, int(first.header.get("NumberOfFrames") or 1), path.stat().st_size)


def _pixels(images: list[Slice]) -> Iterator[NDArray[np.integer]]:
    """Images of one file; uncompressed frames are read one by one and never held together."""
    first = images[0]
    many = int(first.header.get("NumberOfFrames") or 1)
    _require_size(first, many, first.path.stat().st_size)
    indices = [item.frame or 0 for item in images]
    native = not (first.syntax.is_encapsulated or first.syntax.is_deflated)
    if native and first.frame is not None and not first.irregular:
        yield from iter_pixels(first.path, indices=indices)
        return
    dataset = read_whole(first.path)
    dataset.setdefault("PixelRepresentation", 0)
    if first.syntax.is_encapsulated:
        _require_honest_codestreams(first, dataset, many)
        _note_lossy(images, len(dataset.PixelData) / many)
    else:
        _require_one_image(first, dataset, many)
    plugin = next(iter(decoders.plugins(first.syntax)), "") if first.syntax.is_encapsulated else ""
    yield from iter_pixels(dataset, indices=indices, decoding_plugin=plugin)


def _checked(item: Slice, stored: NDArray[np.integer]) -> NDArray[np.integer]:
    shape = (int(item.header.Rows), int(item.header.Columns))
    if stored.shape != shape or stored.dtype.kind not in "iu":
        raise UnreadableError(
            f"file #{item.number}: expected one image of {shape[0]} × {shape[1]} whole numbers but the pixel "
            f"data hold {stored.dtype} of shape {stored.shape}; export the series again"
        )
    return np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("="))


def _image_bytes(header: Dataset) -> int:
    bits = int(header.BitsAllocated)
    return math.ceil(
        int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel", 1)) * bits / 8
    )


def _require_size(item: Slice, many: int, available: int) -> None:
    """Refuse a header that promises more pixels than the file can hold."""
    claimed = _image_bytes(item.header) * many
    plain = not (item.syntax.is_encapsulated or item.syntax.is_deflated)
    allowed = available if plain else max(_HARMLESS_BYTES, _RATIO * available)
    if claimed > allowed:
        raise UnreadableError(
            f"file #{item.number}: the header claims {claimed / 2**20:.1f} MiB of pixels but the file has "
            f"{available / 2**20:.2f} MiB; it is truncated or damaged; copy or export the series again"
        )


def _require_honest_codestreams(item: Slice, dataset: Dataset, many: int) -> None:
    """Refuse images whose own size differs from the header's: decoders allocate what the image says."""
    expected = (int(item.header.Rows), int(item.header.Columns), int(item.header.get("SamplesPerPixel", 1)))
    for data in generate_frames(dataset.PixelData, number_of_frames=many):
        found = coded_size(data)
        if found is not None and found != expected:
            raise UnreadableError(
                f"file #{item.number}: expected {expected[0]} × {expected[1]} pixels but the compressed "
                f"image has {found[0]} × {found[1]}; export the series again"
            )


def _require_one_image(item: Slice, dataset: Dataset, many: int) -> None:
    """Refuse pixel data that hold more than the header says: pydicom would drop the rest."""
    extra = len(dataset.PixelData) - _image_bytes(item.header) * many
    if extra > 1:  # one byte pads an odd length
        raise UnreadableError(
            f"file #{item.number}: the pixel data hold {extra} bytes more than {item.header.Rows} × "
            f"{item.header.Columns} pixels need; export the series again"
        )


def _require_decoder(item: Slice) -> None:
    if not decoders.available(item.syntax):
        raise _no_decoder(item)


def _no_decoder(item: Slice) -> DecoderError:
    package = decoders.package(item.syntax)
    advice = f"pip install {package}" if package else "convert the series to Explicit VR Little Endian"
    return DecoderError(
        f"file #{item.number}: no installed decoder reads transfer syntax "
        f"{decoders.name(item.syntax)}; {advice}"
    )


def _failure(item: Slice) -> DecoderError | UnreadableError:
    if item.syntax == JPEGExtended12Bit and item.header.get("BitsStored", 0) > 8:
        return _no_decoder(item)  # the 8-bit decoders call themselves available and fail
    return UnreadableError(
        f"file #{item.number}: expected pixels in {decoders.name(item.syntax)} but they are missing, "
        "truncated or damaged; copy or export the series again"
    )


def _note_lossy(images: list[Slice], coded_bytes: float) -> None:
    for item in images:
        header = item.header
        if item.syntax not in decoders.LOSSY_METHODS or header.get("LossyImageCompressionRatio"):
            continue
        header.LossyImageCompression = "01"
        header.LossyImageCompressionRatio = f"{_image_bytes(header) / coded_bytes:.4g}"
        header.LossyImageCompressionMethod = decoders.LOSSY_METHODS[item.syntax]
