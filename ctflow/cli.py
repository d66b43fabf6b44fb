"""The command line: one line per error, progress on stderr, results on stdout."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ctflow import __version__
from ctflow.errors import AcceptanceError, CTFlowError, NoDicomError, OutputError, UsageError
from ctflow.protocol import Protocol, summary_of, texts
from ctflow.terminal import print_figures, print_plan, progress_bar

app = typer.Typer(
    help="CT reconstruction from DICOM to DICOM with flow priors, validated against FBP. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

_INTERRUPTED = 130

Name = Annotated[str, typer.Argument(metavar="PROTOCOL", help="Name of a protocol, or a TOML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]


def main(arguments: list[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: words after `ctflow`; those of the process by default.

    Returns:
        Exit status: 0, that of the error class (see ctflow.errors), 130 when interrupted.
    """
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words
    try:
        status = app([word for word in words if word != "--debug"], prog_name="ctflow", standalone_mode=False)
    except CTFlowError as error:
        return _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone: `ctflow protocols | head -1`
        return 0
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own: an unknown option, a missing argument
            return _fail(error.format_message(), UsageError.exit_code, debug)
        return _fail(
            f"unexpected {type(error).__name__}: run again with --debug and report what it prints", 1, debug
        )
    if status == _INTERRUPTED:  # some versions of typer return this themselves
        return _fail("interrupted; nothing was written", _INTERRUPTED, debug=False)
    return status or 0


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ctflow {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Options of every command; --debug before or after a command prints tracebacks."""


@app.command()
def run(
    protocol: Name,
    series: Annotated[Path, typer.Argument(metavar="SERIES", help="Folder of a DICOM CT series.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; it must not exist.")
    ] = None,
    slices: Annotated[
        str, typer.Option(metavar="A:B", help="Slices A to B - 1, by place; all by default.")
    ] = ":",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="method.iterations=80")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of noise and methods.")] = 0,
    prior: Annotated[str, typer.Option(help="Name or file of the flow prior.")] = "ct-256",
    samples: Annotated[int, typer.Option(min=1, help="Images that a random method draws and averages.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    uid: Annotated[
        str | None, typer.Option("--series", metavar="UID", help="Series, where a folder holds more.")
    ] = None,
    energy_kev: Annotated[
        float | None, typer.Option(help="Effective energy; sets the attenuation of water.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; compute and write nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run's output.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a series as PROTOCOL says, reconstruct and compare; write DICOM and a report."""
    changes = [*(settings or []), *([f"energy_kev={energy_kev}"] if energy_kev else [])]
    chosen = Protocol.load(protocol).override(changes)
    if out is None and not dry_run:
        raise UsageError("there is nowhere to write; give -o FOLDER, or --dry-run")
    from ctflow import pipeline
    from ctflow.report import check_output

    limits = _slices(slices)
    if dry_run:
        check_output(out, series, overwrite)
        job = pipeline.prepare(chosen, series, slices=limits, uid=uid, prior=prior, device=device)
        print_plan(job.plan(), as_json)
        return
    options = {"seed": seed, "samples": samples, "device": device, "overwrite": overwrite}
    with progress_bar() as progress:
        report = pipeline.run(
            chosen,
            series,
            out,
            prior=prior,
            slices=limits,
            uid=uid,
            progress=progress,
            **options,  # type: ignore[arg-type]
        )
    print_figures(report.figures, as_json)
    _accept(report.figures)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of DICOM files.")],
    as_json: Json = False,
) -> None:
    """List the series in a folder, which are usable and why the others are not; shows no patient data."""
    from ctflow.dicom import inspect_folder

    found = [asdict(series) for series in inspect_folder(folder)]
    if not found:
        raise NoDicomError("there is no DICOM file in the folder; give the folder of a CT series")
    if as_json:
        print(json.dumps({"series": found}, indent=2, default=str))
        return
    for series in found:
        print(
            "\n".join(f"{key.replace('_', ' '):<18} {_words(value)}" for key, value in series.items()),
            end="\n\n",
        )


@app.command()
def protocols() -> None:
    """List the protocols by name: $CTFLOW_PROTOCOLS first, then those that come with ctflow."""
    known = texts()
    width = max(map(len, known))
    print("\n".join(f"{name:<{width}}  {summary_of(text)}" for name, text in known.items()))


@app.command()
def show(protocol: Name) -> None:
    """Print a protocol as it stands in its file."""
    path = Path(protocol)
    Protocol.load(protocol)
    print((path.read_text(encoding="utf-8") if path.is_file() else texts()[protocol]).rstrip())


@app.command()
def compare(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `ctflow run` wrote.")],
    against: Annotated[
        str | None, typer.Option(help="Method to compare with; the reference by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the table of a finished run; status 8 where a threshold of the protocol was missed."""
    from ctflow.report import read_figures

    figures = read_figures(out)
    print_figures(figures, as_json, against or figures["reference"])
    _accept(figures)


@app.command()
def methods() -> None:
    """List the methods that a protocol can name: what they cost, what they need, and whose they are."""
    from ctflow.registry import find, names

    for name in sorted(names("method")):
        method = find("method", name)
        needs = "a prior" if method.needs_prior else "no prior"
        needs += " with gradients" if "back" in method.cost and method.needs_prior else ""
        title = re.search(r"title\s*=\s*\{(.*?)\},?\s*\n", method.paper, re.DOTALL)
        year = re.search(r"year\s*=\s*\{(\d+)\}", method.paper)
        named = re.sub(r"[{}]|\s(?=\s)", "", title[1]) if title else "no title"
        print(f"{name:<16} {method.__name__}: {(method.__doc__ or '').splitlines()[0]}")
        print(f"{'':<16} {method.cost}; needs {needs}")
        print(f"{'':<16} {named} ({year[1] if year else 'no year'})\n")


@app.command()
def doctor() -> None:
    """Say what of this installation works, and the line to paste for what does not."""
    from ctflow.doctor import examine

    for check in examine():
        print(f"{'ok' if check.works else '--':<3} {check.name:<40} {check.found}")
        if not check.works and check.remedy:
            print(f"{'':<44} {check.remedy}")


@app.command()
def bench(
    name: Annotated[str, typer.Argument(metavar="BENCH", help="operators.")],
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write bars, rows and the machine here too.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions: minutes.")] = False,
) -> None:
    """Measure ctflow on this machine against its bars; a bar that is missed is reported, not an error."""
    from ctflow.benchmarks import measure

    if file is not None and not file.parent.is_dir():
        raise OutputError(f"there is no folder for '{file.name}'; make it first, or name another place")
    with progress_bar() as progress:
        found = measure(name, quick, progress)
    print(found)
    if file is not None:
        file.write_text(json.dumps(found.as_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for bar in found.missed:
        print(f"missed: {bar.name} is {bar.value:.3g}, bound {bar.bound:.3g}", file=sys.stderr)


@app.command()
def cite(protocol: Name) -> None:
    """Print BibTeX of the methods that a protocol uses, and of what they stand on."""
    from ctflow.report import citation

    chosen = Protocol.load(protocol)
    papers = {name: str(method.paper) for name, method in chosen.methods().items()}
    print(citation(papers, "geometry" in chosen.tables))


@app.command()
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
        float | None, typer.Option(help="Stop after this time, with a checkpoint.")
    ] = None,
) -> None:
    """Train a flow prior."""
    from ctflow.training import train as training

    with progress_bar() as progress:
        done = training(
            config,
            data,
            out,
            resume=resume,
            max_seconds=max_seconds,
            callback=lambda step, steps: progress(step / max(1, steps), "training"),
        )
    print("the prior is written" if done else "time is up: the checkpoint is written; go on with --resume")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write; an earlier demo is replaced.")
    ] = Path("out/demo"),
    prior: Annotated[str, typer.Option(help="Name or file of the flow prior.")] = "ct-256",
) -> None:
    """Reconstruct a toy series, written for the purpose, from 60 views with every method."""
    from ctflow import pipeline
    from ctflow.datasets.synthetic import write_toy_series

    with tempfile.TemporaryDirectory() as folder, progress_bar() as progress:
        write_toy_series(Path(folder) / "toy")
        chosen = Protocol.load("sparse-view-60")
        report = pipeline.run(
            chosen, Path(folder) / "toy", out, prior=prior, overwrite=True, progress=progress
        )
    print_figures(report.figures, as_json=False)
    print(f"report: {out / 'report.html'}")


def _slices(text: str) -> tuple[int, int] | None:
    if text == ":":
        return None
    start, colon, stop = text.partition(":")
    if not (colon and start.isdigit() and stop.isdigit()):
        raise UsageError(f"slices '{text}' are not understood; write --slices 10:14 for the slices 10 to 13")
    return int(start), int(stop)


def _accept(figures: dict[str, Any]) -> None:
    from ctflow.report import failures

    missed = failures(figures)
    if missed:
        raise AcceptanceError(f"{'; '.join(missed)}; the output is kept")


def _words(value: Any) -> str:
    return "; ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
