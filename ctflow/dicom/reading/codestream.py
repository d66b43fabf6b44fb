"""Check compressed images before they are decoded: frame boundaries, size, completeness."""

from __future__ import annotations

import re
import struct
from io import BytesIO
from itertools import accumulate, pairwise

from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments, parse_basic_offsets

_JPEG, _JPEG_2000, _JP2 = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP"
# Start of frame of JPEG (ISO 10918-1 table B.1, without DHT, JPG and DAC) and of JPEG-LS (ISO 14495-1).
_JPEG_LS = 0xF7
_FRAME = {*range(0xC0, 0xD0), _JPEG_LS} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD8)}
_SCAN, _END = 0xDA, 0xD9
# What ends coded samples: a marker that is no restart. JPEG stuffs a byte of 0 behind 0xFF, JPEG-LS a bit.
_BEHIND_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_BEHIND_SCAN_LS = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
_TILE_PART, _END_2000 = 0xFF90, 0xFFD9

Size = tuple[int, int, int]
"""Rows, columns and samples per pixel."""


class CodestreamError(ValueError):
    """Compressed data are incomplete; the message repeats no text of the header."""


def coded_frames(dataset: Dataset, many: int, one_fragment_each: bool) -> list[bytes]:
    """Return the codestreams of encapsulated PixelData, one for each frame.

    Frames are recognised by their own first bytes; offset tables must agree with them.

    Args:
        dataset: with PixelData and, where there is one, the ExtendedOffsetTable.
        many: frames that the header announces.
        one_fragment_each: whether each frame is one fragment, as in RLE, which does not mark where frames
            begin.

    Raises:
        CodestreamError: there are more or fewer frames, or an offset table is wrong.
        ValueError: PixelData is not a sequence of fragments.

    References:
        DICOM PS3.5 A.4; PS3.3 C.7.6.3.1.8 (extended offset table).
    """
    buffer = BytesIO(dataset.PixelData)
    table = parse_basic_offsets(buffer)
    fragments = list(generate_fragments(buffer))
    starts = (_JPEG, _JPEG_2000, _JP2)
    firsts = [k for k, one in enumerate(fragments) if one_fragment_each or one.startswith(starts)]
    if len(firsts) != many or firsts[0] != 0:
        raise CodestreamError(f"expected {many} compressed images but there are {len(firsts)}")
    places = [0, *accumulate(8 + len(one) for one in fragments)]
    frames = [b"".join(fragments[a:b]) for a, b in pairwise([*firsts, len(fragments)])]
    offsets = [places[k] for k in firsts]
    if table not in ([], offsets) or not _agree(dataset, offsets, frames):
        raise CodestreamError("expected an offset table that points at the frames but it does not")
    return frames


def _agree(dataset: Dataset, offsets: list[int], frames: list[bytes]) -> bool:
    """Whether the extended offset table, if any, describes these frames; a byte may pad each."""
    if "ExtendedOffsetTable" not in dataset:
        return True
    form = f"<{len(frames)}Q"
    told = [dataset.get(name) or b"" for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    if any(len(values) != struct.calcsize(form) for values in told):
        return False
    places, lengths = (struct.unpack(form, values) for values in told)
    pads = [len(frame) - length for frame, length in zip(frames, lengths, strict=True)]
    return list(places) == offsets and set(pads) <= {0, 1}


def coded_size(data: bytes) -> Size:
    """Read the size of a JPEG, JPEG-LS or JPEG 2000 codestream from its own header.

    Raises:
        CodestreamError: it is none of these, does not reach its end marker, or continues behind it.

    References:
        ISO 10918-1 B.1.1, B.2.2; ISO 14495-1 C.1; ISO 15444-1 A.4 (delimiters), A.5.1 (SIZ).
    """
    try:
        size, end = _jpeg(data) if data.startswith(_JPEG) else _jpeg_2000(data)
    except (struct.error, IndexError):
        raise CodestreamError("expected a whole compressed image but it is truncated") from None
    if data[end + 1 :].strip(b"\0") and not data.startswith(_JP2):
        raise CodestreamError(f"expected one compressed image but {len(data) - end} bytes follow its end")
    return size


def _jpeg(data: bytes) -> tuple[Size, int]:
    """Size, and the offset behind the end marker."""
    position, size, entropy = 2, None, _BEHIND_SCAN
    while data[position] == 0xFF:
        marker = data[position + 1]
        if marker == _END and size:
            return size, position + 2
        if marker in _FRAME:
            rows, columns, samples = struct.unpack_from(">HHB", data, position + 5)
            size = rows, columns, samples
            entropy = _BEHIND_SCAN_LS if marker == _JPEG_LS else _BEHIND_SCAN
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _ALONE:
            position += 2
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
        if marker == _SCAN:
            found = entropy.search(data, position)
            position = found.start() if found else len(data)
    raise CodestreamError("expected a whole compressed image but its markers are damaged")


def _jpeg_2000(data: bytes) -> tuple[Size, int]:
    """Size, and the offset behind the end marker; the JP2 file format has boxes before the codestream."""
    start = data.find(_JPEG_2000)
    if start < 0:
        raise CodestreamError("expected a compressed image but the data are none")
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, start + 8)
    size = y1 - y0, x1 - x0, struct.unpack_from(">H", data, start + 40)[0]
    position = start + 2
    while (marker := struct.unpack_from(">H", data, position)[0]) != _END_2000:
        length = 2 + struct.unpack_from(">H", data, position + 2)[0]
        if marker == _TILE_PART:  # a length of 0 reaches to the end
            told = struct.unpack_from(">I", data, position + 6)[0]
            length = max(length, told) if told else len(data.rstrip(b"\0")) - 2 - position
        if length <= 2 or marker < 0xFF01:
            raise CodestreamError("expected a whole compressed image but its markers are damaged")
        position += length
    return size, position + 2
