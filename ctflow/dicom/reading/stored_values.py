"""Extract the numbers in pixel words by the bits of the header; words that contradict it are refused.

Of the BitsAllocated of a word, a number takes BitsStored, the highest of which is HighBit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ctflow.dicom.reading.grouping import number
from ctflow.errors import UnreadableError

# Of neighbours that lie in different halves of the range, the share that lies more than half the range apart:
# near 0 in an image, near 1 where its sign is read wrong, 1/2 in pure noise.
_TORN = 0.75
# Metal is as sharp, and small; air and fat, which are what wraps around, are not.
_METAL = 0.05
# Air, tissue and bone lie as far apart where a narrow range is stretched over all bits.
_EDGE_HU = 1500.0

_OVERLAYS = range(0x6000, 0x6020, 2)


def stored_values(words: NDArray[np.integer], header: Dataset, file: int) -> NDArray[np.integer]:
    """Extract the numbers from the words of one image, (rows, columns).

    They are shifted down where HighBit lies above BitsStored - 1, and have their sign at HighBit where
    PixelRepresentation is 1. The other bits must be empty, repeat the sign, or belong to an overlay that the
    header declares there.

    Args:
        words: as they are stored, in native byte order.
        header: BitsAllocated, BitsStored, HighBit and PixelRepresentation.
        file: number of the file, for the message.

    Raises:
        UnreadableError: the bits are impossible, or the words contradict them.

    References:
        DICOM PS3.5 8.1.1 (pixel cells).
    """
    allocated, stored, high = _bits(header)
    if not 0 < stored <= high + 1 <= allocated or 8 * words.itemsize > allocated:
        raise _contradiction(file, f"{stored} bits up to bit {high} of {allocated}", "that cannot be")
    word = np.dtype(f"u{allocated // 8}")
    words = words.astype(word)
    values = words.view(f"i{word.itemsize}") if header.get("PixelRepresentation") else words
    values = (values << (allocated - 1 - high)) >> (allocated - stored)
    again = (values << (high + 1 - stored)).view(word)
    free = word.type((1 << allocated) - 1 - _overlay_bits(header, range(high + 1 - stored, high + 1)))
    if ((again ^ words) & free).any():  # the bits above do not repeat the sign; are they empty?
        field = word.type((1 << (high + 1)) - 1)
        if (((again & field) ^ words) & free).any():
            raise _contradiction(file, f"{stored} bits up to bit {high} of {allocated}", "others are in use")
        require_sign(values, header, file)
    return values


def require_sign(values: NDArray[np.integer], header: Dataset, file: int) -> None:
    """Refuse values read with the wrong sign, which puts neighbours at opposite ends of the range.

    Args:
        values: values of one image, (rows, columns).
        header: BitsStored, PixelRepresentation and RescaleSlope.
        file: number of the file, for the message.

    Raises:
        UnreadableError: the image would be smooth if read with the other sign.
    """
    allocated, stored, _ = _bits(header)
    signed, half = bool(header.get("PixelRepresentation")), 1 << (stored - 1)
    upper = values >= (0 if signed else half)
    if not signed and stored < allocated and upper.mean() < _METAL:
        return
    across = upper[:, 1:] != upper[:, :-1]
    steps = values[:, 1:][across].astype(np.int64) - values[:, :-1][across]
    slope = abs(number(header, "RescaleSlope") or 1.0)
    if len(steps) and (abs(steps) > max(half, _EDGE_HU / slope)).mean() > _TORN:
        expected = f"{'signed' if signed else 'unsigned'} numbers (PixelRepresentation)"
        raise _contradiction(file, expected, f"{len(steps)} neighbours are torn apart by that")


def _bits(header: Dataset) -> tuple[int, int, int]:
    """BitsAllocated, BitsStored and HighBit."""
    stored, high = int(header.BitsStored), header.get("HighBit")
    return int(header.BitsAllocated), stored, stored - 1 if high in (None, "") else int(high)


def _overlay_bits(header: Dataset, field: range) -> int:
    """Bits outside the number that hold overlays without data of their own (PS3.3 C.9.2, retired)."""
    places = [header.get((group, 0x0102)) for group in _OVERLAYS if (group, 0x3000) not in header]
    taken = {int(place.value) for place in places if place is not None and place.value not in (None, "")}
    return sum(1 << bit for bit in taken if bit not in field and 0 <= bit < int(header.BitsAllocated))


def _contradiction(file: int, expected: str, found: str) -> UnreadableError:
    return UnreadableError(
        f"file #{file}: the header promises {expected} but {found} in the pixels; export the series again, "
        "with BitsStored, HighBit and PixelRepresentation as its pixels have them"
    )
