"""Files to headers and stored pixels: what is DICOM, what is damaged, which decoder is missing."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, CTImageStorage, MediaStorageDirectoryStorage, generate_uid

from ctflow.errors import DecoderError, NoDicomError, UnreadableError

PathLike = str | os.PathLike[str]

# Transfer syntax UIDs (DICOM PS3.5 annex A) to the package that decodes them; the rest is built into pydicom.
_PACKAGES = {
    "1.2.840.10008.1.2.4.50": "python-gdcm",
    "1.2.840.10008.1.2.4.51": "pylibjpeg-libjpeg",  # 12 bits: gdcm and Pillow refuse them
    "1.2.840.10008.1.2.4.57": "python-gdcm",
    "1.2.840.10008.1.2.4.70": "python-gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg-openjpeg",
}

# Lossy (or possibly lossy) transfer syntaxes and their LossyImageCompressionMethod, PS3.3 C.7.6.1.1.5.1.
LOSSY_METHODS = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.53": "ISO_10918_1",
    "1.2.840.10008.1.2.4.55": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
}


@dataclass(frozen=True, repr=False)
class Slice:
    """One DICOM file: where it stands in the sorted listing (1-based), its path and its header."""

    number: int
    path: Path
    header: Dataset
    uids_missing: bool = False

    @property
    def syntax(self) -> UID:
        """Transfer syntax of the file."""
        return UID(str(self.header.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2")))


@dataclass(frozen=True, repr=False)
class Scan:
    """What a folder holds: readable DICOM files, numbers of damaged ones, count of the rest."""

    slices: list[Slice]
    damaged: list[int]
    others: int


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from logging or warning: its texts quote values of the header, names among them."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.disabled = True
        try:
            yield
        finally:
            logger.disabled = before


def listing(path: PathLike | Sequence[PathLike]) -> list[Path]:
    """Files of a folder (recursive), a file, or a list of both, sorted by path.

    Raises:
        NoDicomError: a path does not exist.
    """
    roots = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(item) for item in path]
    if not all(root.exists() for root in roots):
        raise NoDicomError("expected a folder or files of a CT series, but there is no such path; check it")
    found = {
        file for root in roots for file in ([root] if root.is_file() else root.rglob("*")) if file.is_file()
    }
    return sorted(found)


def scan(files: Sequence[Path]) -> Scan:
    """Read every header; DICOM is told by content, a file that claims to be DICOM and is not is damaged."""
    slices, damaged, others = [], [], 0
    for number, file in enumerate(files, start=1):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
            uids_missing = _complete(header, file)
        except InvalidDicomError:
            claims = file.suffix.lower() in (".dcm", ".dicom", ".ima")
            damaged += [number] if claims else []
            others += not claims
        except (
            Exception
        ):  # pydicom raises many types on damaged headers (AttributeError, struct.error, EOFError)
            damaged.append(number)
        else:
            if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                others += 1
            elif _cut_short(header):
                damaged.append(number)
            else:
                slices.append(Slice(number, file, header, uids_missing))
    return Scan(slices, damaged, others)


def _cut_short(header: Dataset) -> bool:
    """Whether the file ends inside its header, which pydicom reads without a word."""
    return "Modality" not in header or (
        header.SOPClassUID == CTImageStorage and "BitsAllocated" not in header
    )


def _complete(header: Dataset, file: Path) -> bool:
    """Fill in UIDs that a de-identification left empty: from the file meta, else from a hash."""
    known = [
        str(header.get(name, "")) for name in ("PatientID", "StudyDate", "StudyTime", "FrameOfReferenceUID")
    ]
    wanted: dict[str, Callable[[], str]] = {
        "SOPClassUID": lambda: header.file_meta.get("MediaStorageSOPClassUID", CTImageStorage),
        "SOPInstanceUID": lambda: header.file_meta.get("MediaStorageSOPInstanceUID") or _content_uid(file),
        "StudyInstanceUID": lambda: generate_uid(entropy_srcs=["study", *known]),
        "SeriesInstanceUID": lambda: generate_uid(
            entropy_srcs=["series", str(header.get("SeriesNumber", "")), *known]
        ),
    }
    missing = [name for name in wanted if not header.get(name)]
    for name in missing:
        setattr(header, name, wanted[name]())
    return bool(missing)


def _content_uid(file: Path) -> UID:
    return generate_uid(entropy_srcs=[hashlib.sha256(file.read_bytes()).hexdigest()])


def decode(item: Slice) -> NDArray[np.integer]:
    """Stored values of one file, native byte order, (rows, columns).

    A lossy transfer syntax is noted in `item.header`, flagged in the file or not.

    Raises:
        DecoderError: no installed package reads the transfer syntax.
        UnreadableError: the pixels are missing, truncated or damaged.
    """
    _require_decoder(item)
    try:
        dataset = pydicom.dcmread(item.path)
        stored = dataset.pixel_array
    except Exception:  # decoders raise many types on damaged pixels
        # `from None`: their texts quote paths and header values, which name patients.
        raise _decoding_failure(item) from None
    shape = (int(item.header.Rows), int(item.header.Columns))
    if stored.shape != shape:
        raise UnreadableError(
            f"file #{item.number}: expected one image of {shape[0]} × {shape[1]} pixels but the pixel data "
            f"hold an array of {stored.shape}; export the series again"
        )
    _note_lossy(item, len(dataset.PixelData))
    return np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("="))


def _require_decoder(item: Slice) -> None:
    try:
        available = get_decoder(item.syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise _no_decoder(item)


def _no_decoder(item: Slice) -> DecoderError:
    package = _PACKAGES.get(item.syntax)
    advice = f"pip install {package}" if package else "convert the series to Explicit VR Little Endian"
    return DecoderError(
        f"file #{item.number}: no installed decoder reads transfer syntax {item.syntax.name} "
        f"({item.syntax}); {advice}"
    )


def _decoding_failure(item: Slice) -> DecoderError | UnreadableError:
    if item.syntax == "1.2.840.10008.1.2.4.51" and item.header.get("BitsStored", 0) > 8:
        return _no_decoder(item)  # the 8-bit decoders call themselves available and fail
    return UnreadableError(
        f"file #{item.number}: expected pixels in {item.syntax.name} but they are missing, truncated or "
        "damaged; copy or export the series again"
    )


def _note_lossy(item: Slice, coded_bytes: int) -> None:
    header = item.header
    if item.syntax not in LOSSY_METHODS or header.get("LossyImageCompressionRatio"):
        return
    whole = int(header.Rows) * int(header.Columns) * int(header.BitsAllocated) / 8
    header.LossyImageCompression = "01"
    header.LossyImageCompressionRatio = f"{whole / coded_bytes:.4g}"
    header.LossyImageCompressionMethod = LOSSY_METHODS[item.syntax]
