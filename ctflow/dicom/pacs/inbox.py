"""Objects of a requested series as they arrive: each is checked and written once, all else is refused."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.pixels.utils import get_expected_length
from pydicom.tag import Tag

from ctflow.dicom.pacs.quota import Quota
from ctflow.dicom.pacs.status import SUCCESS
from ctflow.dicom.reading.archive import refuse_deflated_bomb
from ctflow.dicom.writing.folder import file_name
from ctflow.errors import PacsError

CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""SOP classes of CT images: classic, enhanced, and enhanced converted from classic."""

# PS3.4 table B.2-1 and PS3.7 annex C.
_NOT_ALLOWED, _DUPLICATE, _FULL, _MISMATCH, _DAMAGED = 0x0124, 0x0111, 0xA700, 0xA900, 0xC000
_REFUSALS = {
    "of another study or series": _NOT_ALLOWED,
    "more than were announced": _NOT_ALLOWED,
    "after the end": _NOT_ALLOWED,
    "sent twice": _DUPLICATE,
    "not the object that was announced": _MISMATCH,
    "no CT image": _MISMATCH,
    "without a UID of digits and dots, 64 at most": _MISMATCH,
    "cut short or damaged": _DAMAGED,
}
_MOST_REFUSED = 100  # a PACS that goes on is not asked for a reason
UID = r"[0-9.]{1,64}"
"""What a UID looks like; stricter rules are not kept by all archives."""

_NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_PIXELS = Tag("PixelData")
_UNDEFINED = 0xFFFFFFFF


class Inbox:
    """Receives the objects of one series, on one connection or several.

    Args:
        folder: where they are written.
        study: Study Instance UID that was asked for.
        series: Series Instance UID that was asked for.
        announced: number of objects that the PACS has; None where it does not say.
        quota: limits on bytes and time.
    """

    def __init__(self, folder: Path, study: str, series: str, announced: int | None, quota: Quota) -> None:
        self.folder, self.study, self.series = folder, study, series
        self.announced, self.quota = announced, quota
        self.refused: Counter[str] = Counter()
        self.failure: OSError | None = None
        self._uids: set[str] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __len__(self) -> int:
        return len(self._uids)

    def take(self, event: Any) -> int:
        """Write the object of a C-STORE request if it was asked for, and return the status to answer with."""
        self.quota.next_object(id(event.assoc.dul.socket))
        request = event.request
        uid, sop_class = str(request.AffectedSOPInstanceUID), str(request.AffectedSOPClassUID)
        reason = self.put(event.encoded_dataset, uid, sop_class)
        return _FULL if self.failure is not None else _REFUSALS.get(reason, SUCCESS)

    def put(self, encoded: Callable[[], bytes], uid: str, sop_class: str) -> str:
        """Write an object if it was asked for.

        Args:
            encoded: gives its file.
            uid: SOP Instance UID that it was announced with.
            sop_class: SOP Class UID that it was announced with.

        Returns:
            Why it is refused; empty where it is kept, or could not be written (`failure`).
        """
        with self._lock:
            # Numbered, not named by what arrives: a UID from the network is no file name.
            file = self.folder / file_name(len(self) + 1)
            try:
                reason = self._unwanted(uid, sop_class) or self._refusal(file, encoded, [uid, sop_class])
            except OSError as error:
                self.failure = error
                return ""
            if reason:
                file.unlink(missing_ok=True)
                self._refuse(reason)
                return reason
            self._uids.add(uid)
        return ""

    def spoilt(self) -> None:
        """Note that an object arrived that is none."""
        self._refuse("cut short or damaged")

    def close(self) -> None:
        """Accept nothing from now on: the folder is about to get its name."""
        with self._lock:
            self._closed = True

    def check(self) -> None:
        """Refuse a series that is not exactly what was announced; its folder then never appears.

        Raises:
            PacsError: objects are missing, or others arrived.
            OSError: an object could not be written.
        """
        if self.failure is not None:
            raise self.failure
        if not self or self.refused or self.quota.exceeded or len(self) < (self.announced or 1):
            raise PacsError(
                f"{len(self)} of {self.announced or 'the'} images of the series arrived{self.others}; "
                "an incomplete series is not kept; pull again"
            )

    @property
    def others(self) -> str:
        """Description of what was refused; empty if nothing was."""
        reasons = [f"{count} {reason}" for reason, count in self.refused.items()]
        reasons += ["more or longer messages than are accepted (--max-gb)"] if self.quota.exceeded else []
        return f", and {'; '.join(reasons)}" if reasons else ""

    def _refuse(self, reason: str) -> None:
        self.refused[reason] += 1
        self.quota.exceeded |= self.refused.total() > _MOST_REFUSED

    def _unwanted(self, uid: str, sop_class: str) -> str:
        """Why an object is refused, judged by its announcement; empty if it is accepted."""
        if self._closed:
            return "after the end"
        if uid in self._uids:
            return "sent twice"
        if sop_class not in CT_CLASSES:
            return "no CT image"
        if not re.fullmatch(UID, uid):
            return "without a UID of digits and dots, 64 at most"
        full = self.announced is not None and len(self) >= self.announced
        return "more than were announced" if full else ""

    def _refusal(self, file: Path, encoded: Callable[[], bytes], announced: list[str]) -> str:
        """Write the object; return why it is not kept, judged by its content, or nothing if it is."""
        with file.open("xb") as stream:
            stream.write(encoded())
        try:
            refuse_deflated_bomb(file)
            dataset = pydicom.dcmread(file)
            found = [str(dataset.get(name)) for name in _NAMES]
            whole = _whole(dataset)
        except Exception:  # pydicom raises many types on damaged data sets
            return "cut short or damaged"
        if found[1] != self.series or (self.study and found[0] != self.study):
            return "of another study or series"
        if found[2:] != announced:
            return "not the object that was announced"
        return "" if whole else "cut short or damaged"


def _whole(dataset: Dataset) -> bool:
    """Whether elements are as long as they claim, and pixels as long as rows, columns and frames imply."""
    for tag in list(dataset.keys()):
        element: Any = dataset.get_item(tag)
        claimed = element.length if isinstance(element, RawDataElement) else _UNDEFINED
        if claimed not in (_UNDEFINED, len(getattr(element, "value", None) or b"")):
            return False
    pixels = dataset.get_item(_PIXELS)
    if pixels is None or not pixels.value:
        return False
    length = get_expected_length(dataset)
    encapsulated = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    return encapsulated or length <= len(pixels.value) <= length + length % 2
