"""Train a prior: `ctflow train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ctflow.cli.options import Device, finite_option
from ctflow.cli.terminal import progress_bar, say


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="Recipe: name, network, training, shares.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of training slices.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Prior to write, .safetensors.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint beside the output.")
    ] = False,
    max_seconds: Annotated[
        float | None,
        typer.Option(min=0, callback=finite_option, help="Stop after this time, with a checkpoint."),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Train a flow prior; with torchrun, by several processes together."""
    from ctflow.training import train as training

    with progress_bar() as progress:
        done = training(
            config,
            data,
            out,
            resume=resume,
            max_seconds=max_seconds,
            device=device,
            callback=lambda step, steps: progress(step / max(1, steps), "training"),
        )
    if os.environ.get("RANK", "0") == "0":
        say(
            "the prior is written"
            if done
            else "time is up: the checkpoint is written; continue with --resume"
        )
