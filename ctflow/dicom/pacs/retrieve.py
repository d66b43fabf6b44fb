"""C-GET and C-MOVE: a series from a PACS into a folder, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import AllTransferSyntaxes

from ctflow.dicom.files import PathLike
from ctflow.dicom.folder import check_target, file_name, whole_folder
from ctflow.dicom.pacs.peer import Peer, association, entity, silent
from ctflow.dicom.pacs.query import Query, find
from ctflow.dicom.pacs.status import PENDING, SUCCESS, code_of, meaning
from ctflow.errors import PacsError, UsageError

# Study Root Query/Retrieve Information Models.
_MOVE_MODEL, _GET_MODEL = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
# SOP classes of CT images: classic, enhanced, and enhanced converted from classic.
_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
# What readers of CT decode: uncompressed, deflated, RLE, JPEG lossless and baseline, JPEG-LS, JPEG 2000.
_SYNTAXES = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{tail}" for tail in (50, 57, 70, 80, 81, 90, 91, 201)),
)
_REFUSED = 0x0124  # not authorised
_FULL = 0xA700  # out of resources

Progress = Callable[[float, str], None]
"""Called as progress(fraction from 0 to 1, what is at work)."""


def pull(
    peer: Peer,
    out: PathLike,
    series: str,
    *,
    study: str = "",
    by: str = "get",
    listen: tuple[str, int] = ("", 11113),
    progress: Progress = lambda fraction, what: None,
) -> int:
    """Fetch one series into a new folder: IM0001.dcm, IM0002.dcm, … in the order of arrival.

    Args:
        peer: the PACS.
        out: folder to make; it appears when the series is whole.
        series: Series Instance UID.
        study: Study Instance UID; a PACS that follows the letter of the standard needs it.
        by: "get", over the same connection, or "move": the PACS calls us back and must know our AE title.
        listen: address and port where we are called back.
        progress: called as progress(fraction, what).

    Returns:
        Number of images.

    Raises:
        PacsError: the PACS has no such series, refuses, or sends a part of it only.
        OutputError: the folder exists or cannot be written.
        UsageError: `by` is unknown, or the port is taken.
    """
    if by not in ("get", "move"):
        raise UsageError(f"'{by}' is no way to pull; give get or move")
    target = Path(out)
    check_target(target, (), overwrite=False)
    found = find(peer, Query(study=study, series=series, modality=""))
    if not found:
        raise PacsError("the PACS has no such series; check the UID, and list what it has: ctflow pacs find")
    expected = found[0]["images"]
    keys = Dataset()
    keys.QueryRetrieveLevel = "SERIES"
    keys.StudyInstanceUID, keys.SeriesInstanceUID = found[0]["study"], series
    with whole_folder(target) as folder, silent():
        inbox = _Inbox(folder, series)
        retrieve = _get(peer, keys, inbox) if by == "get" else _move(peer, keys, inbox, listen)
        with retrieve as answers:
            _watch(peer, inbox, answers, expected, progress)
        inbox.check(expected)
    return len(inbox.files)


class _Inbox:
    """Files of one series as they arrive."""

    def __init__(self, folder: Path, series: str) -> None:
        self.folder, self.series = folder, series
        self.files: dict[str, Path] = {}
        self.strangers = 0
        self.failure: OSError | None = None

    def take(self, event: Any) -> int:
        """Write what a C-STORE request brings, and nothing that was not asked for."""
        if str(event.dataset.get("SeriesInstanceUID")) != self.series:
            self.strangers += 1
            return _REFUSED
        # Numbered, not named by what arrives: a UID from the network is no file name.
        name = str(event.request.AffectedSOPInstanceUID)
        file = self.files.get(name, self.folder / file_name(len(self.files) + 1))
        try:
            file.write_bytes(event.encoded_dataset())
        except OSError as error:
            self.failure = error
            return _FULL
        self.files[name] = file
        return SUCCESS

    def check(self, expected: int | None) -> None:
        """Refuse a part of a series; the folder then never appears."""
        if self.failure is not None:
            raise self.failure
        if not self.files or (expected is not None and len(self.files) < expected):
            others = f" and {self.strangers} of other series" if self.strangers else ""
            raise PacsError(
                f"{len(self.files)} of {expected or 'the'} images of the series arrived{others}; nothing is "
                "kept of a part; pull again"
            )


def _watch(
    peer: Peer, inbox: _Inbox, answers: Iterator[Any], expected: int | None, progress: Progress
) -> None:
    for status, _ in answers:
        code = code_of(status, peer.timeout_s)
        if code in PENDING:
            whole = expected or len(inbox.files) + int(status.get("NumberOfRemainingSuboperations") or 0)
            progress(len(inbox.files) / max(1, whole), "pulling")
        elif code != SUCCESS and inbox.failure is None:
            failed = int(status.get("NumberOfFailedSuboperations") or 0)
            part = f"{len(inbox.files)} images arrived and {failed} failed; " if failed else ""
            raise PacsError(f"the series was not pulled: {part}{meaning(code)}; nothing is kept of a part")


@contextmanager
def _get(peer: Peer, keys: Dataset, inbox: _Inbox) -> Iterator[Iterator[Any]]:
    from pynetdicom.presentation import build_context, build_role

    # One context per pair: of several syntaxes in one, the PACS would choose one for all images.
    pairs = [build_context(sop, syntax) for sop in _CLASSES for syntax in _SYNTAXES]
    roles = [build_role(sop, scp_role=True) for sop in _CLASSES]
    with association(peer, [build_context(_GET_MODEL), *pairs], roles, inbox.take) as link:
        try:
            yield link.send_c_get(keys, _GET_MODEL)
        except ValueError:
            raise PacsError(meaning(0x0122)) from None


@contextmanager
def _move(peer: Peer, keys: Dataset, inbox: _Inbox, listen: tuple[str, int]) -> Iterator[Iterator[Any]]:
    from pynetdicom import evt
    from pynetdicom.presentation import build_context

    ours = entity(peer)
    ours.require_called_aet = True
    for sop in _CLASSES:
        ours.add_supported_context(sop, AllTransferSyntaxes)
    secure = peer.tls.context(server=True) if peer.tls else None
    try:
        server = ours.start_server(
            listen, block=False, ssl_context=secure, evt_handlers=[(evt.EVT_C_STORE, inbox.take)]
        )
    except OSError as error:
        raise UsageError(
            f"port {listen[1]} cannot be listened on ({error.strerror}); give a free one that the PACS "
            "knows: --listen PORT"
        ) from None
    try:
        with association(peer, [build_context(_MOVE_MODEL)]) as link:
            yield link.send_c_move(keys, peer.calling, _MOVE_MODEL)
    finally:
        server.shutdown()
