"""The command line: one line per error, progress on stderr, results on stdout."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from inspect import signature
from typing import Annotated, Protocol, runtime_checkable

import typer

from ctflow.cli.bench import bench, doctor
from ctflow.cli.convert import convert
from ctflow.cli.inspect import inspect
from ctflow.cli.options import examples
from ctflow.cli.pacs import pacs
from ctflow.cli.priors import priors
from ctflow.cli.protocols import cite, methods, protocols, show
from ctflow.cli.run import compare, demo, run, view
from ctflow.cli.study import study
from ctflow.cli.terminal import say, say_text, warnings_on_stderr
from ctflow.cli.train import train
from ctflow.cli.tune import tune
from ctflow.errors import CTFlowError, OutputError, UsageError
from ctflow.registry import importing
from ctflow.system.files import FULL
from ctflow.system.interruption import interruptible

app = typer.Typer(
    help="CT reconstruction from DICOM to DICOM with flow priors, validated against FBP. Research use only.",
    epilog=examples(
        "ctflow demo -o out/demo",
        "ctflow inspect study/",
        "ctflow run sparse-view-60 study/CT-thorax -o results --slices 10:14",
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_INTERRUPTED = 130


@runtime_checkable
class _Misused(Protocol):
    """Typer's own errors: an unknown option, a missing argument."""

    def format_message(self) -> str: ...


def main(arguments: list[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: words after `ctflow`; those of the process by default.

    Returns:
        Exit status: 0, that of the error class (see ctflow.errors), or 130 when interrupted by Ctrl-C,
        SIGTERM or SIGHUP.
    """
    given = sys.argv[1:] if arguments is None else arguments
    words = [word for word in given if word != "--debug"]
    debug = words != given
    # Before torch is imported: else its idle threads spin on cores that convolutions and projectors need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with importing(False), warnings_on_stderr(), interruptible():
            status = app(words, prog_name="ctflow", standalone_mode=False)
    except CTFlowError as error:
        return _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone: `ctflow protocols | head -1`
        return 0
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # typer has printed the help, and names this nowhere
            return 0
        return _fail(*_explained(error), debug)
    if status == _INTERRUPTED:  # some versions of typer return this themselves
        return _fail("interrupted; nothing incomplete was written", _INTERRUPTED, debug=False)
    return status or 0


def _explained(error: Exception) -> tuple[str, int]:
    """What no part of ctflow has explained, in words that quote no path, and the exit status."""
    if isinstance(error, _Misused):
        return error.format_message(), UsageError.exit_code
    number = getattr(error, "errno", None)  # of an OSError, wherever the system refused
    if number in FULL:
        full = "the output needs more space than the disk or its quota has left; make room and run again"
        return full, OutputError.exit_code
    if number == errno.ENAMETOOLONG:
        return "a name is longer than the system takes; give a shorter one", UsageError.exit_code
    return f"unexpected {type(error).__name__}: run again with --debug and report what it prints", 1


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        import traceback

        say_text(traceback.format_exc(), error=True)
    say(f"error: {' '.join(message.split())}", error=True)
    return status


def _version(wanted: bool) -> None:
    if wanted:
        from ctflow.system.version import full_version, is_checkout, release

        since = f" (a checkout: installed as {release()}, the code is that of the hash)" * is_checkout()
        say(f"ctflow {full_version()}{since}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Options of all commands; --debug before or after a command prints tracebacks."""


_PANELS: dict[str, dict[Callable[..., None], tuple[str, ...]]] = {
    "Reconstruct": {
        demo: ("ctflow demo -o out/demo",),
        run: (
            "ctflow run sparse-view-60 study/CT-thorax -o results --dry-run",
            "ctflow run sparse-view-60 study/CT-thorax -o results --slices 10:14 --methods fbp,tv,ms-flow",
            "ctflow run low-dose study/CT-thorax -o results --set noise.photons=2e4",
        ),
        compare: ("ctflow compare results --against fbp",),
        view: ("ctflow view results",),
    },
    "Look at data": {
        inspect: ("ctflow inspect study/", "ctflow inspect study/CT-thorax --split --tilt resample"),
        convert: ("ctflow convert study/CT-thorax thorax.nii.gz",),
    },
    "Find out what there is": {
        protocols: ("ctflow protocols", "ctflow protocols --json"),
        show: ("ctflow show sparse-view-60",),
        methods: ("ctflow methods", "ctflow methods --json"),
        priors: ("ctflow priors", "ctflow priors ct-256"),
        cite: ("ctflow cite sparse-view-60",),
        doctor: ("ctflow doctor",),
    },
    "Train, tune and measure": {
        train: ("ctflow train recipe.toml --data DATA -o mine.safetensors --max-seconds 3600",),
        tune: ("ctflow tune sparse-view-60 --log trials.jsonl --method ms-flow --trials 24",),
        bench: ("ctflow bench operators --quick", "ctflow bench samplers --quick --data DATA"),
    },
}
for _panel, _commands in _PANELS.items():
    for _command, _lines in _commands.items():
        _bare = any(
            parameter.default is parameter.empty for parameter in signature(_command).parameters.values()
        )
        app.command(rich_help_panel=_panel, epilog=examples(*_lines), no_args_is_help=_bare)(_command)
app.add_typer(study, name="study", rich_help_panel="Many cases")
app.add_typer(pacs, name="pacs", rich_help_panel="Many cases")
