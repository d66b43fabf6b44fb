"""Fetch series from a PACS and send them to one: `ctflow pacs find`, `pull` and `push`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctflow.cli.options import Json, examples, finite_option
from ctflow.cli.terminal import progress_bar, say, say_json
from ctflow.errors import UsageError

if TYPE_CHECKING:
    from ctflow.dicom.pacs import Tls

pacs = typer.Typer(
    help="Find, pull and push series of a PACS; pip install 'ctflow\\[pacs]', or 'ctflow\\[dicomweb]'.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

WEB = "Authorisation at a web address"

Archive = Annotated[
    str,
    typer.Argument(
        metavar="PACS", help="TITLE@HOST:PORT, or the address of its DICOMweb: https://pacs.local/dicom-web."
    ),
]
Title = Annotated[
    str | None, typer.Option("--aet", metavar="TITLE", help="Our own AE title.", show_default="CTFLOW")
]
Timeout = Annotated[
    float,
    typer.Option(
        min=0.1, max=86_400, metavar="SECONDS", callback=finite_option, help="Longest wait for an answer."
    ),
]
Secure = Annotated[bool, typer.Option("--tls", help="Encrypt; the options below imply it.")]
Authority = Annotated[
    Path | None, typer.Option("--tls-ca", metavar="PEM", help="Whom to trust; the system's by default.")
]
Certificate = Annotated[Path | None, typer.Option("--tls-cert", metavar="PEM", help="Our certificate.")]
Key = Annotated[Path | None, typer.Option("--tls-key", metavar="PEM", help="Its key.")]
Host = Annotated[
    str | None, typer.Option("--tls-name", metavar="NAME", help="Name in the PACS' certificate, if not HOST.")
]
Token = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="Holds a bearer token.", rich_help_panel=WEB),
]
User = Annotated[
    str | None,
    typer.Option("--user", metavar="NAME", help="Whose password the next gives.", rich_help_panel=WEB),
]
Password = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="Holds it; without it CTFLOW_PACS_PASSWORD.",
        rich_help_panel=WEB,
    ),
]


class Level(StrEnum):
    """Level of a query."""

    series = "series"
    study = "study"


class By(StrEnum):
    """Ways to fetch a series."""

    get = "get"
    move = "move"


@pacs.command(
    "find",
    no_args_is_help=True,
    epilog=examples(
        "ctflow pacs find ORTHANC@pacs.local:4242 --date 20260131",
        "ctflow pacs find https://pacs.local/dicom-web --date 20260131 --token-file token",
    ),
)
def find_command(
    archive: Archive,
    *,
    patient_id: Annotated[str, typer.Option(metavar="ID", help="Patient ID; * for any text.")] = "",
    accession: Annotated[str, typer.Option(metavar="NUMBER", help="Accession number.")] = "",
    date: Annotated[str, typer.Option(metavar="DATE", help="Study date: 20260131, 20260101-20260131.")] = "",
    study: Annotated[str, typer.Option(metavar="UID", help="Study Instance UID.")] = "",
    series: Annotated[str, typer.Option(metavar="UID", help="Series Instance UID.")] = "",
    modality: Annotated[str, typer.Option(help="Modality of the series; '' for all.")] = "CT",
    level: Annotated[Level, typer.Option(help="List series or studies.")] = Level.series,
    show_phi: Annotated[
        bool, typer.Option("--show-phi", help="Ask for names, IDs, dates and descriptions, and print them.")
    ] = False,
    aet: Title = None,
    timeout: Timeout = 30.0,
    tls: Secure = False,
    tls_ca: Authority = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    tls_name: Host = None,
    token_file: Token = None,
    user: User = None,
    password_file: Password = None,
    as_json: Json = False,
) -> None:
    """List matching studies or series; nothing that names a patient is shown unless you ask for it."""
    security = _tls(tls, tls_ca, tls_cert, tls_key, tls_name)
    from ctflow.dicom.pacs import Query, find, peer_at

    peer = peer_at(
        archive, aet, timeout, security, token_file=token_file, user=user, password_file=password_file
    )
    query = Query(patient_id, accession, date, study, series, modality)
    rows = find(peer, query, level=level.value, personal=show_phi)
    if as_json:
        say_json({level.value: rows})
        return
    for row in rows:
        say(*(f"{name.replace('_', ' '):<18} {_text(value)}" for name, value in row.items()), "")
    say(f"{len(rows)} found")


@pacs.command(
    "pull",
    no_args_is_help=True,
    epilog=examples("ctflow pacs pull ORTHANC@pacs.local:4242 1.2.840.99.7 -o series"),
)
def pull_command(
    archive: Archive,
    series: Annotated[str, typer.Argument(metavar="SERIES", help="Series Instance UID.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make; it must not exist.")],
    study: Annotated[str, typer.Option(metavar="UID", help="Study Instance UID; some PACS need it.")] = "",
    by: Annotated[
        By | None,
        typer.Option(help="get: over one connection; move: the PACS calls back.", show_default="get"),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS[:PORT]",
            help="Where the PACS calls back (--by move); this machine alone by default.",
            show_default="127.0.0.1:11113",
        ),
    ] = None,
    max_gb: Annotated[
        float,
        typer.Option(
            min=0.001, metavar="GB", help="Most that is accepted in all; at most 2 GB for one image."
        ),
    ] = 16.0,
    aet: Title = None,
    timeout: Timeout = 30.0,
    tls: Secure = False,
    tls_ca: Authority = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    tls_name: Host = None,
    token_file: Token = None,
    user: User = None,
    password_file: Password = None,
    as_json: Json = False,
) -> None:
    """Fetch one series into a folder, completely or not at all."""
    security = _tls(tls, tls_ca, tls_cert, tls_key, tls_name)
    from ctflow.dicom.pacs import LISTEN, WebPeer, peer_at, pull

    peer = peer_at(
        archive, aet, timeout, security, token_file=token_file, user=user, password_file=password_file
    )

    if isinstance(peer, WebPeer) and (by or listen is not None):
        raise UsageError(
            "--by and --listen are for TITLE@HOST:PORT: a web address does not call back; leave them out"
        )
    address = LISTEN if listen is None else _address(listen)
    with progress_bar() as progress:
        images = pull(
            peer,
            out,
            series,
            study=study,
            by=(by or By.get).value,
            listen=address,
            most_bytes=round(max_gb * 1e9),
            progress=progress,
        )
    say(json.dumps({"pulled": images}) if as_json else f"{images} images pulled")


@pacs.command(
    "push", no_args_is_help=True, epilog=examples("ctflow pacs push ORTHANC@pacs.local:4242 results/ms-flow")
)
def push_command(
    archive: Archive,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders or files to send.")],
    *,
    aet: Title = None,
    timeout: Timeout = 30.0,
    tls: Secure = False,
    tls_ca: Authority = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    tls_name: Host = None,
    token_file: Token = None,
    user: User = None,
    password_file: Password = None,
    as_json: Json = False,
) -> None:
    """Send every DICOM object in the folders, each in its own transfer syntax."""
    security = _tls(tls, tls_ca, tls_cert, tls_key, tls_name)
    from ctflow.dicom.pacs import peer_at, push

    peer = peer_at(
        archive, aet, timeout, security, token_file=token_file, user=user, password_file=password_file
    )

    with progress_bar() as progress:
        objects = push(peer, paths, progress=progress)
    say(json.dumps({"pushed": objects}) if as_json else f"{objects} objects pushed")


def _tls(
    tls: bool, authority: Path | None, certificate: Path | None, key: Path | None, name: str | None
) -> Tls | None:
    from ctflow.dicom.pacs import Tls

    return Tls(authority, certificate, key, name) if tls or any((authority, certificate, key, name)) else None


def _address(text: str) -> tuple[str, int]:
    """Parse address and port: "10.0.0.5:104", "10.0.0.5", "104", "[::1]:104" or "::1"."""
    from ctflow.dicom.pacs import LISTEN

    host, _, port = text.rpartition(":")
    if text.count(":") != 1 and "]:" not in text and not text.isdigit():
        host, port = text, str(LISTEN[1])
    if not (text and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError("the address to listen on is not understood; write --listen ADDRESS or ADDRESS:PORT")
    return host.strip("[]") or LISTEN[0], int(port)


def _text(value: object) -> str:
    return "unknown" if value in (None, "") else str(value)
