"""Benchmarks and the state of the installation: `ctflow bench` and `ctflow doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctflow.cli.completion import complete_bench
from ctflow.cli.options import finite_option
from ctflow.cli.terminal import progress_bar, say, say_text
from ctflow.errors import OutputError, UsageError
from ctflow.system.files import reserved

if TYPE_CHECKING:
    from ctflow.benchmarks import Findings
    from ctflow.system.progress import Progress


def bench(
    name: Annotated[
        str,
        typer.Argument(
            metavar="BENCH",
            help="What to measure, such as samplers; without a name, or with a wrong one, all are listed.",
            autocompletion=complete_bench,
        ),
    ],
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write bars, rows and the machine here too.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions: minutes.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of slices, as for train; not used by operators, speed and memory."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, callback=finite_option, help="Processor time to train each design.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Task of the samplers, 'limited angle'; repeatable; all by default."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the frontier here too, .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Measure ctflow on this machine against its bars; a bar that is missed is reported, not an error."""
    from ctflow.benchmarks import measure

    _require_folder(file)
    if picture is not None and (
        picture.suffix not in (".png", ".svg", ".pdf") or not picture.parent.is_dir()
    ):
        raise OutputError("the picture cannot be written; name a .png, .svg or .pdf in a folder that exists")
    options = {"data": data, "seconds": seconds, "picture": picture, "task": task}
    given = {key: value for key, value in options.items() if value is not None}
    _report(lambda progress: measure(name, quick, progress, **given), file)


def _report(measure: Callable[[Progress], Findings], file: Path | None, **more: object) -> None:
    """Measure, print, and keep figures and `more` in a file, which must be free or of an earlier bench."""
    with reserved(file, _bench) if file is not None else nullcontext() as place, progress_bar() as progress:
        found = measure(progress)
        if place is not None:
            with place.file() as new:
                text = json.dumps(found.as_json() | more, indent=2, ensure_ascii=False)
                new.write_text(text + "\n", encoding="utf-8")
    say_text(str(found))
    for bar in found.missed:
        say(f"missed: {bar.name} is {bar.value:.3g}, bound {bar.bound:.3g}", error=True)


def _bench(file: Path) -> bool:
    """Whether a file holds the figures of an earlier benchmark."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"bars", "rows", "machine"} <= content.keys()


def _require_folder(file: Path | None) -> None:
    if file is not None and not file.parent.is_dir():
        raise OutputError("there is no folder for the figures; make it first, or name another")


def doctor(
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Compare the GPU with the CPU instead: five minutes.")
    ] = False,
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures of --gpu here, to send.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of --gpu: cuda or cuda:1.", hidden=True)] = "cuda",
) -> None:
    """List what works in this installation, with the command to paste for what does not."""
    if gpu:
        _examine_gpu(device, file)
        return
    if file is not None:
        raise UsageError("--json holds the figures of a GPU; give --gpu with it")
    from ctflow.cli.installation import check_installation

    for check in check_installation():
        say(f"{'ok' if check.works else '--':<3} {check.name:<40} {check.found}")
        if not check.works and check.remedy:
            say(f"{'':<44} {check.remedy}")


def _examine_gpu(device: str, file: Path | None) -> None:
    from ctflow.benchmarks.gpu import examine, hardware
    from ctflow.system.devices import available_device

    _require_folder(file)
    device = str(available_device(device))
    _report(partial(examine, device), file, device=hardware(device))
