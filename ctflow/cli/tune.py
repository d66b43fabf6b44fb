"""Tune the methods of a protocol: `ctflow tune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ctflow.cli.completion import complete_method
from ctflow.cli.options import SEED_MOST, AllowImports, Name
from ctflow.cli.terminal import progress_bar, say
from ctflow.errors import OutputError, UsageError
from ctflow.runs.protocol import Protocol


def tune(
    protocol: Name,
    *,
    log: Annotated[
        Path, typer.Option(help="File to which every trial is appended, one JSON object per line.")
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Method to tune, ms-flow or 'ms-flow + refinement'; repeatable; all by default.",
            autocompletion=complete_method,
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, max=10_000, help="Parameter sets to try for each method.")
    ] = 12,
    patients: Annotated[int, typer.Option(min=1, max=10_000, help="Patients, one slice each.")] = 2,
    split: Annotated[str, typer.Option(help="Group of the patients: train or validation.")] = "train",
    data: Annotated[Path | None, typer.Option(help="Folder of slices, as for train.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=SEED_MOST, metavar="N", help="Seed of the search.")] = 0,
    allow_imports: AllowImports = False,
) -> None:
    """Search parameters for the methods of PROTOCOL on patients; print the best table of each."""
    from ctflow.experiments.protocol_tuning import tune as search

    if split not in ("train", "validation"):
        raise UsageError(f"there is no group '{split}' of patients; give --split train or validation")
    if not log.absolute().parent.is_dir() or log.is_dir():
        raise OutputError("the log cannot be written there; name a file in a folder that exists")
    with progress_bar() as progress:
        best = search(
            Protocol.load(protocol),
            log,
            methods=methods,
            number=trials,
            split=split,
            patients=patients,
            data=data,
            seed=seed,
            callback=lambda trial, of: progress(trial / of, "tuning"),
        )
    say(*(f"{label:<24} {json.dumps(table)}" for label, table in best.items()))
