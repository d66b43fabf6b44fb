"""Studies: `ctflow study run`, `ctflow study unit`, `ctflow study report` and `ctflow study show`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctflow.cli.completion import complete_study
from ctflow.cli.options import AllowImports, Executor, Jobs, Json, Scheduler, examples
from ctflow.cli.terminal import progress_bar, say, say_json, say_text
from ctflow.errors import StudyUnfinishedError, UsageError

if TYPE_CHECKING:
    from ctflow.experiments.run import Summary

study = typer.Typer(
    help="Compare methods over many cases; a study that was stopped goes on where it was.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
Name = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="Name of a packaged study, or a TOML file.", autocompletion=complete_study
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The study's folder.")]


@study.command(
    no_args_is_help=True,
    epilog=examples(
        "ctflow study run phantoms -o trial --dry-run", "ctflow study run phantoms -o trial --jobs 2"
    ),
)
def run(
    name: Name,
    out: Out,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the study in the folder.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Continue, and run failed units again.")
    ] = False,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Run the I-th of N parts of the units.")] = "1/1",
    jobs: Jobs = 1,
    executor: Executor = "processes",
    scheduler: Scheduler = None,
    allow_imports: AllowImports = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the units; compute and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run all units of STUDY that are not done; status 9 if some failed or are left."""
    from ctflow.experiments.run import preview, run_study
    from ctflow.experiments.study import Study
    from ctflow.system.executors import Engine

    part, chosen = _shard(shard), Study.load(name)
    engine = Engine(executor, jobs, scheduler, chosen.slurm)
    if dry_run:
        _print(preview(chosen, out, part), as_json, listed=True)
        return
    with progress_bar() as progress:
        found = run_study(
            chosen,
            out,
            resume=resume,
            retry_failed=retry_failed,
            shard=part,
            engine=engine,
            progress=progress,
        )
    _print(found, as_json, listed=False)
    if not found.whole:
        raise StudyUnfinishedError(_left(found, part))


@study.command(no_args_is_help=True, epilog=examples("ctflow study unit HASH phantoms -o trial"))
def unit(
    hash_: Annotated[str, typer.Argument(metavar="HASH", help="Unit, as --dry-run lists it.")],
    name: Name,
    out: Out,
    allow_imports: AllowImports = False,
) -> None:
    """Run one unit of STUDY, again if it failed, and print its record."""
    from ctflow.experiments.run import run_one
    from ctflow.experiments.study import Study

    say_json(run_one(Study.load(name), out, hash_))


@study.command(no_args_is_help=True, epilog=examples("ctflow study report trial"))
def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The study's folder.")],
    allow_imports: AllowImports = False,
) -> None:
    """Write report.html, report.json and report.csv from the units done so far, and print the path."""
    from ctflow.experiments.report import write_report

    say(write_report(out))


@study.command(no_args_is_help=True, epilog=examples("ctflow study show phantoms"))
def show(name: Name) -> None:
    """Print a study file, to copy and change."""
    from ctflow.experiments.study import known_key, texts

    known = texts()
    known_key(name, known, f"no study is packaged as '{name}'")
    say_text(known[name])


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"shard '{text}' is not understood; write --shard 2/5 for the second of five parts")
    return int(found[1]), int(found[2])


def _print(found: Summary, as_json: bool, listed: bool) -> None:
    stages = {"tuning": found.tuning, "test": found.test}
    if as_json:
        content = {
            **{stage: counts and dict(counts) for stage, counts in stages.items()},
            "units": found.units,
        }
        say_json({**content, "report": found.report and str(found.report)})
        return
    for one in found.units if listed else ():
        stage = "test" if one["trial"] is None else f"trial {one['trial']}"
        words = (one["unit"], one["status"], stage, one["case"], one["protocol"], one["method"])
        say("  ".join([*map(str, words), f"seed {one['seed']}"]))
    for stage, counts in stages.items():
        if counts:
            say(f"{stage:<8} " + ", ".join(f"{number} {status}" for status, number in counts.items()))
    for reason, number in found.reasons.items():
        say(f"{number} failed: {reason}", error=True)
    if found.report:
        say(f"report: {found.report}")


def _left(found: Summary, shard: tuple[int, int]) -> str:
    counts = found.counts
    if counts["failed"]:
        return (
            f"{counts['failed']} units failed, with the reasons above and in manifest.jsonl; the others are "
            "kept; correct the cause and give --retry-failed"
        )
    if found.test is None:
        return (
            f"{counts['pending']} tuning units are left to other shards; run the shards again when all "
            "have ended"
        )
    return f"{counts['pending']} units are left to other shards than {shard[0]}/{shard[1]}; run those too"
