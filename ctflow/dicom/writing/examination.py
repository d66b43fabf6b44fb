"""The examination (DICOM's study) that a written series belongs to: patient, study and frame of reference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid

from ctflow.dicom.reading.grouping import number
from ctflow.dicom.source import Source
from ctflow.dicom.writing import header as headers
from ctflow.dicom.writing.deidentify import pseudonym
from ctflow.dicom.writing.valid_values import valid_uid

if TYPE_CHECKING:
    from ctflow.volume import Volume


@dataclass(frozen=True)
class Examination:
    """The examination that a series is written into: that of its source, or a new one.

    Args:
        uid: Study Instance UID.
        frame: Frame of Reference UID.
        source: slices that the series was derived from, if it comes from DICOM.
        same_place: whether the voxels of each slice lie where those of its source do.
        derived: whether the pixels were computed from other images.
        identified: whether patient and study are named as in the source.
    """

    uid: UID
    frame: UID
    source: Source | None
    same_place: tuple[bool, ...]
    derived: bool
    identified: bool

    def header(self, k: int, now: datetime) -> Dataset:
        """Header of slice k before it is described: patient, study, acquisition, links to its source."""
        if self.source is None:
            header = self._unnamed(now)
        elif self.identified:
            header = self._linked(k, self.source.headers)
        else:
            header = headers.deidentified_header(self.source.headers[k])
        if self.source is not None:
            headers.note_pixels(header, self.source.headers[k])
        header.StudyInstanceUID, header.FrameOfReferenceUID = self.uid, self.frame
        return header

    def number(self) -> int:
        """Default series number: 1000 above that of the source."""
        return int(number(self.source.headers[0], "SeriesNumber") or 0) + 1000 if self.source else 1

    def _linked(self, k: int, sources: tuple[Dataset, ...]) -> Dataset:
        header = headers.copied_header(sources[k], sources[0])
        header.SourceImageSequence = [headers.source_reference(sources[k], self.same_place[k])]
        header.ContributingEquipmentSequence = headers.equipment(sources[k])
        return header

    def _unnamed(self, now: datetime) -> Dataset:
        """Header without a patient; each examination has its own ID, since PACS tell patients apart by it."""
        header = Dataset()
        header.PatientName, header.PatientID = "CTFLOW^UNNAMED", pseudonym(self.uid)
        header.PatientPosition = "HFS"
        headers.add_required(header)
        begun = _begun(self.uid, now)
        header.StudyDate, header.StudyTime = begun.strftime("%Y%m%d"), begun.strftime("%H%M%S")
        header.StudyID = "1"
        header.LossyImageCompression = "00"
        if not self.derived:
            header.BurnedInAnnotation = "NO"
        header.ContributingEquipmentSequence = headers.equipment(None)
        return header


_BEGUN: dict[str, datetime] = {}


def _begun(uid: str, now: datetime) -> datetime:
    """Time at which this process wrote the first series of an examination; later series share it."""
    return _BEGUN.setdefault(uid, now)


def examination_of(
    volume: Volume, like: Volume | None, uid: Callable[[str], UID], identified: bool
) -> Examination:
    """Find the examination of a volume that was made from `like`.

    All series that are made from one input share its study and frame of reference.

    Args:
        volume: voxels to be written.
        like: the volume that was read; None for an object that was simulated.
        uid: new UIDs by role, for an object without input.
        identified: keep patient and study of the source; otherwise they become functions of them.
    """
    if like is None:
        return Examination(uid("study"), uid("frame of reference"), None, (), False, identified)
    if not isinstance(like.source, Source):
        content = hashlib.sha256(like.data.cpu().numpy().tobytes()).hexdigest()
        origin = [content, repr(like.geometry)]
        study, frame = _new("study", *origin), _new("frame of reference", *origin)
        return Examination(study, frame, None, (), True, identified)
    first = like.source.headers[0]
    study = valid_uid(str(first.StudyInstanceUID))
    frame = valid_uid(str(first.get("FrameOfReferenceUID") or _new("frame of reference", study)))
    if not identified:
        study, frame = _new("de-identified study", study), _new("de-identified frame", frame)
    return Examination(study, frame, like.source, _same_place(volume, like, like.source), True, identified)


def _same_place(volume: Volume, like: Volume, source: Source) -> tuple[bool, ...]:
    """Whether each slice lies where its header says: not if it was interpolated or straightened."""
    affine = np.array(volume.geometry.affine, dtype=np.float64)
    same = bool(np.allclose(affine, like.geometry.affine, atol=1e-3))
    positions = [header.get("ImagePositionPatient") for header in source.headers]
    corners = [affine[:3, 3] + k * affine[:3, 0] for k in range(len(positions))]
    return tuple(
        same and position is not None and np.allclose(np.array(position, float), corner, atol=1e-3)
        for position, corner in zip(positions, corners, strict=True)
    )


def _new(*origin: str) -> UID:
    return generate_uid(entropy_srcs=list(origin))
