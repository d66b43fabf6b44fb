"""Fetch a series from a PACS into a folder, completely or not at all, by C-GET, C-MOVE or WADO-RS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from ctflow.dicom.pacs.callback import check_reachable, listening
from ctflow.dicom.pacs.inbox import CT_CLASSES, Inbox
from ctflow.dicom.pacs.peer import Peer, association, silent
from ctflow.dicom.pacs.query import Query, find
from ctflow.dicom.pacs.quota import MOST_IN_ALL, Quota
from ctflow.dicom.pacs.status import PENDING, SUCCESS, code_of, meaning
from ctflow.dicom.pacs.web_peer import WebPeer
from ctflow.dicom.pacs.web_services import fetch
from ctflow.dicom.reading.files import PathLike
from ctflow.dicom.writing.folder import check_series_folder, whole_series_folder
from ctflow.errors import PacsError, UsageError
from ctflow.system.progress import Progress

# Study Root Query/Retrieve Information Models.
_MOVE_MODEL, _GET_MODEL = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
# What readers of CT decode: uncompressed, deflated, RLE, JPEG lossless and baseline, JPEG-LS, JPEG 2000.
_SYNTAXES = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{tail}" for tail in (50, 57, 70, 80, 81, 90, 91, 201)),
)
LISTEN = ("127.0.0.1", 11113)
"""Default address for C-MOVE; no other machine can reach it."""


def pull(
    peer: Peer | WebPeer,
    out: PathLike,
    series: str,
    *,
    study: str = "",
    by: str = "get",
    listen: tuple[str, int] = LISTEN,
    most_bytes: int = MOST_IN_ALL,
    progress: Progress = lambda fraction, what: None,
) -> int:
    """Fetch one series into a new folder: IM0001.dcm, IM0002.dcm, … in the order of arrival.

    Only complete CT images of this series are accepted, each once, and as many as the PACS announced; callers
    other than the PACS, by AE title and address, are turned away. Anything else ends the pull and nothing is
    kept.

    Args:
        peer: the PACS.
        out: folder to make; it appears when the series is whole.
        series: Series Instance UID.
        study: Study Instance UID; a PACS that follows the standard to the letter needs it.
        by: "get", over the same connection, or "move": the PACS calls us back and must know our AE title.
            A PACS at a web address has "get" alone.
        listen: address and port where we are called back.
        most_bytes: most bytes that are accepted in all; at most 2 GB for one object.
        progress: called as progress(fraction, what).

    Returns:
        Number of images.

    Raises:
        PacsError: the PACS has no such series, refuses, or sends something else than it announced.
        OutputError: the folder exists or cannot be written.
        UsageError: `by` is unknown, the port is taken, or the PACS cannot reach the address.
    """
    if by not in ("get", "move"):
        raise UsageError(f"'{by}' is no way to pull; give get or move")
    if by == "move" and isinstance(peer, WebPeer):
        raise UsageError("a PACS at a web address does not call back; pull by get")
    target = Path(out)
    check_series_folder(target, (), overwrite=False)
    if by == "move" and isinstance(peer, Peer):
        check_reachable(peer, listen)
    found = find(peer, Query(study=study, series=series, modality=""))
    if not found:
        raise PacsError("the PACS has no such series; check the UID, and list what it has: ctflow pacs find")
    keys = Dataset()
    keys.QueryRetrieveLevel = "SERIES"
    keys.StudyInstanceUID, keys.SeriesInstanceUID = found[0]["study"], series
    quota = Quota(peer.timeout_s, most_bytes)
    with whole_series_folder(target) as folder:
        inbox = Inbox(folder, found[0]["study"], series, found[0]["images"], quota)
        if isinstance(peer, WebPeer):
            fetch(peer, inbox, progress)
        else:
            with (
                silent(),
                _get(peer, keys, inbox) if by == "get" else _move(peer, keys, inbox, listen) as answers,
            ):
                _watch(peer, inbox, answers, progress)
        inbox.close()
        inbox.check()
    return len(inbox)


def _watch(peer: Peer, inbox: Inbox, answers: Iterator[Any], progress: Progress) -> None:
    """Follow the answers to the end, without waiting for a PACS that answers but sends nothing."""
    arrived, since = 0, time.monotonic()
    for status, _ in answers:
        if inbox.quota.exceeded:
            return  # `check` says so
        code = code_of(status, peer.timeout_s)
        if code in PENDING:
            inbox.announced = inbox.announced or _announced(status)
            progress(len(inbox) / max(inbox.announced or 0, len(inbox), 1), "pulling")
        elif code != SUCCESS and inbox.failure is None:
            failed = _counted(status, "Failed")
            part = f"{len(inbox)} images arrived and {failed} failed{inbox.others}; " if failed else ""
            raise PacsError(
                f"the series was not pulled: {part}{meaning(code)}; an incomplete series is not kept"
            )
        if len(inbox) > arrived:
            arrived, since = len(inbox), time.monotonic()
        if code in PENDING and time.monotonic() - since > peer.timeout_s:
            raise PacsError(
                f"the PACS answered and sent no image for {peer.timeout_s:g} s; try again, or give a longer "
                "--timeout"
            )


def _announced(status: Dataset) -> int | None:
    """Number of sub-operations that an answer states; None where it states none."""
    return sum(_counted(status, kind) for kind in ("Remaining", "Completed", "Failed", "Warning")) or None


def _counted(status: Dataset, kind: str) -> int:
    return int(status.get(f"NumberOf{kind}Suboperations") or 0)


@contextmanager
def _get(peer: Peer, keys: Dataset, inbox: Inbox) -> Iterator[Iterator[Any]]:
    from pynetdicom.presentation import build_context, build_role

    # One context per pair: of several syntaxes in one, the PACS would choose one for all images.
    pairs = [build_context(sop, syntax) for sop in CT_CLASSES for syntax in _SYNTAXES]
    roles = [build_role(sop, scp_role=True) for sop in CT_CLASSES]
    contexts = [build_context(_GET_MODEL), *pairs]
    with association(peer, contexts, roles, inbox.take, inbox.quota) as link:
        try:
            yield link.send_c_get(keys, _GET_MODEL)
        except ValueError:
            raise PacsError(meaning(0x0122)) from None


@contextmanager
def _move(peer: Peer, keys: Dataset, inbox: Inbox, listen: tuple[str, int]) -> Iterator[Iterator[Any]]:
    from pynetdicom.presentation import build_context

    with (
        listening(peer, listen, CT_CLASSES, inbox),
        association(peer, [build_context(_MOVE_MODEL)], quota=inbox.quota) as link,
    ):
        yield link.send_c_move(keys, peer.calling, _MOVE_MODEL)
