"""One HTTP session with a PACS: whom it trusts, how much and how long it listens, and what failures mean."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ctflow.dicom.pacs.peer import no_route
from ctflow.dicom.pacs.quota import Quota
from ctflow.dicom.pacs.web_peer import WebPeer
from ctflow.dicom.reading.files import quiet
from ctflow.errors import PacsError
from ctflow.system.optional import optional_library

if TYPE_CHECKING:
    from dicomweb_client import DICOMwebClient
    from requests import HTTPError, Response

_JSON = ("application/dicom+json", "application/json")
_PARTS = ("multipart/related", "application/dicom")
_PIECE = 2**16
_LIBRARIES = ("dicomweb_client", "requests", "urllib3", "retrying")  # they log addresses and what is in them
_NOTHING = 204  # HTTP status of an answer without content

ONLY_LINK = 0
"""What a session is called in its quota: it has one connection."""

NOT_DICOMWEB = (
    "what answers at that address does not speak DICOMweb; give the address under which /studies lies, as in "
    "https://pacs.local/dicom-web"
)
"""What is said of an address that answers something else."""


@contextmanager
def silent_web() -> Iterator[None]:
    """Keep the libraries from logging or warning of what is exchanged, which names patients.

    Raises:
        BackendError: dicomweb-client is not installed.
    """
    with optional_library("dicomweb-client", "pip install 'ctflow[dicomweb]'"):
        import dicomweb_client  # noqa: F401
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    before = [logger.level for logger in loggers]
    try:
        with quiet():
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)  # those below inherit it
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def connected(peer: WebPeer, quota: Quota) -> Iterator[DICOMwebClient]:
    """A client of the PACS' services; neither environment nor .netrc change whom it trusts or what it tells.

    Args:
        peer: the PACS.
        quota: limits on what it sends.

    Raises:
        UsageError: a certificate or key cannot be read.
        BackendError: dicomweb-client is not installed.
    """
    with silent_web():
        import requests
        from dicomweb_client import DICOMwebClient

        with requests.Session() as session:
            session.trust_env = False
            session.headers.update({"Accept": _JSON[0], "Accept-Encoding": "identity"})
            if peer.authorization:
                session.headers["Authorization"] = peer.authorization
            adapter = _adapter(peer, quota)
            for scheme in ("http://", "https://"):
                session.mount(scheme, adapter)
            # Permissive: archives hold UIDs that the client's check refuses, as those with a leading zero.
            client = DICOMwebClient(peer.url, session=session, permissive_uid=True, timeout=peer.timeout_s)
            client.set_http_retry_params(retry=False)  # it would repeat every failure for half a minute
            yield client


def _adapter(peer: WebPeer, quota: Quota) -> Any:
    from requests import PreparedRequest
    from requests.adapters import HTTPAdapter

    secure: dict[str, Any] = {"ssl_context": peer.tls.context()} if peer.tls else {}
    if peer.tls and peer.tls.name:
        secure["server_hostname"] = peer.tls.name

    class Adapter(HTTPAdapter):
        """Connections that trust whom we say, and answers that are limited and of the kind that was asked."""

        last: Response | None = None

        def init_poolmanager(
            self, connections: int, maxsize: int, block: bool = False, **options: Any
        ) -> None:
            super().init_poolmanager(connections, maxsize, block, **options, **secure)

        def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
            """Nothing: the context decides; requests would trust its own authorities beside ours."""

        def close(self) -> None:
            if self.last is not None:
                self.last.close()  # also where nobody has read it to its end
            super().close()

        def send(self, request: PreparedRequest, *arguments: Any, **options: Any) -> Response:
            request.headers.pop("Host", None)  # dicomweb-client forgets the port
            if self.last is not None:
                self.last.close()
            self.last = response = super().send(request, *arguments, **options)
            quota.next_object(ONLY_LINK)
            response.raw.stream = partial(_limited, response.raw, quota)
            if refusal := _unwanted(response, "json" in str(request.headers["Accept"])):
                raise PacsError(refusal)
            return response

    return Adapter()


def _unwanted(response: Response, json: bool) -> str:
    """Why an answer is none of DICOMweb, before any of it is read; empty if it may be one."""
    if response.is_redirect:  # it would be sent what we show and what we store, wherever that is
        return "the PACS refers to another address, which is not followed; give the one that it uses"
    if not response.ok or response.status_code == _NOTHING or response.headers.get("Content-Length") == "0":
        return ""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if json:
        response.headers["Content-Type"] = kind  # dicomweb-client overlooks an answer that names its charset
    return "" if kind in (_JSON if json else _PARTS) else NOT_DICOMWEB


def _limited(raw: Any, quota: Quota, size: int, decode_content: bool = True) -> Iterator[bytes]:
    """The content as it arrives, while it is not more and not slower than is allowed.

    Raises:
        OSError: there is too much, or a piece of it takes too long.
    """
    fresh, end = 0, time.monotonic() + quota.timeout_s
    while piece := raw.read1(size, decode_content=decode_content):
        quota.count(ONLY_LINK, len(piece))
        fresh += len(piece)
        if fresh >= _PIECE:
            fresh, end = 0, time.monotonic() + quota.timeout_s
        elif time.monotonic() > end:
            raise TimeoutError
        yield piece


@contextmanager
def explained(peer: WebPeer, quota: Quota, absent: str = NOT_DICOMWEB) -> Iterator[None]:
    """Turn a failed request inside the block into an explanation; the libraries' own texts quote addresses.

    Args:
        peer: the PACS.
        quota: the limits of the session.
        absent: what is said where the PACS has no such thing (404).

    Raises:
        PacsError: the PACS cannot be reached, refuses, or its answer is cut off or none of DICOMweb.
    """
    from requests import exceptions
    from urllib3.exceptions import ReadTimeoutError

    try:
        yield
    except exceptions.HTTPError as error:
        raise PacsError(_refusal(peer, status_of(error), absent)) from None
    except (exceptions.ChunkedEncodingError, exceptions.ContentDecodingError):
        raise PacsError("an answer of the PACS was cut off; try again") from None
    except (exceptions.InvalidJSONError, RecursionError):
        raise PacsError(NOT_DICOMWEB) from None
    except (exceptions.Timeout, exceptions.ConnectionError, OSError) as error:
        if quota.exceeded:
            raise PacsError("an answer of the PACS is longer than is accepted; ask for less") from None
        waited = isinstance(error, exceptions.ReadTimeout | TimeoutError)
        if waited or any(isinstance(cause, ReadTimeoutError) for cause in error.args):
            raise PacsError(
                f"the PACS was silent or slow for {peer.timeout_s:g} s; try again, or give a longer --timeout"
            ) from None
        raise PacsError(
            f"{no_route(peer)}; check the address, https:// or http://, and firewall; give --tls-cert where "
            "it asks for a certificate"
        ) from None


def status_of(error: HTTPError) -> int:
    """Status of HTTP by which a PACS refused."""
    return 0 if error.response is None else error.response.status_code


def _refusal(peer: WebPeer, status: int, absent: str) -> str:
    """What a status of HTTP means, with its number where it is not told otherwise."""
    shown = "refuses the token or password" if peer.authorization else "asks who we are"
    meanings = {
        401: f"the PACS {shown} (401); give a valid --token-file, or --user with its password",
        403: "the PACS does not allow this to us (403); ask its administrator",
        404: absent,
        413: "the object is larger than the PACS accepts (413); ask its administrator",
        429: "the PACS is busy (429); try again later",
        503: "the PACS is busy (503); try again later",
    }
    failed = f"the PACS failed (HTTP status {status}); look into its log"
    refused = f"the PACS refused the request (HTTP status {status}); look into its log"
    return meanings.get(status, failed if status >= 500 else refused)
