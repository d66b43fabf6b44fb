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
    from ctflow.dicom.pacs import Peer

pacs = typer.Typer(
    help="Find, pull and push series of a PACS; pip install 'ctflow\\[pacs]'.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Archive = Annotated[str, typer.Argument(metavar="PACS", help="AE title and address: TITLE@HOST:PORT.")]
Title = Annotated[str, typer.Option("--aet", metavar="TITLE", help="Our own AE title.")]
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


class Level(StrEnum):
    """Level of a query."""

    series = "series"
    study = "study"


class By(StrEnum):
    """Ways to fetch a series."""

    get = "get"
    move = "move"


@pacs.command(
    "find", no_args_is_help=True, epilog=examples("ctflow pacs find ORTHANC@pacs.local:4242 --date 20260131")
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
    aet: Title = "CTFLOW",
    timeout: Timeout = 30.0,
    tls: Secure = False,
    tls_ca: Authority = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    tls_name: Host = None,
    as_json: Json = False,
) -> None:
    """List matching studies or series; nothing that names a patient is shown unless you ask for it."""
    peer = _peer(archive, aet, timeout, tls, tls_ca, tls_cert, tls_key, tls_name)
    from ctflow.dicom.pacs import Query, find

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
    by: Annotated[By, typer.Option(help="get: over one connection; move: the PACS calls back.")] = By.get,
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS[:PORT]",
            help="Where the PACS calls back (--by move); this machine alone by default.",
        ),
    ] = "127.0.0.1:11113",
    max_gb: Annotated[
        float,
        typer.Option(
            min=0.001, metavar="GB", help="Most that is accepted in all; at most 2 GB for one image."
        ),
    ] = 16.0,
    aet: Title = "CTFLOW",
    timeout: Timeout = 30.0,
    tls: Secure = False,
    tls_ca: Authority = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    tls_name: Host = None,
    as_json: Json = False,
) -> None:
    """Fetch one series into a folder, completely or not at all."""
    peer = _peer(archive, aet, timeout, tls, tls_ca, tls_cert, tls_key, tls_name)
    address = _address(listen)
    from ctflow.dicom.pacs import pull

    with progress_bar() as progress:
        images = pull(
            peer,
            out,
            series,
            study=study,
            by=by.value,
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
    aet: Title = "CTFLOW",
    timeout: Timeout = 30.0,
    tls: Secure = False,
    tls_ca: Authority = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    tls_name: Host = None,
    as_json: Json = False,
) -> None:
    """Send every DICOM object in the folders, each in its own transfer syntax."""
    peer = _peer(archive, aet, timeout, tls, tls_ca, tls_cert, tls_key, tls_name)
    from ctflow.dicom.pacs import push

    with progress_bar() as progress:
        objects = push(peer, paths, progress=progress)
    say(json.dumps({"pushed": objects}) if as_json else f"{objects} objects pushed")


def _peer(
    archive: str,
    aet: str,
    timeout: float,
    tls: bool,
    authority: Path | None,
    certificate: Path | None,
    key: Path | None,
    name: str | None,
) -> Peer:
    from ctflow.dicom.pacs import Peer, Tls

    secure = tls or any((authority, certificate, key, name))
    return Peer.parse(archive, aet, timeout, Tls(authority, certificate, key, name) if secure else None)


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
