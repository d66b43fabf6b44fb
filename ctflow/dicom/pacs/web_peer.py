"""A PACS at a web address (DICOMweb, PS3.18): where it is, and what we show it to be let in."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ctflow.dicom.pacs.peer import Tls
from ctflow.errors import UsageError

PASSWORD = "CTFLOW_PACS_PASSWORD"
"""Environment variable that holds a password."""

_EXAMPLE = "https://pacs.local/dicom-web"
_PATH = r"[\w./~%-]*"
_LONGEST_SECRET = 65_536  # bytes; servers take headers of 8 to 64 KiB


@dataclass(frozen=True)
class WebPeer:
    """A PACS that speaks DICOMweb.

    Args:
        url: address of its services, under which `/studies` lies.
        timeout_s: longest wait for a connection or an answer, s.
        tls: whom to trust and our certificate; for https:// only, the system's authorities by default.
        authorization: value of the header Authorization, by `bearer` or `basic`; never shown.

    Raises:
        UsageError: the address is none of DICOMweb, holds a password, or is not encrypted and `tls` is given.
    """

    url: str
    timeout_s: float = 30.0
    tls: Tls | None = None
    authorization: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:  # brackets that do not close, a port that is no number
            raise _not_understood() from None
        if parts.username is not None or parts.password is not None:
            raise UsageError(
                "a web address with a name or password in it is shown and logged; give --user NAME"
            )
        known = parts.scheme in ("http", "https") and parts.hostname and port != 0
        if not known or parts.query or parts.fragment or not re.fullmatch(_PATH, parts.path, re.ASCII):
            raise _not_understood()
        secure = parts.scheme == "https"
        if self.tls and not secure:
            raise UsageError("a PACS at http:// does not encrypt and takes no TLS options; write https://")
        object.__setattr__(self, "url", f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}")
        object.__setattr__(self, "tls", (self.tls or Tls()) if secure else None)

    @property
    def host(self) -> str:
        """Its host name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Its port."""
        return urlsplit(self.url).port or (443 if self.tls else 80)


def is_web(text: str) -> bool:
    """Whether a PACS is given by a web address, not as TITLE@HOST:PORT."""
    return re.match("https?://", text, re.IGNORECASE) is not None


def bearer(file: Path) -> str:
    """Authorisation by the token in a file (RFC 6750).

    Raises:
        UsageError: the file cannot be read or holds no token.
    """
    token = _secret(file, "token")
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token):
        raise UsageError(
            "the token file holds no bearer token; expected one line of letters, digits and -._~+/="
        )
    return f"Bearer {token}"


def basic(user: str, file: Path | None) -> str:
    """Authorisation by name and password (RFC 7617).

    Args:
        user: name.
        file: holds the password; without it the environment variable CTFLOW_PACS_PASSWORD does.

    Raises:
        UsageError: the name has a colon, or there is no password.
    """
    if not user or ":" in user or not user.isprintable():
        raise UsageError("a user's name is printable text without a colon; give another --user")
    password = os.environ.get(PASSWORD, "") if file is None else _secret(file, "password")
    if not password:
        raise UsageError(f"--user needs a password; give --password-file FILE, or set {PASSWORD}")
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _secret(file: Path, what: str) -> str:
    """The first and only line of a small file."""
    try:
        with file.open("rb") as stream:
            text = stream.read(_LONGEST_SECRET + 1).decode().rstrip("\r\n")
    except (OSError, ValueError):
        raise UsageError(f"the {what} file cannot be read; expected one line of text") from None
    if not text or not text.isprintable() or len(text) > _LONGEST_SECRET:
        raise UsageError(f"the {what} file holds no {what}; expected one line of text")
    return text


def _not_understood() -> UsageError:
    return UsageError(f"the web address of the PACS is not understood; write it as in {_EXAMPLE}")
