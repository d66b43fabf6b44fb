"""The command line: one line per error, progress on stderr, results on stdout."""

from __future__ import annotations

import sys
from typing import Annotated, Protocol, runtime_checkable

import typer

from ctflow.cli.bench import bench, doctor
from ctflow.cli.convert import convert
from ctflow.cli.inspect import inspect
from ctflow.cli.pacs import pacs
from ctflow.cli.priors import priors
from ctflow.cli.protocols import cite, methods, protocols, show
from ctflow.cli.run import compare, demo, run
from ctflow.cli.study import study
from ctflow.cli.terminal import say, say_text, warnings_on_stderr
from ctflow.cli.train import train
from ctflow.cli.tune import tune
from ctflow.errors import CTFlowError, UsageError
from ctflow.registry import importing
from ctflow.system.interruption import interruptible

app = typer.Typer(
    help="CT reconstruction from DICOM to DICOM with flow priors, validated against FBP. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
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
        if isinstance(error, _Misused):
            return _fail(error.format_message(), UsageError.exit_code, debug)
        return _fail(
            f"unexpected {type(error).__name__}: run again with --debug and report what it prints", 1, debug
        )
    if status == _INTERRUPTED:  # some versions of typer return this themselves
        return _fail("interrupted; nothing incomplete was written", _INTERRUPTED, debug=False)
    return status or 0


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


for _command in (
    run,
    compare,
    inspect,
    convert,
    protocols,
    show,
    methods,
    priors,
    cite,
    train,
    tune,
    bench,
    doctor,
    demo,
):
    app.command()(_command)
app.add_typer(study, name="study")
app.add_typer(pacs, name="pacs")
