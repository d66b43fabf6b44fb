"""Output to the terminal: results on stdout, progress on stderr; no external text can control it."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from ctflow.runs.figures import Figures

from ctflow.system.progress import Progress, shown


def printable(text: object) -> str:
    """Turn a text into one line that a terminal shows but does not obey.

    Escape sequences, control characters, line breaks, marks that change the writing direction, and invisible
    characters are written as in Python, for example \\x1b.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def say(*lines: object, error: bool = False) -> None:
    """Print lines, each made printable; all output to the terminal goes through here.

    Args:
        lines: one object per line.
        error: print on stderr.
    """
    stream = sys.stderr if error else sys.stdout
    for line in lines:
        print(_encodable(printable(line), stream), file=stream)


def say_json(value: object) -> None:
    """Print one JSON object, in ASCII."""
    text = json.dumps(value, indent=2, default=str).replace(
        "\x7f", "\\u007f"
    )  # the one that json does not escape
    say(*text.split("\n"))


def say_text(text: str, error: bool = False) -> None:
    """Print a text of several lines, such as a file."""
    say(*text.expandtabs(4).rstrip("\n").split("\n"), error=error)


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Print warnings, and log records without another handler, on stderr by `say`."""
    before = logging.lastResort
    logging.lastResort = _Said(logging.WARNING)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}", error=True)
        try:
            yield
        finally:
            logging.lastResort = before


class _Said(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}", error=True)


def print_plan(plan: dict[str, str], as_json: bool) -> None:
    """Print what a run would do."""
    if as_json:
        say_json({"plan": plan})
    else:
        say(*(f"{key:<12} {text}" for key, text in plan.items()))


def print_figures(figures: Figures, as_json: bool, against: str | None = None) -> None:
    """Print the table of a run, or one JSON object, on stdout, and its warnings on stderr."""
    print_warnings(figures["warnings"])
    if as_json:
        say_json(figures)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ctflow.runs.report import table

    def cell(text: object) -> Text:  # as Text: rich would take "[dB]" for markup
        return Text(_encodable(printable(text), sys.stdout))

    header, rows = table(figures, against)
    grid = Table(box=box.SIMPLE)
    for number, title in enumerate(header):
        grid.add_column(cell(title), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*map(cell, row), style="bold" if row[0] == figures["method"] else None)
    console = Console(highlight=False)
    console.width = max(console.width, 160)  # never fold a number
    console.print(grid)


def print_warnings(found: Iterable[str]) -> None:
    """Print warnings on stderr, a line each."""
    say(*(f"warning: {warning}" for warning in found), error=True)


def progress_bar() -> AbstractContextManager[Progress]:
    """Show a progress bar on stderr in a terminal, elsewhere lines with the time that is left."""
    return shown(partial(say, error=True), lambda what: _encodable(printable(what), sys.stderr))
