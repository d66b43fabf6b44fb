"""Unpack zip archives and deflated files safely: their headers can claim any size and path."""

from __future__ import annotations

import os
import re
import shutil
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ctflow.errors import UnreadableError

# CT deflates by factors of two to three, blank slices by a hundred, bombs by a thousand. Small ones are
# harmless.
_RATIO = 100
_HARMLESS_BYTES = 64 << 20
_MOST_BYTES = 16 << 30
_MOST_FILES = 100_000
_CHUNK = 1 << 20
_ENDING = re.compile(r"(\.[A-Za-z0-9]{1,8})?$")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_LONG_FORM = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"OD", b"UC", b"UR")


def unpack(archive: Path, folder: Path) -> tuple[list[Path], int]:
    """Unpack a zip archive into `folder`; files are named by number and keep their ending.

    Returns:
        The files, and how many could not be unpacked completely.

    Raises:
        UnreadableError: a path leads out of the archive, it unpacks to an absurd size, or it is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _refuse(members, archive.stat().st_size, shutil.disk_usage(folder).free)
            written = [_write(opened, member, folder, k) for k, member in enumerate(members, start=1)]
            return [file for file in written if file], written.count(None)
    except (zipfile.BadZipFile, ValueError, OSError):
        # `from None`: the texts quote names of members, which name patients.
        raise UnreadableError("expected a zip archive but it is damaged; copy it again") from None
    except RuntimeError:  # zipfile has no password, or (NotImplementedError) knows no such compression
        raise UnreadableError(
            "the zip archive is encrypted or packed in an unknown way; unpack it and give the folder"
        ) from None


def _refuse(members: list[zipfile.ZipInfo], packed: int, free: int) -> None:
    if any(_climbs(member.filename) for member in members):
        raise UnreadableError(
            "expected a zip archive of files but one of its paths leads outside of it; nothing was unpacked"
        )
    size = sum(member.file_size for member in members)
    allowed = min(max(_HARMLESS_BYTES, _RATIO * packed), _MOST_BYTES, free // 2)
    if size > allowed or len(members) > _MOST_FILES:
        raise UnreadableError(
            f"the zip archive claims {len(members)} files of {size / 2**20:.0f} MiB in {packed / 2**20:.2f} "
            f"MiB; at most {_MOST_FILES} files of {allowed / 2**20:.0f} MiB are unpacked; unpack it yourself"
        )


def _climbs(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in name.split("/", maxsplit=1)[0]


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, number: int) -> Path | None:
    """Write a member as a file; None where it is damaged."""
    target = folder / f"{number:06d}{_ENDING.search(member.filename)[0]}"  # type: ignore[index]
    try:
        # ZipExtFile yields at most the declared size, which was counted, and checks the checksum.
        with archive.open(member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, _CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        target.unlink(missing_ok=True)
        return None
    return target


def refuse_deflated_bomb(file: Path) -> None:
    """Inflate a file in the deflated transfer syntax piece by piece and stop if its size becomes absurd.

    Raises:
        UnreadableError: the file inflates to more than 100 times its size (and 64 MiB).
    """
    with file.open("rb") as stream:
        start, syntax = end_of_meta(stream.read(4096))
        if syntax != _DEFLATED:
            return
        allowed = max(_HARMLESS_BYTES, _RATIO * os.fstat(stream.fileno()).st_size)
        stream.seek(start)
        inflate, whole = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while piece := inflate.unconsumed_tail or stream.read(_CHUNK):
            whole += len(inflate.decompress(piece, _CHUNK))
            if whole > allowed:
                raise UnreadableError("the file inflates to more than 100 times its size")


def end_of_meta(start: bytes) -> tuple[int, bytes]:
    """Offset of the data set behind the file meta group, and the transfer syntax named there.

    Args:
        start: the first 4096 bytes of a file.
    """
    position = 132 if start[128:132] == b"DICM" else 0
    syntax = b""
    while start[position : position + 2] == b"\x02\x00" and len(start) >= position + 12:
        form = start[position + 4 : position + 6]
        header = 12 if form in _LONG_FORM else 8
        length = struct.unpack_from(
            "<I" if header == 12 else "<H", start, position + header - (4 if header == 12 else 2)
        )[0]
        if start[position + 2 : position + 4] == b"\x10\x00":
            syntax = start[position + header : position + header + length].strip(b"\0 ")
        position += header + length
    return position, syntax
