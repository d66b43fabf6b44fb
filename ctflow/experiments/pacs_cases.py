"""Cases from a PACS: the series that match a query, pulled once into the study's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from ctflow.dicom.pacs import Query, find, peer_at, pull
from ctflow.errors import PacsError, StudyError
from ctflow.experiments.store import Store, writing
from ctflow.system.files import reserved

QUERY = ("pacs", "aet", "study_uid", "series_uid", "patient_id", "accession", "date")
"""Keys of a case that say what to pull; the others are those of a folder."""

ACCESS = ("token_file", "user")
"""Keys of a case that say how a PACS at a web address lets us in."""

NOT_PULLED = "its series are not pulled from the PACS yet; a run without --dry-run pulls them"
"""Why a case cannot be read in a dry run."""


def pulled(store: Store, table: Mapping[str, object], fetch: bool = True) -> list[Path]:
    """Folders of the series that match, one for each, in the order of their UIDs.

    They hold what the PACS sent, patients' names included, so others may not read them; what the study makes
    of them names nobody. What is there is not asked for again.

    Args:
        store: the study's folder.
        table: the case's table; `pacs` is "TITLE@HOST:PORT" or a web address.
        fetch: whether to pull what is not there yet.

    Raises:
        PacsError: the PACS cannot be reached, has no such series, or sends a part of one only.
        StudyError: they are not there and were not to be pulled.
        OutputError: the study's folder cannot be written.
    """
    query = json.dumps([str(table.get(key, "")) for key in QUERY])
    place = f"pulled/{hashlib.sha256(query.encode()).hexdigest()[:16]}"
    final = store.out.absolute() / place
    if not final.is_dir() and not fetch:
        raise StudyError(NOT_PULLED)
    if fetch:
        store.create()
        with writing(), store.lock(place.replace("/", "-")):
            if not final.is_dir():
                _pull(table, final)
    return sorted(final.iterdir())


def _pull(table: Mapping[str, object], final: Path) -> None:
    calling, token, user = (str(table[key]) if key in table else None for key in ("aet", *ACCESS))
    peer = peer_at(str(table["pacs"]), calling, token_file=Path(token) if token else None, user=user)
    keys = ("patient_id", "accession", "date", "study_uid", "series_uid")
    found = find(peer, Query(*(str(table.get(key, "")) for key in keys)))
    if not found:
        raise PacsError("the PACS has no CT series that match the case; check its keys with ctflow pacs find")
    final.parent.mkdir(mode=0o700, exist_ok=True)
    studies = {str(row["series"]): row["study"] for row in found}  # some archives list a series twice
    with reserved(final) as place, place.folder(mode=0o700) as folder:
        for number, series in enumerate(sorted(studies), start=1):
            pull(peer, folder / f"{number:04d}", series, study=studies[series])
