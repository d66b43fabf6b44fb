"""Read headers: find which files are DICOM and which are damaged, and fill in missing UIDs."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    generate_uid,
)

from ctflow.dicom.reading.archive import end_of_meta, refuse_deflated_bomb
from ctflow.dicom.reading.frames import MULTI_FRAME, flattened, is_multi_frame
from ctflow.dicom.reading.inputs import MARKER, PathLike, listing
from ctflow.dicom.reading.kinds import EMPTY, MACOS, START, kind_of
from ctflow.errors import CTFlowError, UnreadableError
from ctflow.system.progress import FractionProgress

__all__ = ["FoundFiles", "PathLike", "Slice", "listing", "quiet", "read_headers", "read_whole"]

NO_SERIES = "SeriesInstanceUID is empty: files of one SeriesNumber, patient and date are taken as a series"
_RECODED = "TransferSyntaxUID is missing or wrong: the encoding was told from the bytes"
_GARBLED = 3  # elements that a data set yields at most when it is read in the wrong byte order
_HEADER = 1 << 16  # bytes that the header of an image takes, with room
_PIXELS, _FLOATS = b"\xe0\x7f\x10\0", (b"\xe0\x7f\x08\0", b"\xe0\x7f\x09\0")
_BITS_ALLOCATED, _MODALITY = 0x00280100, 0x00080060

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
    """One image: the number of its file in the sorted listing (from 1), its path and its header.

    `frame` counts the images of a multi-frame file from 0; None where the file holds one image. `notes` say
    what was filled in for what the header lacks; `irregular` files lack the marker or a correct transfer
    syntax, and only `read_whole` reads them. `pixels_at` is the byte at which the element of uncompressed
    pixels begins, in files that are not parsed once more for them.
    """

    number: int
    path: Path
    header: Dataset
    notes: tuple[str, ...] = ()
    frame: int | None = None
    irregular: bool = False
    pixels_at: int | None = None

    @property
    def syntax(self) -> UID:
        """Transfer syntax of the file."""
        return UID(str(self.header.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)))

    @property
    def uid(self) -> tuple[str, int]:
        """Identity of the image: SOPInstanceUID and frame."""
        return str(self.header.SOPInstanceUID), self.frame or 0


@dataclass(frozen=True, repr=False)
class FoundFiles:
    """Files found in a folder or list, sorted into images and others.

    Args:
        slices: readable images.
        unmarked: images in files without the marker of a DICOM file; they count only on request.
        lost: files that should hold an image but yield none, by cause: their numbers in the sorted listing,
            0 for one that is not in it.
        others: number of files of other kinds.
    """

    slices: list[Slice]
    unmarked: list[Slice]
    lost: dict[str, list[int]]
    others: Counter[str]


@contextmanager
def quiet(library: str = "pydicom") -> Iterator[None]:
    """Keep a reader from logging or warning: its messages quote values of the header, including names.

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


def read_headers(
    files: Sequence[Path],
    lost: Mapping[str, int] = MappingProxyType({}),
    progress: FractionProgress = lambda fraction: None,
) -> FoundFiles:
    """Read every header; DICOM files, and damaged ones, are recognised by content.

    Args:
        files: the sorted listing.
        lost: number of files that the listing could not reach, by cause.
        progress: called with the fraction that has been read.
    """
    found = FoundFiles([], [], {cause: [0] * count for cause, count in lost.items()}, Counter())
    strangers: list[tuple[int, Path, bytes]] = []
    for number, file in enumerate(files, start=1):
        progress(number / len(files))
        try:
            start = _start(file)
            if start[128:132] == MARKER:
                images = _images(number, file, marked=True)
                found.slices.extend(images)
                found.others["DICOMDIR"] += not images
            elif unmarked := _without_marker(number, file, start):
                found.unmarked.extend(unmarked)
            else:
                strangers.append((number, file, start))
        except CTFlowError as error:  # the texts of others quote paths and values
            found.lost.setdefault(str(error), []).append(number)
        except OSError as error:
            words = f"cannot be opened, {error.strerror}"
            found.lost.setdefault(words, []).append(number)
        except Exception:  # pydicom raises many types on damaged headers
            found.lost.setdefault("damaged header", []).append(number)
    _sort_strangers(found, strangers)
    return found


def _start(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(START)


def _images(number: int, file: Path, marked: bool) -> list[Slice]:
    """The images of one file; none where it is a DICOMDIR.

    Raises:
        UnreadableError: the file is cut short or contradicts itself.
    """
    refuse_deflated_bomb(file)
    header, recoded, pixels_at = _data_set(file, stop_before_pixels=True)
    if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return []
    for name in _TEXTS:
        str(header.get(name))
    if not any(name in header for name in ("SOPClassUID", "Modality", "SeriesInstanceUID")):
        raise UnreadableError("damaged header")
    if _cut_short(header):
        raise UnreadableError("cut short in the header")
    notes = (*_complete(header, file), *([_RECODED] if recoded else []))
    if is_multi_frame(header):
        frames = enumerate(flattened(header))
        return [Slice(number, file, frame, notes, k, recoded or not marked) for k, frame in frames]
    irregular = recoded or not marked
    return [Slice(number, file, header, notes, None, irregular, None if irregular else pixels_at)]


def _without_marker(number: int, file: Path, start: bytes) -> list[Slice]:
    """The images of a file that is DICOM except for its missing marker; none where it is something else."""
    if kind_of(start):
        return []
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        images = all(header.get(name) for name in ("SOPClassUID", "Rows", "Columns"))
        return _images(number, file, marked=False) if images else []
    except Exception:  # what is no DICOM file fails as DICOM in any way
        return []


def _sort_strangers(found: FoundFiles, strangers: list[tuple[int, Path, bytes]]) -> None:
    """Find which files without an image should hold one, by their ending, folder and first bytes."""
    images = {(item.path.parent, _ending(item.path)) for item in found.slices}
    series = {str(item.header.SeriesInstanceUID).encode() for item in found.slices}
    for number, file, start in strangers:
        kind = kind_of(start)
        endings = {ending.lower() for ending in file.suffixes[-2:]}  # x.dcm.gz too
        named = kind != MACOS and bool(endings & {".dcm", ".dicom", ".ima"})
        placed = kind in ("", EMPTY) and (file.parent, _ending(file)) in images
        if named or placed or (not kind and _tells(file, series)):
            found.lost.setdefault(kind or "no DICOM file, or its start is damaged", []).append(number)
        else:
            found.others[kind or "unknown kind"] += 1


def _ending(file: Path) -> str:
    """The ending of a file name; names that are UIDs or numbers have none."""
    ending = file.suffix.lower()
    return "" if ending[1:].isdigit() else ending


def _tells(file: Path, series: set[bytes]) -> bool:
    """Whether the start of a file names one of these series."""
    with file.open("rb") as stream:
        start = stream.read(_HEADER)
    return any(uid in start for uid in series)


def read_whole(file: Path, defer_size: int | None = None) -> Dataset:
    """Read a data set with its pixels from a file that `read_headers` has accepted.

    Args:
        file: path.
        defer_size: elements of more bytes than this stay in the file until they are used.
    """
    if defer_size is not None:  # reads the file again by its name, which pydicom does for regular ones
        return pydicom.dcmread(file, defer_size=defer_size)
    return _data_set(file)[0]


def _data_set(file: Path, stop_before_pixels: bool = False) -> tuple[Dataset, bool, int | None]:
    """A data set, with or without marker, in the encoding of its bytes; whether the file states another.

    Last, the byte at which plain pixels begin that have been left out.
    """
    with file.open("rb") as stream:
        dataset: Dataset = pydicom.dcmread(stream, stop_before_pixels=stop_before_pixels, force=True)
        at = stream.tell()
        pixels = stream.read(12)
    told = dataset.file_meta.get("TransferSyntaxUID")
    recoded = not told
    if told and len(dataset) <= _GARBLED and told != DeflatedExplicitVRLittleEndian:
        again, pixels_again = _by_bytes(file, stop_before_pixels)
        if recoded := len(again) > len(dataset):
            again.file_meta, dataset, pixels = dataset.file_meta, again, pixels_again
    if recoded:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    if stop_before_pixels and dataset.get("SOPClassUID") in (CTImageStorage, *MULTI_FRAME):
        _require_honest_pixels(pixels, UID(str(dataset.file_meta.TransferSyntaxUID)))
    plain = told in (ExplicitVRLittleEndian, ImplicitVRLittleEndian) and pixels[:4] == _PIXELS
    form = pixels[
        4:6
    ]  # of other explicit elements, letters too; of implicit ones, the low half of the length
    plain &= form in (b"OB", b"OW") or not (form.isalpha() and form.isupper())
    return dataset, recoded, at if plain else None


def _require_honest_pixels(start: bytes, syntax: UID) -> None:
    """Refuse pixels that do not match the transfer syntax; `start` is the beginning of their element.

    Raises:
        UnreadableError: they are compressed and should not be, or the reverse, or are floating-point numbers.
    """
    if start[:4] in _FLOATS:
        raise UnreadableError("floating-point pixels, which a CT image cannot have")
    if start[:4] != _PIXELS or not syntax.is_transfer_syntax or syntax.is_private:
        return
    packed = b"\xff\xff\xff\xff" in (start[4:8], start[8:12])  # an undefined length: implicit, explicit VR
    if packed != syntax.is_encapsulated:
        words = "compressed" if packed else "not compressed"
        raise UnreadableError(f"TransferSyntaxUID missing or wrong, as the pixels are {words}")


def _by_bytes(file: Path, stop_before_pixels: bool) -> tuple[Dataset, bytes]:
    """The data set behind the file meta, in the encoding of its first bytes, and the start of its pixels."""
    with file.open("rb") as stream:
        rest = stream.read()
    body = BytesIO(rest[end_of_meta(rest[:4096])[0] :])
    return pydicom.dcmread(body, stop_before_pixels=stop_before_pixels, force=True), body.read(12)


def _cut_short(header: Dataset) -> bool:
    """Whether the file ends inside its header, which pydicom accepts silently."""
    last = _BITS_ALLOCATED if header.get("SOPClassUID") == CTImageStorage else _MODALITY
    return max(header.keys(), default=0) < last


def _complete(header: Dataset, file: Path) -> list[str]:
    """Fill in what de-identification left empty, from the file meta or a hash; return notes on it."""
    known = [
        str(header.get(name, "")) for name in ("PatientID", "StudyDate", "StudyTime", "FrameOfReferenceUID")
    ]
    kind = CTImageStorage if header.get("Modality") == "CT" else UID("")
    wanted: dict[str, Callable[[], str]] = {
        "SOPClassUID": lambda: header.file_meta.get("MediaStorageSOPClassUID") or kind,
        "SOPInstanceUID": lambda: header.file_meta.get("MediaStorageSOPInstanceUID") or _content_uid(file),
        "StudyInstanceUID": lambda: generate_uid(entropy_srcs=["study", *known]),
        "SeriesInstanceUID": lambda: generate_uid(
            entropy_srcs=["series", str(header.get("SeriesNumber", "")), *known]
        ),
    }
    missing = [name for name in wanted if not header.get(name)]
    for name in missing:
        setattr(header, name, wanted[name]())
    notes = ["empty UIDs: filled in from the file meta or from the content"] if missing else []
    if "SeriesInstanceUID" in missing:
        notes.append(NO_SERIES)
    if not header.get("Modality") and header.SOPClassUID == CTImageStorage:
        header.Modality = "CT"
        notes.append("Modality is empty: taken as CT, which SOPClassUID says")
    return notes


def _content_uid(file: Path) -> UID:
    return generate_uid(entropy_srcs=[hashlib.sha256(file.read_bytes()).hexdigest()])
