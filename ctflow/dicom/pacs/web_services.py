"""The services of DICOMweb (PS3.18): QIDO-RS asks, WADO-RS fetches, STOW-RS stores."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
from pydicom.dataset import Dataset

from ctflow.dicom.pacs.inbox import UID, Inbox
from ctflow.dicom.pacs.quota import Quota
from ctflow.dicom.pacs.web_client import NOT_DICOMWEB, ONLY_LINK, connected, explained, status_of
from ctflow.dicom.pacs.web_peer import WebPeer
from ctflow.errors import PacsError, UsageError
from ctflow.system.progress import Progress

if TYPE_CHECKING:
    from dicomweb_client import DICOMwebClient

_PAGE = 1000  # answers that are asked for at once; what a PACS sends is its own choice
_LONGEST_ANSWER = 10**8  # bytes of a page, some kilobytes for each answer
_MOST_ANSWERS = 100_000
_QUERY_TIMEOUTS = 20  # the longest query, in waits for an answer
_AS_STORED = (("application/dicom", "*"),)  # every object in the transfer syntax that the PACS has it in
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID")
_ABSENT = "the PACS has no such series any more; list what it has: ctflow pacs find"
_NO_SERIES_ALONE = f"the PACS finds no series without their study; give --study, or: {NOT_DICOMWEB}"
_CONFLICT = (400, 409, 415)  # HTTP status of an answer that says which objects are refused, and why

# PS3.18 table I.2-2; the first half of the code, or its first digit, stands for a family.
_REASONS = {
    0x0110: "the PACS failed to process it; look into its log",
    0x0122: "the PACS takes no objects of this kind; see its conformance statement",
    0x0124: "the PACS does not allow us to store; ask its administrator",
    0xA700: "the PACS is out of resources; free space there and try again",
    0xA900: "the PACS finds that the object is not what its SOP class says; look into its log",
    0xC122: "the PACS takes no object of this kind in this transfer syntax; convert it to Explicit VR",
    0xC000: "the PACS does not understand the object; look into its log",
}
_OTHER = "the PACS could not store it; look into its log"
_UNCONFIRMED = "the PACS did not say that it stored the object; look into its log"

Ask = Callable[[Dataset], list[Dataset]]
"""Called with keys; gives the data sets that match."""


@contextmanager
def asking(peer: WebPeer) -> Iterator[Ask]:
    """Ask by QIDO-RS inside the block: keys with a value are matched, empty ones are asked for."""
    quota = Quota(peer.timeout_s, of_an_object=_LONGEST_ANSWER)
    with connected(peer, quota) as client:
        yield lambda keys: _ask(peer, quota, client, keys)


def fetch(peer: WebPeer, inbox: Inbox, progress: Progress) -> None:
    """Fetch the series of an inbox by WADO-RS, until it ends or sends what is none.

    Raises:
        PacsError: the PACS cannot be reached, refuses, or its answer is cut off.
    """
    quota = inbox.quota
    if not inbox.study:
        raise PacsError("the PACS does not say of which study the series is; give its UID with --study")
    if inbox.announced is None:
        inbox.announced = _counted(peer, inbox)
    with connected(peer, quota) as client:
        with explained(peer, quota, _ABSENT):
            images = client.iter_series(inbox.study, inbox.series, media_types=_AS_STORED)
        while not (quota.exceeded or inbox.failure) and _take(peer, inbox, images):
            progress(len(inbox) / max(inbox.announced, len(inbox), 1), "pulling")


@contextmanager
def storing(peer: WebPeer) -> Iterator[Callable[[Path, str], str]]:
    """Store by STOW-RS inside the block: called with a file and its SOP Instance UID, tells a refusal."""
    quota = Quota(peer.timeout_s, of_an_object=_LONGEST_ANSWER)
    with connected(peer, quota) as client:
        yield lambda file, uid: _store(peer, quota, client, file, uid)


def _ask(peer: WebPeer, quota: Quota, client: DICOMwebClient, keys: Dataset) -> list[Dataset]:
    values = {element.keyword: str(element.value or "") for element in keys}
    level = values.pop("QueryRetrieveLevel")
    wanted = {keyword: text for keyword, text in values.items() if text}
    fields = [keyword for keyword, text in values.items() if not text]
    if any(not re.fullmatch(UID, wanted[key]) for key in wanted if key.endswith("InstanceUID")):
        raise UsageError("a UID has digits and dots, 64 at most; check the study's or series' UID")
    if level == "STUDY":
        search = partial(client.search_for_studies, fields=fields, search_filters=wanted)
        return _pages(peer, quota, search, "StudyInstanceUID")
    study = wanted.pop("StudyInstanceUID", None)
    search = partial(client.search_for_series, study, fields=fields, search_filters=wanted)
    return _pages(peer, quota, search, "SeriesInstanceUID", NOT_DICOMWEB if study else _NO_SERIES_ALONE)


def _counted(peer: WebPeer, inbox: Inbox) -> int:
    """Number of the series' instances, by listing them, for a PACS that does not count."""
    quota = Quota(peer.timeout_s, of_an_object=_LONGEST_ANSWER)
    with connected(peer, quota) as client:
        search = partial(client.search_for_instances, inbox.study, inbox.series)
        return len(_pages(peer, quota, search, "SOPInstanceUID"))


def _pages(
    peer: WebPeer, quota: Quota, search: Callable[..., Any], unique: str, absent: str = NOT_DICOMWEB
) -> list[Dataset]:
    """All answers of a query, each once: page by page until one brings nothing new."""
    found: dict[str, Dataset] = {}
    offset, end = 0, time.monotonic() + _QUERY_TIMEOUTS * peer.timeout_s
    while True:
        with explained(peer, quota, absent):
            page = search(limit=_PAGE, offset=offset)
        new = {uid: answer for uid, answer in _answers(page, unique) if uid not in found}
        if not new:
            return list(found.values())
        found |= new
        offset += len(page)
        if len(found) >= _MOST_ANSWERS or time.monotonic() > end:
            raise PacsError(f"the query has no end after {len(found)} answers; give keys that narrow it")


def _answers(page: Any, unique: str) -> list[tuple[str, Dataset]]:
    if not isinstance(page, list):
        raise PacsError(NOT_DICOMWEB)
    try:
        answers = [Dataset.from_json(item) for item in page]
        uids = [str(answer[unique].value) for answer in answers]
        named = [str(answer[name].value) for answer in answers for name in _UIDS if name in answer]
    except Exception:  # pydicom raises many types on what is no data set
        uids, named, answers = [""], [], []
    if not all(re.fullmatch(UID, uid) for uid in (*uids, *named)):  # some become part of an address
        raise PacsError(
            "an answer of the PACS cannot be read; expected data sets with UIDs; look into its log"
        )
    return list(zip(uids, answers, strict=True))


def _take(peer: WebPeer, inbox: Inbox, images: Iterator[Any]) -> bool:
    """Give the inbox the next image; False at the end, or where what comes is none."""
    with explained(peer, inbox.quota):
        try:
            image = next(images, None)
            if image is None:
                return False
            uid, sop_class = str(image.SOPInstanceUID), str(image.SOPClassUID)
        except (OSError, PacsError):
            if inbox.quota.exceeded:
                return False  # `Inbox.check` says so
            raise
        except Exception:  # pydicom raises many types on damaged data sets
            inbox.spoilt()
            return False
    inbox.quota.next_object(ONLY_LINK)
    inbox.put(image.buffer.getvalue, uid, sop_class)
    return True


def _store(peer: WebPeer, quota: Quota, client: DICOMwebClient, file: Path, uid: str) -> str:
    from requests.exceptions import HTTPError

    try:
        item = pydicom.dcmread(file)
    except Exception:  # pydicom raises many types on damaged data sets
        return "a file is damaged; copy it again"
    with explained(peer, quota):
        try:
            answer = client.store_instances([item])
        except HTTPError as error:
            if status_of(error) not in _CONFLICT:
                raise
            answer = _conflict(error.response)
        except (OSError, PacsError):
            raise
        except Exception:  # of pydicom, which writes the object anew and reads the answer
            return "the object, or what the PACS says of it, is damaged"
    return _reason(answer, uid)


def _conflict(response: Any) -> Dataset:
    """What a refusal says of its objects; nothing where it does not."""
    try:
        return Dataset.from_json(response.json())
    except Exception:  # it need not say anything
        return Dataset()


def _reason(answer: Dataset, uid: str) -> str:
    """Why an object is not stored; empty only where the PACS says that it is."""
    for failed in answer.get("FailedSOPSequence") or []:
        if failed.get("ReferencedSOPInstanceUID") in (uid, None):
            code = int(failed.get("FailureReason") or 0)
            family = next((key for key in (code, code & 0xFF00, code & 0xF000) if key in _REASONS), 0)
            return f"{_REASONS.get(family, _OTHER)} (reason {code:#06x})"
    stored = [item.get("ReferencedSOPInstanceUID") for item in answer.get("ReferencedSOPSequence") or []]
    return "" if uid in stored else _UNCONFIRMED
