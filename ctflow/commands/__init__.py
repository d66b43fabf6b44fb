"""The commands of `ctflow`, one file for each topic; `ctflow.cli` lists them."""

from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="PROTOCOL", help="Name of a protocol, or a TOML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
