"""Files to headers: what is DICOM, what is damaged, which UIDs are missing."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    generate_uid,
)

from ctflow.dicom.archive import refuse_deflated_bomb
from ctflow.dicom.frames import flattened, is_multi_frame
from ctflow.dicom.opening import PathLike, listing
from ctflow.dicom.options import AS_IT_IS, ReadOptions

__all__ = ["PathLike", "Scan", "Slice", "listing", "quiet", "read_whole", "scan"]


# Texts that are read later: what pydicom cannot convert, which it tells on first use, is damage.
_TEXTS = [
    "Modality",
    "SOPClassUID",
    "FrameOfReferenceUID",
    "ImageType",
    "RescaleType",
    "PhotometricInterpretation",
    "ModalityLUTSequence",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "PatientID",
    "PatientName",
    "ConvolutionKernel",
    "StackID",
    "AcquisitionTime",
    "ContentTime",
]


@dataclass(frozen=True, repr=False)
class Slice:
    """One image: the place of its file in the sorted listing (1-based), its path and its header.

    `frame` counts the images of a multi-frame file from 0; None where the file holds one image.
    """

    number: int
    path: Path
    header: Dataset
    uids_missing: bool = False
    frame: int | None = None

    @property
    def syntax(self) -> UID:
        """Transfer syntax of the file."""
        return UID(str(self.header.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)))

    @property
    def uid(self) -> tuple[str, int]:
        """What makes the image one of its own: SOPInstanceUID and frame."""
        return str(self.header.SOPInstanceUID), self.frame or 0


@dataclass(frozen=True, repr=False)
class Scan:
    """What a folder holds: readable images, numbers of damaged files, count of the rest."""

    slices: list[Slice]
    damaged: list[int]
    others: int


@contextmanager
def quiet(library: str = "pydicom") -> Iterator[None]:
    """Keep a reader from logging or warning: its texts quote values of the header, names among them.

    Args:
        library: name of the reader's logger.
    """
    logger = logging.getLogger(library)
    before = logger.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.disabled = True
        try:
            yield
        finally:
            logger.disabled = before


def scan(
    files: Sequence[Path],
    options: ReadOptions = AS_IT_IS,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Scan:
    """Read every header; DICOM is told by content, a file that claims to be DICOM and is not is damaged."""
    slices: list[Slice] = []
    damaged: list[int] = []
    others = 0
    for number, file in enumerate(files, start=1):
        progress(number / len(files))
        try:
            images = _images(number, file, options)
        except InvalidDicomError:
            claims = file.suffix.lower() in (".dcm", ".dicom", ".ima")
            damaged += [number] if claims else []
            others += not claims
        except (
            Exception
        ):  # pydicom raises many types on damaged headers (AttributeError, struct.error, EOFError)
            damaged.append(number)
        else:
            slices += images
            others += not images
    return Scan(slices, damaged, others)


def _images(number: int, file: Path, options: ReadOptions) -> list[Slice]:
    """The images of one file; none where it is a directory of files.

    Raises:
        ValueError: the file is cut short.
    """
    refuse_deflated_bomb(file)
    header = _header(file, options)
    if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return []
    for name in _TEXTS:
        str(header.get(name))
    missing = _complete(header, file)
    if is_multi_frame(header):
        return [Slice(number, file, frame, missing, k) for k, frame in enumerate(flattened(header))]
    if _cut_short(header):
        raise ValueError("cut short")
    return [Slice(number, file, header, missing)]


def _header(file: Path, options: ReadOptions) -> Dataset:
    try:
        return pydicom.dcmread(file, stop_before_pixels=True)
    except InvalidDicomError:
        if not options.force:
            raise
    header = _forced(file, stop_before_pixels=True)
    if not all(header.get(name) for name in ("SOPClassUID", "Rows", "Columns")):
        raise InvalidDicomError
    return header


def read_whole(file: Path, defer_size: int | None = None) -> Dataset:
    """A data set with its pixels, of a file that `scan` has accepted.

    Args:
        file: path.
        defer_size: elements of more bytes stay in the file until they are used.
    """
    try:
        return pydicom.dcmread(file, defer_size=defer_size)
    except InvalidDicomError:
        return _forced(file)


def _forced(file: Path, stop_before_pixels: bool = False) -> Dataset:
    """A data set without the marker of a DICOM file, in the encoding that its first bytes suggest."""
    dataset = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels, force=True)
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


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
