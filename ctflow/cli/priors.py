"""List priors, and what the manifest of a file or folder says: `ctflow priors`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctflow.cli.terminal import say
from ctflow.errors import UsageError

if TYPE_CHECKING:
    from ctflow.priors import Prior


def priors(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PRIOR", help="Names, files or folders of diffusers; by default the shipped priors."
        ),
    ] = None,
    rehash: Annotated[
        Path | None,
        typer.Option(metavar="NEW", help="Write the one PRIOR to this file again, with a new hash."),
    ] = None,
) -> None:
    """Load priors, which checks their hashes, and print kind, size, HU, spacings and SHA-256."""
    from ctflow.priors import FlowPrior
    from ctflow.priors.network import rehash as write_anew
    from ctflow.priors.network import shipped_priors

    if rehash is not None:
        if len(paths or []) != 1:
            raise UsageError("--rehash writes one prior; name its file, and only that")
        write_anew(Path(paths[0]), rehash)  # type: ignore[index]
        paths = [str(rehash)]
    for name in paths or shipped_priors():
        prior = FlowPrior.load(name)
        say(
            f"{prior.name}: {type(prior).__name__}{_size(prior)}",
            f"  trained on {_span(prior.hu_range, 'HU')}, pixels of {_span(prior.spacings_mm, 'mm')}",
            f"  sha256 {prior.sha256}",
        )


def _size(prior: Prior) -> str:
    network = getattr(prior, "network", None)
    if network is None:
        return ", closed form"
    count = sum(parameter.numel() for parameter in network.parameters())
    return f", {count / 1e6:.2f} million parameters"


def _span(limits: tuple[float, float] | None, unit: str) -> str:
    return f"{limits[0]:g} to {limits[1]:g} {unit}" if limits else f"undeclared {unit}"
