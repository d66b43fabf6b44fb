"""A small PACS in this process: it stores, finds, and sends back over the same connection or a new one."""

from __future__ import annotations

import gc
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import pydicom
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from ctflow.dicom.pacs import Peer

HOST = "127.0.0.1"


class Archive:
    """What a PACS holds and how it misbehaves.

    Args:
        refuse: status of a C-STORE by its number, from 1; 0 for success.
        lose: how many images of a series it never sends.
        foreign: an image of another series that it sends along.
        spoil: what it makes of the images before it sends them.
        count: how many images it says that a series has, by how many it has.
        meanwhile: called with our port while it should be sending by C-MOVE.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[pydicom.Dataset] = []
        self.refuse: Callable[[int], int] = lambda number: 0
        self.lose = 0
        self.foreign: pydicom.Dataset | None = None
        self.spoil: Callable[[list[pydicom.Dataset]], list[pydicom.Dataset]] = lambda items: items
        self.count: Callable[[int], Any] = lambda number: number
        self.meanwhile: Callable[[int], None] = lambda port: None
        self.stores = 0
        self.syntaxes: list[str] = []
        self.destinations: dict[str, int] = {}
        self.port = 0

    def peer(self, **changes: Any) -> Peer:
        """How to call this archive."""
        return Peer(**({"title": "ARCHIVE", "host": HOST, "port": self.port, "timeout_s": 60.0} | changes))

    def store(self, event: Any) -> int:
        self.stores += 1
        status = self.refuse(self.stores)
        if not status:
            self.files[str(event.request.AffectedSOPInstanceUID)] = event.encoded_dataset()
            self.syntaxes.append(str(event.context.transfer_syntax))
        return status

    def held(self) -> list[pydicom.Dataset]:
        return [pydicom.dcmread(BytesIO(file)) for file in self.files.values()]

    def matching(self, keys: pydicom.Dataset) -> list[pydicom.Dataset]:
        names = ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "StudyDate")
        wanted = {name: keys.get(name) for name in names if keys.get(name)}
        return [item for item in self.held() if all(item.get(name) == text for name, text in wanted.items())]

    def find(self, event: Any) -> Iterator[tuple[int, pydicom.Dataset | None]]:
        keys = event.identifier
        self.asked.append(keys)
        unique = "StudyInstanceUID" if keys.QueryRetrieveLevel == "STUDY" else "SeriesInstanceUID"
        groups: dict[str, list[pydicom.Dataset]] = {}
        for item in self.matching(keys):
            groups.setdefault(item[unique].value, []).append(item)
        for items in groups.values():
            answer = pydicom.Dataset()
            for element in keys:
                setattr(answer, element.keyword, items[0].get(element.keyword, ""))
            answer.QueryRetrieveLevel = keys.QueryRetrieveLevel
            if "NumberOfSeriesRelatedInstances" in keys:
                answer.NumberOfSeriesRelatedInstances = self.count(len(items))
            yield 0xFF00, answer

    def get(self, event: Any) -> Iterator[Any]:
        items = self.matching(event.identifier)[self.lose :] + ([self.foreign] if self.foreign else [])
        items = self.spoil(items)
        yield len(items)
        for item in items:
            yield 0xFF00, item

    def move(self, event: Any) -> Iterator[Any]:
        port = self.destinations.get(event.move_destination)
        if port is None:
            yield None, None
            return
        yield HOST, port
        self.meanwhile(port)
        yield from self.get(event)


@contextmanager
def archive(context: ssl.SSLContext | None = None, **settings: Any) -> Iterator[Archive]:
    """A running archive on a free port of the loopback; it is stopped at the end."""
    ours = AE(ae_title="ARCHIVE")
    ours.require_called_aet = True
    for name, value in settings.items():
        setattr(ours, name, value)
    ours.add_supported_context(CTImageStorage, AllTransferSyntaxes, scu_role=True, scp_role=True)
    for model in (
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
        StudyRootQueryRetrieveInformationModelMove,
    ):
        ours.add_supported_context(model)
    ours.add_requested_context(CTImageStorage)
    ours.dimse_timeout = ours.network_timeout = 60
    ours.acse_timeout = 5  # how long a client may be silent that cannot speak TLS
    held = Archive()
    handlers = [
        (evt.EVT_C_STORE, held.store),
        (evt.EVT_C_FIND, held.find),
        (evt.EVT_C_GET, held.get),
        (evt.EVT_C_MOVE, held.move),
    ]
    server = ours.start_server((HOST, 0), block=False, evt_handlers=handlers, ssl_context=context)
    held.port = server.server_address[1]
    try:
        yield held
    finally:
        for thread in threading.enumerate():
            if isinstance(thread, Association):  # it closes its own socket, a moment after the client's
                thread.join()
        ours.shutdown()
        with warnings.catch_warnings():  # pynetdicom drops the socket of a refused C-MOVE
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
