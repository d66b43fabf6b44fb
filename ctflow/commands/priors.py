"""What priors there are, and what a file or folder says of itself: `ctflow priors`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ctflow.terminal import say


def priors(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PRIOR", help="Names, files, folders of diffusers; by default what ships."),
    ] = None,
) -> None:
    """Load priors, which checks their hashes, and print kind, size, HU, spacings and SHA-256."""
    from ctflow.priors import FlowPrior
    from ctflow.priors.network import shipped

    for name in paths or shipped():
        prior = FlowPrior.load(name)
        say(
            f"{prior.name}: {type(prior).__name__}{_size(prior)}",
            f"  trained on {_span(prior.hu_range, 'HU')}, pixels of {_span(prior.spacings_mm, 'mm')}",
            f"  sha256 {prior.sha256}",
        )


def _size(prior: Any) -> str:
    network = getattr(prior, "network", None)
    if network is None:
        return ", closed form"
    count = sum(parameter.numel() for parameter in network.parameters())
    return f", {count / 1e6:.2f} million parameters"


def _span(limits: tuple[float, float] | None, unit: str) -> str:
    return f"{limits[0]:g} to {limits[1]:g} {unit}" if limits else f"undeclared {unit}"
