"""The size that a compressed image gives itself, read before a decoder allocates it."""

from __future__ import annotations

import struct

_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f"
# Start of frame of JPEG (ISO 10918-1 table B.1, without DHT, JPG and DAC) and of JPEG-LS (ISO 14495-1).
_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD8)}
_SIZ = b"\xff\x51"


def coded_size(data: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and samples per pixel of a JPEG, JPEG-LS or JPEG 2000 codestream; None for another.

    References:
        ISO 10918-1 B.2.2 (frame header); ISO 15444-1 A.5.1 (SIZ).
    """
    try:
        if data.startswith(_JPEG):
            return _jpeg(data)
        return _jpeg_2000(data)
    except (struct.error, IndexError):
        return None


def _jpeg(data: bytes) -> tuple[int, int, int] | None:
    position = 2
    while data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _FRAME:
            rows, columns, samples = struct.unpack_from(">HHB", data, position + 5)
            return rows, columns, samples
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _ALONE:
            position += 2
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def _jpeg_2000(data: bytes) -> tuple[int, int, int] | None:
    """SIZ follows SOC at once; a file format (JP2) has boxes in front of the codestream."""
    start = data.find(_JPEG_2000 + _SIZ)
    if start < 0:
        return None
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, start + 8)
    samples = struct.unpack_from(">H", data, start + 40)[0]
    return y1 - y0, x1 - x0, samples
