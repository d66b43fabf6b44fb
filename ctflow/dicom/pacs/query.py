"""List the studies and series that a PACS holds, by C-FIND or QIDO-RS."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset

from ctflow.dicom.pacs.peer import Peer, association, silent
from ctflow.dicom.pacs.status import PENDING, SUCCESS, code_of, meaning
from ctflow.dicom.pacs.web_peer import WebPeer
from ctflow.dicom.pacs.web_services import asking
from ctflow.errors import PacsError, UsageError

_MODEL = "1.2.840.10008.5.1.4.1.2.2.1"  # Study Root Query/Retrieve Information Model - FIND
# What is asked for, by the name that it has in the answer; PS3.4 tables C.6-1 to C.6-3.
_STUDY = {"study": "StudyInstanceUID"}
_SERIES = {"series": "SeriesInstanceUID", "modality": "Modality", "images": "NumberOfSeriesRelatedInstances"}
_PERSONAL = {
    "patient_name": "PatientName",
    "patient_id": "PatientID",
    "birth_date": "PatientBirthDate",
    "accession_number": "AccessionNumber",
    "study_date": "StudyDate",
    "study_description": "StudyDescription",
}
_MOST_ANSWERS = 100_000
_QUERY_TIMEOUTS = 20  # the longest query, in waits for an answer
_PERSONAL_SERIES = {"series_description": "SeriesDescription"}


@dataclass(frozen=True, repr=False)
class Query:
    """What to look for; an empty text matches everything, `*` anything, and "20260101-20260131" a span.

    Args:
        patient_id: Patient ID.
        accession: Accession Number.
        date: Study Date, YYYYMMDD or a span.
        study: Study Instance UID.
        series: Series Instance UID.
        modality: modality of a series.

    Raises:
        UsageError: nothing is given that narrows the query.
    """

    patient_id: str = ""
    accession: str = ""
    date: str = ""
    study: str = ""
    series: str = ""
    modality: str = "CT"

    def __post_init__(self) -> None:
        if not (self.patient_id or self.accession or self.date or self.study or self.series):
            raise UsageError(
                "a query without a key lists the whole archive; give a patient ID, accession number, date, "
                "study or series"
            )


def find(
    peer: Peer | WebPeer, query: Query, *, level: str = "series", personal: bool = False
) -> list[dict[str, Any]]:
    """Studies or series of a PACS that match a query.

    Args:
        peer: the PACS.
        query: what to look for.
        level: "series" or "study".
        personal: ask for names, IDs, dates and descriptions too; otherwise they never leave a PACS by C-FIND,
            and of QIDO-RS, where they are in every answer about studies, they are dropped.

    Returns:
        For every match: study; for series also series, modality and images (None where the PACS does not
        count them); with `personal` the patient and the descriptions.

    Raises:
        PacsError: the PACS cannot be reached, refuses the query, or stops answering.
        UsageError: the level is unknown.
    """
    if level not in ("series", "study"):
        raise UsageError(f"level '{level}' is unknown; give series or study")
    with _asking(peer) as ask:
        # A series is looked for inside its study: not every PACS allows otherwise (PS3.4 C.4.1.2.2).
        if level == "study" or not (query.study or query.series):
            studies = ask(_study_keys(query, personal))
            if level == "study":
                return [_row(found, _STUDY | (_PERSONAL if personal else {})) for found in studies]
            parents = [str(found.get("StudyInstanceUID", "")) for found in studies]
        else:
            parents = [query.study]
        rows = []
        for parent in parents:
            found = ask(_series_keys(query, parent, personal))
            rows += [_series_row(answer, parent, personal) for answer in found]
        return rows


@contextmanager
def _asking(peer: Peer | WebPeer) -> Iterator[Callable[[Dataset], list[Dataset]]]:
    """Give a function that asks for what matches its keys, and lists what was asked for."""
    if isinstance(peer, WebPeer):
        with asking(peer) as ask:
            yield lambda keys: [answer for answer in ask(keys) if _asked_for(keys, answer)]
        return
    with silent():
        from pynetdicom.presentation import build_context

        with association(peer, [build_context(_MODEL)]) as link:
            yield lambda keys: _ask(peer, link, keys)


def _study_keys(query: Query, personal: bool) -> Dataset:
    keys = Dataset()
    keys.QueryRetrieveLevel = "STUDY"
    if personal:
        for keyword in _PERSONAL.values():
            setattr(keys, keyword, "")
    keys.PatientID, keys.AccessionNumber, keys.StudyDate = query.patient_id, query.accession, query.date
    keys.StudyInstanceUID = query.study
    return keys


def _series_keys(query: Query, study: str, personal: bool) -> Dataset:
    keys = Dataset()
    keys.QueryRetrieveLevel = "SERIES"
    keys.StudyInstanceUID, keys.SeriesInstanceUID, keys.Modality = study, query.series, query.modality
    keys.NumberOfSeriesRelatedInstances = None
    if personal:
        for keyword in (*_PERSONAL.values(), *_PERSONAL_SERIES.values()):
            setattr(keys, keyword, "")
    return keys


def _ask(peer: Peer, link: Any, keys: Dataset) -> list[Dataset]:
    answers: list[Dataset] = []
    end = time.monotonic() + _QUERY_TIMEOUTS * peer.timeout_s
    for status, answer in link.send_c_find(keys, _MODEL):
        code = code_of(status, peer.timeout_s)
        if code not in (*PENDING, SUCCESS):
            raise PacsError(f"the query failed: {meaning(code)}")
        if code in PENDING and answer is None:
            raise PacsError("an answer of the PACS cannot be read; expected a data set; look into its log")
        if len(answers) >= _MOST_ANSWERS or time.monotonic() > end:
            raise PacsError(f"the query has no end after {len(answers)} answers; give keys that narrow it")
        answers += [answer] if code in PENDING and _asked_for(keys, answer) else []
    return answers


def _asked_for(keys: Dataset, answer: Dataset) -> bool:
    """Whether the UIDs match the query: some archives ignore a key and list everything."""
    pairs = [(str(keys.get(name) or ""), answer.get(name)) for name in (*_STUDY.values(), _SERIES["series"])]
    return all(not asked or found is None or str(found) == asked for asked, found in pairs)


def _series_row(answer: Dataset, study: str, personal: bool) -> dict[str, Any]:
    names = _STUDY | _SERIES | (_PERSONAL | _PERSONAL_SERIES if personal else {})
    row = _row(answer, names)
    row["study"] = row["study"] or study
    counted = re.fullmatch(r"\d{1,7}", row["images"])
    row["images"] = (
        int(counted[0]) or None if counted else None
    )  # some archives write 0 where they do not count
    return row


def _row(answer: Dataset, names: dict[str, str]) -> dict[str, Any]:
    try:
        return {name: str(answer.get(keyword) or "") for name, keyword in names.items()}
    except Exception:  # pydicom converts a value when it is asked for, and raises many types
        raise PacsError("an answer of the PACS holds a damaged value; look into its log") from None
