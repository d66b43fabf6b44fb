"""Listener for C-MOVE that accepts only the PACS that was asked, by its address and AE title."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

from ctflow.dicom.pacs.peer import Peer, application_entity
from ctflow.errors import PacsError, UsageError

if TYPE_CHECKING:
    from ctflow.dicom.pacs.inbox import Inbox

_LEAVE_S = 2.0  # for a PACS to release what it has opened, before it is aborted


def check_reachable(peer: Peer, listen: tuple[str, int]) -> None:
    """Refuse an address on which the PACS cannot reach us.

    Raises:
        UsageError: the PACS is another machine and we would listen on the loopback interface only.
        PacsError: the host of the PACS has no address.
    """
    here = _addresses(listen[0] or "0.0.0.0")
    if all(one.is_loopback for one in here) and not any(one.is_loopback for one in _addresses(peer.host)):
        raise UsageError(
            "the PACS is another machine and cannot call back on the loopback; give an address of this one "
            "that it knows: --listen ADDRESS, or --by get"
        )


@contextmanager
def listening(peer: Peer, listen: tuple[str, int], classes: Sequence[str], inbox: Inbox) -> Iterator[None]:
    """Listen for the PACS while the block runs; the inbox takes what it sends.

    Args:
        peer: the only caller that is accepted, checked by the addresses of its host and its AE title.
        listen: address and port.
        classes: SOP classes to accept.
        inbox: where objects go.

    Raises:
        UsageError: the port cannot be listened on.
        PacsError: the host of the PACS has no address.
    """
    opened: list[socket.socket] = []
    server = _server(peer, listen, classes, inbox, opened)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        for link in server.active_associations:
            link.join(_LEAVE_S)
            if link.is_alive():
                link.abort()
        for connection in opened:
            connection.close()  # pynetdicom leaves it open where the other side has closed it


def _server(
    peer: Peer, listen: tuple[str, int], classes: Sequence[str], inbox: Inbox, opened: list[socket.socket]
) -> Any:
    from pydicom.uid import AllTransferSyntaxes
    from pynetdicom import evt
    from pynetdicom.transport import ThreadedAssociationServer

    known = _addresses(peer.host)

    class Listener(ThreadedAssociationServer):
        """Association server that turns strangers away before it reads what they send."""

        def get_request(self) -> Any:
            connection, address = self.socket.accept()  # type: ignore[union-attr]
            if _plain(address[0]) not in known:
                connection.close()
                raise ConnectionRefusedError  # socketserver goes on to the next
            connection.settimeout(peer.timeout_s)
            if self.ssl_context:  # the handshake comes with the first byte, in the caller's own thread
                connection = self.ssl_context.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
            opened.append(connection)
            return connection, address

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing: socketserver would print the error together with the caller's address."""

    ours = application_entity(peer)
    ours.require_called_aet, ours.require_calling_aet = True, [peer.title]
    for sop in classes:
        ours.add_supported_context(sop, AllTransferSyntaxes)
    secure = peer.tls.context(server=True) if peer.tls else None
    handlers = [(evt.EVT_CONN_OPEN, inbox.quota.watch), (evt.EVT_C_STORE, inbox.take)]
    try:
        server = ours.make_server(listen, ssl_context=secure, evt_handlers=handlers, server_class=Listener)
    except OSError as error:
        raise UsageError(
            f"port {listen[1]} cannot be listened on there ({error.strerror}); give an address of this "
            "machine and a free port that the PACS knows: --listen ADDRESS:PORT"
        ) from None
    ours._servers.append(server)  # `shutdown` takes it out again
    return server


def _addresses(host: str) -> set[IPv4Address | IPv6Address]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        raise PacsError(f"the host '{host}' has no address; check its name") from None
    return {_plain(str(entry[4][0])) for entry in found}


def _plain(text: str) -> IPv4Address | IPv6Address:
    """Address without its zone; an IPv4 address that came through an IPv6 socket becomes IPv4."""
    address = ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
