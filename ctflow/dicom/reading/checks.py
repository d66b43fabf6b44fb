"""Check whether a group of slices is one CT volume in HU, and collect every reason to refuse it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset

from ctflow.dicom.options import AS_IT_IS, ReadOptions
from ctflow.dicom.reading import grid
from ctflow.dicom.reading.decoders import LOSSY_METHODS
from ctflow.dicom.reading.decoding import decode
from ctflow.dicom.reading.files import Slice
from ctflow.dicom.reading.grouping import Group, image_type, number
from ctflow.dicom.reading.padding import padding_is_tissue
from ctflow.dicom.writing.valid_values import is_valid_uid
from ctflow.errors import DecoderError, UnreadableError

# Other quantities that a CT image may hold (PS3.3 C.11.1.1.2); another text might be anything.
_QUANTITIES = {"OD", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"}
_WRITTEN_UIDS = ("StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")
_STEEPEST = 1e3
_FARTHEST = 1e5


def tidy(group: Group) -> None:
    """Sort `group` in space and drop exact copies."""
    group.slices = grid.sorted_by_position(group.slices)
    _drop_copies(group)


def checked(group: Group, options: ReadOptions = AS_IT_IS) -> Group:
    """Check a group that was tidied, and return it with every reason to refuse it and all warnings."""
    group = replace(group, reasons=[], warnings=[], beside=[*group.beside])
    headers = [item.header for item in group.slices]
    _check_meaning(group, headers)
    _warn(group, headers)
    grid.check_grid(group, options)
    return group


def count_patients(headers: Iterable[Dataset]) -> int:
    """Number of patients that the headers name."""
    return len({(str(header.get("PatientID", "")), str(header.get("PatientName", ""))) for header in headers})


def _drop_copies(group: Group) -> None:
    kept: list[Slice] = []
    for run in grid.grouped_by_position(group.slices):
        kept += run if len(run) == 1 else _without_copies(run)
    if dropped := len(group.slices) - len(kept):
        group.beside.append(f"{dropped} exact copies of slices dropped")
    group.slices = kept


def _without_copies(run: list[Slice]) -> list[Slice]:
    """Keep one slice of every (UID, pixels, rescale); those that cannot be decoded are refused later."""
    kept: dict[object, Slice] = {}
    for item in run:
        try:
            pixels = decode(item).tobytes()
        except (DecoderError, UnreadableError):
            pixels = str(item.number).encode()
        rescale = number(item.header, "RescaleSlope"), number(item.header, "RescaleIntercept")
        kept.setdefault((item.uid, pixels, rescale), item)
    return list(kept.values())


def _check_meaning(group: Group, headers: list[Dataset]) -> None:
    found = {
        f"slices from {count_patients(headers)} patients in one series": count_patients(headers) > 1,
        "RescaleSlope or RescaleIntercept is missing or absurd, so there are no HU": not all(
            map(_rescaled, headers)
        ),
        "the pixels are not grey values (PhotometricInterpretation), expected MONOCHROME2": not all(
            map(_grey, headers)
        ),
        "PhotometricInterpretation changes within the series": len(set(map(_shown, headers))) > 1,
        "a table (ModalityLUTSequence) instead of RescaleSlope": any(
            header.get("ModalityLUTSequence") for header in headers
        ),
        "burned-in annotation (text in the pixels)": any(
            str(header.get("BurnedInAnnotation", "")).strip() == "YES" for header in headers
        ),
    }
    group.reasons += [reason for reason, holds in found.items() if holds]
    kinds = {str(header.get("RescaleType") or "HU").strip() for header in headers} - {"HU"}
    words = {kind if kind in _QUANTITIES else "that is not in the standard" for kind in kinds}
    group.reasons += [f"RescaleType {kind}, expected HU" for kind in sorted(words)]


def _shown(header: Dataset) -> str:
    return str(header.get("PhotometricInterpretation") or "MONOCHROME2").strip()


def _grey(header: Dataset) -> bool:
    """Whether the image is grey; MONOCHROME1 changes how CT numbers are shown, not what they are."""
    return _shown(header) in ("MONOCHROME1", "MONOCHROME2")


def _rescaled(header: Dataset) -> bool:
    slope, intercept = number(header, "RescaleSlope"), number(header, "RescaleIntercept")
    if not slope or intercept is None:
        return False
    return abs(slope) <= _STEEPEST and abs(intercept) <= _FARTHEST


def _warn(group: Group, headers: list[Dataset]) -> None:
    types = [image_type(header)[:2] for header in headers]
    thickness = {number(header, "SliceThickness") or 0.0 for header in headers}
    lossy = [
        item.syntax in LOSSY_METHODS or item.header.get("LossyImageCompression") == "01"
        for item in group.slices
    ]
    found = {
        "lossy compression: CT numbers are not the scanner's": any(lossy),
        "derived images (ImageType DERIVED): not the scanner's reconstruction": any(
            "DERIVED" in t for t in types
        ),
        "secondary images (ImageType SECONDARY)": any("SECONDARY" in t for t in types),
        f"SliceThickness varies from {min(thickness):g} to {max(thickness):g} mm": np.ptp(list(thickness))
        > 0,
        "UIDs that the standard forbids: new ones, derived from them, are written in their place": not all(
            is_valid_uid(str(header.get(name) or "0.0")) for header in headers for name in _WRITTEN_UIDS
        ),
        "PixelPaddingValue is also a value of tissue: not taken as padding": any(
            map(padding_is_tissue, headers)
        ),
        f"{group.frames} frames of reference in one series (de-identified?): taken as one": group.frames > 1,
    }
    group.warnings += [warning for warning, holds in found.items() if holds]
    group.warnings += dict.fromkeys(note for item in group.slices for note in item.notes)
