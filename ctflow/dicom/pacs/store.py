"""Send DICOM files to a PACS in their own transfer syntax, by C-STORE or STOW-RS."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ctflow.dicom.pacs.peer import Peer, association, silent
from ctflow.dicom.pacs.status import SUCCESS, code_of, meaning
from ctflow.dicom.pacs.web_client import silent_web
from ctflow.dicom.pacs.web_peer import WebPeer
from ctflow.dicom.pacs.web_services import storing
from ctflow.dicom.reading.files import PathLike
from ctflow.errors import NoDicomError, PacsError, UsageError
from ctflow.system.files import below
from ctflow.system.progress import Progress

_DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory: an index of files, no object to store
_CONVERTIBLE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_MOST_CONTEXTS = 128  # PS3.8 9.3.2.2: their numbers are odd and fit into one byte


@dataclass(frozen=True, repr=False)
class _Item:
    path: Path
    sop_class: str
    instance: str
    syntax: str


def push(
    peer: Peer | WebPeer,
    paths: PathLike | Sequence[PathLike],
    *,
    progress: Progress = lambda fraction, what: None,
) -> int:
    """Send DICOM files, and those in folders, to a PACS.

    Args:
        peer: the PACS.
        paths: one or several files or folders; files in a folder that are not DICOM objects are left out.
        progress: called as progress(fraction, what).

    Returns:
        Number of objects that the PACS accepted.

    Raises:
        NoDicomError: there is nothing to send.
        PacsError: the PACS cannot be reached, or accepted only some of the objects.
        UsageError: an object has no UID, or there are more kinds of objects than one association holds.
    """
    with silent_web() if isinstance(peer, WebPeer) else silent():
        items = _items(paths)
        with _storing(peer, items) as send:
            refusals = _sent(items, send, progress)
    failed = refusals.total()
    if failed:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in refusals.most_common())
        raise PacsError(f"the PACS took {len(items) - failed} of {len(items)} objects: {reasons}")
    return len(items)


@contextmanager
def _storing(peer: Peer | WebPeer, items: list[_Item]) -> Iterator[Callable[[_Item], str]]:
    """Give a function that sends an object and says why it was refused, or nothing."""
    if isinstance(peer, WebPeer):
        with storing(peer) as store:
            yield lambda item: store(item.path, item.instance)
    else:
        with association(peer, _contexts(items)) as link:
            yield lambda item: _send(peer, link, item)


def _sent(items: list[_Item], send: Callable[[_Item], str], progress: Progress) -> Counter[str]:
    """Send objects; the reasons why some were refused."""
    refusals: Counter[str] = Counter()
    for done, item in enumerate(items):
        progress(done / len(items), "pushing")
        try:
            refusal = send(item)
        except PacsError as error:  # the PACS is gone, or will take none of them
            if not done:
                raise
            refusals[str(error)] += len(items) - done
            return refusals
        refusals.update([refusal] if refusal else [])
    progress(1.0, "pushing")
    return refusals


def _send(peer: Peer, link: Any, item: _Item) -> str:
    """Send one file; return why it was refused, or nothing."""
    if not link.is_established:
        return "the association was broken; push again"
    try:
        code = code_of(link.send_c_store(item.path), peer.timeout_s)
    except PacsError as error:
        return str(error)
    except (ValueError, AttributeError):
        return "the PACS takes no object of this kind in this transfer syntax; convert it to Explicit VR"
    # 0xB000 to 0xBFFF: stored, with a remark
    return "" if code == SUCCESS or code >> 12 == 0xB else meaning(code)


def _items(paths: PathLike | Sequence[PathLike]) -> list[_Item]:
    roots = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    files = {file for root in roots for file in ([root] if root.is_file() else below(root)) if file.is_file()}
    found: dict[str, _Item] = {}
    for number, file in enumerate(sorted(files), start=1):
        item = _item(file, number)
        if item is not None:
            found.setdefault(item.instance, item)
    if not found:
        raise NoDicomError("there is no DICOM object to send; give a folder or files of a series")
    return list(found.values())


def _item(file: Path, number: int) -> _Item | None:
    try:
        header = pydicom.dcmread(
            file, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"]
        )
    except (InvalidDicomError, EOFError):
        return None
    meta = header.file_meta
    if meta.get("MediaStorageSOPClassUID") == _DIRECTORY:
        return None
    sop_class, instance = header.get("SOPClassUID"), header.get("SOPInstanceUID")
    if not sop_class or not instance:
        raise UsageError(f"file #{number} has no SOP class or instance UID, which a PACS needs; leave it out")
    return _Item(
        file, str(sop_class), str(instance), str(meta.get("TransferSyntaxUID", ImplicitVRLittleEndian))
    )


def _contexts(items: list[_Item]) -> list[Any]:
    """A context for every kind of object in its own syntax; uncompressed ones may be converted."""
    from pynetdicom.presentation import build_context

    pairs = {
        (item.sop_class, str(syntax)): None
        for item in items
        for syntax in (_CONVERTIBLE if item.syntax in _CONVERTIBLE else (item.syntax,))
    }
    if len(pairs) > _MOST_CONTEXTS:
        raise UsageError(
            f"these files are of {len(pairs)} kinds and one association holds {_MOST_CONTEXTS}; push fewer"
        )
    return [build_context(*pair) for pair in pairs]
