"""The PACS at the other end of a DICOM association: its address, TLS, and no logging of what is exchanged."""

from __future__ import annotations

import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ctflow.dicom.pacs.quota import Quota
from ctflow.dicom.reading.files import quiet
from ctflow.errors import PacsError, UsageError
from ctflow.system.optional import optional_library

# Diagnostics of a rejected association, PS3.8 table 9-21, source 1 (service user).
_CALLING_UNKNOWN, _CALLED_UNKNOWN = 3, 7
_SERVICE_USER = 1
_TITLE = r"[\x20-\x5b\x5d-\x7e]{1,16}"  # AE of PS3.5: 16 characters, no backslash, no control character


@dataclass(frozen=True)
class Tls:
    """How to encrypt an association and whom to trust (BCP 195 profile: TLS 1.2 or later).

    Args:
        authority: certificates that must have signed that of the PACS; those of the system by default.
        certificate: our own certificate, where the PACS asks for one.
        key: private key of `certificate`.
        name: name in the certificate of the PACS; its host by default.
    """

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    name: str | None = None

    def context(self, server: bool = False) -> ssl.SSLContext:
        """TLS settings of one side of a connection; the other side is always verified.

        Raises:
            UsageError: a file cannot be read or holds no certificate or key.
        """
        if server and self.certificate is None:
            raise UsageError("receiving with TLS needs a certificate; give --tls-cert and --tls-key")
        purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
        try:
            context = ssl.create_default_context(purpose, cafile=self.authority)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError):
            raise UsageError(
                "a certificate or key for TLS cannot be read; expected PEM files, the key without a password"
            ) from None
        if self.authority is None:
            context.load_default_certs(purpose)  # not done for a server unless it asks for certificates
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True)
class Peer:
    """A PACS: its AE title and address, and the AE title that we use.

    Args:
        title: AE title of the PACS.
        host: its host name or address.
        port: its port.
        calling: our own AE title.
        timeout_s: longest wait for a connection or an answer, s.
        tls: encryption; none by default.

    Raises:
        UsageError: an AE title is too long or holds a backslash.
    """

    title: str
    host: str
    port: int
    calling: str = "CTFLOW"
    timeout_s: float = 30.0
    tls: Tls | None = None

    def __post_init__(self) -> None:
        for title in (self.title, self.calling):
            if not re.fullmatch(_TITLE, title) or not title.strip():
                raise UsageError("an AE title has 1 to 16 characters of ASCII and no backslash; give another")

    @classmethod
    def parse(
        cls, text: str, calling: str = "CTFLOW", timeout_s: float = 30.0, tls: Tls | None = None
    ) -> Peer:
        """Parse "TITLE@HOST:PORT".

        Raises:
            UsageError: the text has another form.
        """
        title, at, address = text.rpartition("@")
        host, colon, port = address.rpartition(":")
        if not (at and colon and host and port.isdigit() and 0 < int(port) < 65536):
            raise UsageError(
                "the PACS address is not understood; write TITLE@HOST:PORT, as in ORTHANC@pacs.local:4242"
            )
        return cls(title, host.strip("[]"), int(port), calling, timeout_s, tls)


@contextmanager
def silent() -> Iterator[None]:
    """Keep pynetdicom, pydicom and their threads from logging what is exchanged, which names patients.

    Raises:
        BackendError: pynetdicom is not installed.
    """
    with optional_library("pynetdicom", "pip install 'ctflow[pacs]'"):
        from pynetdicom import _config
    logger = logging.getLogger("pynetdicom")
    before = logger.level, _config.LOG_HANDLER_LEVEL, threading.excepthook
    try:
        with quiet():
            logger.setLevel(logging.CRITICAL + 1)  # its loggers inherit it
            _config.LOG_HANDLER_LEVEL = "none"
            threading.excepthook = lambda _: None  # a thread that dies is an association that breaks
            yield
    finally:
        logger.setLevel(before[0])
        _config.LOG_HANDLER_LEVEL, threading.excepthook = before[1:]


def application_entity(peer: Peer) -> Any:
    """Our application entity, with the peer's timeouts."""
    from pynetdicom.ae import ApplicationEntity

    ours = ApplicationEntity(ae_title=peer.calling)
    ours.acse_timeout = ours.dimse_timeout = peer.timeout_s
    ours.network_timeout = ours.connection_timeout = peer.timeout_s
    return ours


@contextmanager
def association(
    peer: Peer,
    contexts: Sequence[Any],
    roles: Sequence[Any] = (),
    on_store: Callable[[Any], int] | None = None,
    quota: Quota | None = None,
) -> Iterator[Any]:
    """Open an association; it is released at the end of the block and aborted on failure.

    Args:
        peer: PACS to call.
        contexts: presentation contexts to propose.
        roles: role selections (C-GET receives, so both sides must agree).
        on_store: takes a C-STORE event and returns its status.
        quota: limits on the bytes received and on the time; those of a pull by default.

    Raises:
        PacsError: there is no route, the association is rejected, or no proposed context is accepted.
    """
    from pynetdicom import evt

    opened: list[socket.socket] = []
    handlers: list[Any] = [(evt.EVT_CONN_OPEN, lambda event: opened.append(event.assoc.dul.socket.socket))]
    handlers.append((evt.EVT_CONN_OPEN, (quota or Quota(peer.timeout_s)).watch))
    handlers += [(evt.EVT_C_STORE, on_store)] if on_store is not None else []
    tls = (peer.tls.context(), peer.tls.name or peer.host) if peer.tls else None
    try:
        link = application_entity(peer).associate(
            peer.host,
            peer.port,
            contexts=list(contexts),
            ae_title=peer.title,
            ext_neg=list(roles),
            tls_args=tls,
            evt_handlers=handlers,
        )
    except OSError:  # a host without an address
        raise PacsError(f"{no_route(peer)}; check its name") from None
    try:
        if not link.is_established:
            raise _refusal(peer, link, bool(opened))
        yield link
        if link.is_established:
            link.release()
    except BaseException:
        if link.is_established:
            link.abort()
        raise
    finally:
        for connection in opened:
            connection.close()  # pynetdicom leaves it open where the other side has closed it


def _refusal(peer: Peer, link: Any, opened: bool) -> PacsError:
    if not opened:
        return PacsError(f"{no_route(peer)}; check host, port, TLS and firewall")
    if link.is_rejected:
        answer = link.acceptor.primitive
        known = answer.result_source == _SERVICE_USER
        if known and answer.diagnostic == _CALLED_UNKNOWN:
            return PacsError(f"the PACS is not called '{peer.title}'; give its AE title: TITLE@HOST:PORT")
        if known and answer.diagnostic == _CALLING_UNKNOWN:
            return PacsError(
                f"the PACS does not know '{peer.calling}'; register this AE title there, or give the "
                "registered one with --aet"
            )
        return PacsError(f"the PACS rejected the association ({answer.reason_str}); try again later")
    if link.rejected_contexts:
        return PacsError(
            "the PACS offers none of the services or transfer syntaxes that were requested; expected it to "
            "accept one; see its conformance statement"
        )
    return PacsError(
        f"the PACS closed the connection before it answered, or was silent for {peer.timeout_s:g} s; if it "
        "wants TLS give --tls, and --tls-cert where it asks for a certificate"
    )


class Reachable(Protocol):
    """A PACS at an address, however it speaks."""

    @property
    def host(self) -> str:
        """Its host name or address."""
        ...

    @property
    def port(self) -> int:
        """Its port."""
        ...

    @property
    def timeout_s(self) -> float:
        """Longest wait for a connection, s."""
        ...

    @property
    def tls(self) -> Tls | None:
        """Encryption."""
        ...


def no_route(peer: Reachable) -> str:
    """Why a connection could not be made, found by trying once more with a plain socket."""
    reasons: dict[type[OSError], str] = {
        socket.gaierror: "the host of the PACS has no address",
        ConnectionRefusedError: f"nothing listens on port {peer.port} of the PACS",
        ssl.SSLCertVerificationError: "the certificate of the PACS is not trusted",
        ssl.SSLError: "the PACS does not speak TLS on this port, or refuses ours",
        TimeoutError: f"the PACS did not answer within {peer.timeout_s:g} s",
        OSError: "there is no route to the PACS",
    }
    try:
        with socket.create_connection((peer.host, peer.port), peer.timeout_s) as link:
            if peer.tls:
                peer.tls.context().wrap_socket(link, server_hostname=peer.tls.name or peer.host).close()
    except OSError as error:
        return next(text for kind, text in reasons.items() if isinstance(error, kind))
    return "the connection to the PACS broke"
