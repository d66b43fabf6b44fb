"""Decode the stored values of images; sizes are checked first, and every kind of damage has its own error."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import groupby
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels
from pydicom.tag import BaseTag
from pydicom.uid import JPEGExtended12Bit, RLELossless

from ctflow.dicom.reading import decoders
from ctflow.dicom.reading.codec import Codec, codec
from ctflow.dicom.reading.codestream import CodestreamError, coded_frames, coded_size
from ctflow.dicom.reading.files import Slice, read_whole
from ctflow.dicom.reading.stored_values import stored_values
from ctflow.errors import CTFlowError, DecoderError, UnreadableError

# A lossless coder packs a blank slice by a factor of a thousand; small images may be packed further.
_RATIO = 1000
_HARMLESS_BYTES = 8 << 20

_PIXELS = BaseTag(0x7FE00010)

Words = NDArray[np.integer]


def decode(item: Slice) -> Words:
    """Decode the stored values of one image, native byte order, (rows, columns).

    Raises:
        DecoderError: no installed package reads the transfer syntax.
        UnreadableError: the pixels are missing, truncated or damaged, or their stated size is false.
    """
    with closing(decoded([item])) as found:
        return next(found)


def decoded(items: Iterable[Slice]) -> Generator[Words]:
    """Decode the stored values of images one by one, (rows, columns); each file is opened once.

    Compressed images are decoded in another process, each while the caller works on the one before. A caller
    that may leave before the end closes the iterator, so that the process is free for the next one.
    A lossy transfer syntax is noted in the headers, whether or not the file flags it.

    Raises:
        DecoderError: no installed package reads the transfer syntax.
        UnreadableError: the pixels are missing, truncated or damaged, or their stated size is false; a
            decoder did not finish.
    """
    with closing(_begun(items)) as begun:
        ahead = next(begun, None)
        while ahead is not None:
            item, words = ahead
            with _explained(item):
                stored = stored_values(_checked(item, words()), item.header, item.number)
            ahead = next(begun, None)
            yield stored


def require_sizes(items: Iterable[Slice]) -> None:
    """Refuse headers that promise more pixels than their files can hold, before anything is allocated.

    Raises:
        DecoderError: no installed package reads the transfer syntax.
        UnreadableError: a file is too small for what its header says.
    """
    for path, run in groupby(items, key=lambda item: item.path):
        first = next(run)
        _require_decoder(first)
        _require_size(first, path.stat().st_size)


def _begun(items: Iterable[Slice]) -> Generator[tuple[Slice, Callable[[], Words]]]:
    """Images, each with a call that returns its words; compressed ones are already being decoded."""
    for encapsulated, run in groupby(items, key=lambda item: item.syntax.is_encapsulated):
        if encapsulated:
            with codec() as process:
                for images in _by_file(run):
                    yield from _compressed(images, process)
        else:
            for images in _by_file(run):
                yield from _native(images)


def _by_file(items: Iterable[Slice]) -> Iterator[list[Slice]]:
    for _, run in groupby(items, key=lambda item: item.path):
        images = list(run)
        _require_decoder(images[0])
        _require_size(images[0], images[0].path.stat().st_size)
        yield images


def _native(images: list[Slice]) -> Iterator[tuple[Slice, Callable[[], Words]]]:
    """Uncompressed images of one file; frames are read one by one and never held all at once."""
    first = images[0]
    with _explained(first):
        apart = first.frame is not None and not (first.syntax.is_deflated or first.irregular)
        apart &= first.header.get("SamplesPerPixel") is not None  # else it is filled in here
        if first.pixels_at is not None:
            dataset = _with_pixels(first, first.pixels_at)
        else:
            dataset = read_whole(first.path, defer_size=_HARMLESS_BYTES if apart else None)
        dataset.setdefault("PixelRepresentation", 0)
        if dataset.get("SamplesPerPixel") is None:
            dataset.SamplesPerPixel = 1
        _require_length(first, dataset)
        indices = [item.frame or 0 for item in images]
        words = iter_pixels(
            first.path if apart else dataset,
            indices=indices,
            raw=True,
            correct_unused_bits=False,  # `stored_values` reads them
            photometric_interpretation="MONOCHROME2",
        )
    for item in images:
        yield item, partial(next, words)


def _with_pixels(item: Slice, place: int) -> Dataset:
    """Pixels, whose element begins at that byte of the file, with what the header says of them."""
    with item.path.open("rb") as stream:
        stream.seek(place)
        group, element, form = (stream.read(n) for n in (2, 2, 4))
        implicit = form[:2] not in (b"OB", b"OW")  # as the header has seen, whatever the transfer syntax
        value = stream.read(int.from_bytes(form if implicit else stream.read(4), "little"))
    if (int.from_bytes(group, "little"), int.from_bytes(element, "little")) != (_PIXELS.group, _PIXELS.elem):
        raise UnreadableError(f"file #{item.number}: it has changed since its header was read; read it again")
    dataset = item.header.group_dataset(0x0028)  # apart: the header lives as long as the volume
    dataset.file_meta = item.header.file_meta
    dataset[_PIXELS] = RawDataElement(_PIXELS, "OW", len(value), value, 0, implicit, True)
    return dataset


def _compressed(images: list[Slice], process: Codec) -> Iterator[tuple[Slice, Callable[[], Words]]]:
    """Compressed images of one file; each is sent to the decoder once the one before has come back."""
    first = images[0]
    with _explained(first):
        dataset = read_whole(first.path)
        frames = coded_frames(dataset, _frames(first), first.syntax == RLELossless)
        _require_honest_codestreams(first, frames)
        _note_lossy(images, sum(map(len, frames)) / len(frames))
    plugin = next(iter(decoders.plugins(first.syntax)), "")
    for item in images:
        with _explained(item):
            process.send(item.header, item.syntax, plugin, frames[item.frame or 0])
        yield item, process.receive


@contextmanager
def _explained(item: Slice) -> Iterator[None]:
    """Turn whatever a reader or a decoder raises into a typed error that names the file by number."""
    try:
        yield
    except CTFlowError:
        raise
    except CodestreamError as error:
        raise UnreadableError(f"file #{item.number}: {error}; copy or export the series again") from None
    except Exception:  # decoders raise many types on damaged pixels
        # `from None`: their texts quote paths and header values, which name patients.
        raise _failure(item) from None


def _frames(item: Slice) -> int:
    return int(item.header.get("NumberOfFrames") or 1)


def _checked(item: Slice, words: Words) -> Words:
    shape = (int(item.header.Rows), int(item.header.Columns))
    if words.shape != shape or words.dtype.kind not in "iu":
        raise UnreadableError(
            f"file #{item.number}: expected one image of {shape[0]} × {shape[1]} whole numbers but the pixel "
            f"data hold {words.dtype} of shape {words.shape}; export the series again"
        )
    return np.ascontiguousarray(words, dtype=words.dtype.newbyteorder("="))


def _samples(header: Dataset) -> int:
    return int(header.get("SamplesPerPixel") or 1)


def _image_bytes(header: Dataset) -> int:
    bits = int(header.BitsAllocated)
    return math.ceil(int(header.Rows) * int(header.Columns) * _samples(header) * bits / 8)


def _require_size(item: Slice, available: int) -> None:
    """Refuse a header that promises more pixels than the file can hold."""
    claimed = _image_bytes(item.header) * _frames(item)
    plain = not (item.syntax.is_encapsulated or item.syntax.is_deflated)
    allowed = available if plain else max(_HARMLESS_BYTES, _RATIO * available)
    if claimed > allowed:
        raise UnreadableError(
            f"file #{item.number}: the header claims {claimed / 2**20:.1f} MiB of pixels but the file has "
            f"{available / 2**20:.2f} MiB; it is truncated or damaged; copy or export the series again"
        )


def _require_length(item: Slice, dataset: Dataset) -> None:
    """Refuse pixel data that are not as long as rows × columns × frames × bytes, apart from an even pad."""
    needed = _image_bytes(item.header) * _frames(item)
    element = cast(RawDataElement, dataset.get_item("PixelData", keep_deferred=True))
    length = element.length
    if length not in (needed, needed + needed % 2):
        more = "more" if length > needed else "fewer"
        raise UnreadableError(
            f"file #{item.number}: the pixel data hold {abs(length - needed)} bytes {more} than "
            f"{_frames(item)} × {item.header.Rows} × {item.header.Columns} pixels need; they are missing, "
            "truncated or damaged; copy or export the series again"
        )


def _require_honest_codestreams(item: Slice, frames: list[bytes]) -> None:
    """Refuse images whose own size differs from the header's: decoders allocate what the image says."""
    if item.syntax == RLELossless:  # holds no size; its decoder allocates what the header says
        return
    expected = (int(item.header.Rows), int(item.header.Columns), _samples(item.header))
    for data in frames:
        found = coded_size(data)
        if found != expected:
            raise CodestreamError(
                f"expected {expected[0]} × {expected[1]} pixels but the compressed image has "
                f"{found[0]} × {found[1]}"
            )


def _require_decoder(item: Slice) -> None:
    if not decoders.available(item.syntax):
        raise _no_decoder(item)


def _no_decoder(item: Slice) -> DecoderError:
    package = decoders.package(item.syntax)
    advice = f"pip install '{package}'" if package else "convert the series to Explicit VR Little Endian"
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
