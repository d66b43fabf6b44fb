"""Recognise files that are not DICOM by their first bytes."""

from __future__ import annotations

import re

_MAGIC = {
    b"\x00\x05\x16\x07": "resource fork of macOS",
    b"\0\0\0\1Bud1": "folder view of macOS",
    b"\xd0\xcf\x11\xe0": "Microsoft compound file",
    b"SQLite format 3\0": "SQLite database",
    b"\xff\xd8\xff": "JPEG picture",
    b"\xff\x4f\xff\x51": "JPEG 2000 picture",
    b"\0\0\0\x0cjP": "JPEG 2000 picture",
    b"\x89PNG": "PNG picture",
    b"GIF8": "GIF picture",
    b"II*\0": "TIFF picture",
    b"MM\0*": "TIFF picture",
    b"%PDF": "PDF document",
    b"\x89HDF": "HDF5 file",
    b"MATLAB": "MATLAB file",
    b"\x93NUMPY": "NumPy array",
    b"PK\x03\x04": "zip archive",
    b"7z\xbc\xaf\x27\x1c": "7z archive",
    b"Rar!": "rar archive",
    b"\x1f\x8b": "gzip file",
    b"BZh": "bzip2 file",
    b"\xfd7zXZ": "xz file",
    b"/annex/objects/": "pointer of git-annex",
    b"version https://git-lfs": "pointer of Git LFS",
}
_PLACED = {257: (b"ustar", "tar archive"), 344: (b"n+1\0", "NIfTI file"), 4: (b"n+2\0", "NIfTI file")}
_PACKED = {"zip archive", "7z archive", "rar archive", "tar archive", "gzip file", "bzip2 file", "xz file"}
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
EMPTY = "empty file"
MACOS = "resource fork of macOS"
START = 512
"""Number of bytes that `kind_of` needs."""


def kind_of(start: bytes) -> str:
    """Describe the kind of a file from its first bytes; "" where it is not known.

    Args:
        start: its first 512 bytes.
    """
    if not start:
        return EMPTY
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    for place, (magic, kind) in _PLACED.items():
        if start[place:].startswith(magic):
            return kind
    is_text = start.startswith((b"\xff\xfe", b"\xfe\xff")) or not _BINARY.search(start)
    return "text" if is_text else ""


def advice_for(kinds: set[str]) -> str:
    """Advice on files of these kinds; "" where there is none."""
    if kinds & _PACKED:
        return "unpack it and give the folder"
    if kinds & {"pointer of git-annex", "pointer of Git LFS"}:
        return "fetch the files that the pointers stand for (git annex get, git lfs pull)"
    if kinds & {"HDF5 file", "MATLAB file"}:
        return "measured data are given as one file, and not as their folder"
    return "give it to ctflow run, which reads NIfTI" if "NIfTI file" in kinds else ""
