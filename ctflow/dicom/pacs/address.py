"""A PACS by its address, and by the options that go with the protocol that it speaks."""

from __future__ import annotations

from pathlib import Path

from ctflow.dicom.pacs.peer import Peer, Tls
from ctflow.dicom.pacs.web_peer import WebPeer, basic, bearer, is_web
from ctflow.errors import UsageError


def peer_at(
    address: str,
    calling: str | None = None,
    timeout_s: float = 30.0,
    tls: Tls | None = None,
    *,
    token_file: Path | None = None,
    user: str | None = None,
    password_file: Path | None = None,
) -> Peer | WebPeer:
    """The PACS at "TITLE@HOST:PORT", or at the web address under which its DICOMweb lies.

    Args:
        address: where it is.
        calling: our own AE title, "CTFLOW" by default; not for a web address, nor are the next for a title.
        timeout_s: longest wait for a connection or an answer, s.
        tls: encryption; a web address at https:// is encrypted without it.
        token_file: holds a bearer token.
        user: name whose password `password_file`, or the variable CTFLOW_PACS_PASSWORD, holds.
        password_file: holds the password of `user`.

    Raises:
        UsageError: the address is not understood, or an option is not for it.
    """
    if not is_web(address):
        if token_file or user is not None or password_file:
            raise UsageError(
                "--token-file, --user and --password-file are for a web address: https://pacs.local/dicom-web"
            )
        return Peer.parse(address, "CTFLOW" if calling is None else calling, timeout_s, tls)
    if calling is not None:
        raise UsageError("--aet is for TITLE@HOST:PORT, and a web address knows no AE titles; leave it out")
    if token_file and (user is not None or password_file):
        raise UsageError("a PACS takes a token or a password, not both; give --token-file or --user")
    if password_file and user is None:
        raise UsageError("--password-file needs the name whose password it is; give --user NAME")
    shown = basic(user, password_file) if user is not None else bearer(token_file) if token_file else ""
    return WebPeer(address, timeout_s, tls, shown)
