"""What the terminal shows: results on stdout, progress on stderr; no text from outside acts on it."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from ctflow.runs.figures import Figures


def plain(text: object) -> str:
    """A text as one line that a terminal shows and does not obey.

    Escape sequences, control characters, line breaks, marks that turn the direction of writing, and what is
    invisible stand as Python writes them, as in \\x1b.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def say(*lines: object, error: bool = False) -> None:
    """Print lines, each made plain: the only way to the terminal.

    Args:
        lines: one object a line.
        error: on stderr.
    """
    stream = sys.stderr if error else sys.stdout
    for line in lines:
        print(_encodable(plain(line), stream), file=stream)


def say_json(value: object) -> None:
    """Print one JSON object, in ASCII."""
    text = json.dumps(value, indent=2, default=str).replace("\x7f", "\\u007f")  # the one that json leaves
    say(*text.split("\n"))


def say_text(text: str, error: bool = False) -> None:
    """Print a text of several lines, such as a file."""
    say(*text.expandtabs(4).rstrip("\n").split("\n"), error=error)


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def speaking_plainly() -> Iterator[None]:
    """Lead warnings, and logs that nobody else handles, to stderr by `say`."""
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

    header, rows = table(figures, against)
    grid = Table(box=box.SIMPLE)
    for number, title in enumerate(header):
        # As Text: rich would take "[dB]" for markup.
        grid.add_column(Text(plain(title)), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        grid.add_row(
            *(Text(plain(cell)) for cell in row), style="bold" if row[0] == figures["method"] else None
        )
    console = Console(highlight=False)
    console.width = max(console.width, 160)  # never fold a number
    console.print(grid)


def print_warnings(found: Iterable[str]) -> None:
    """Print warnings on stderr, a line each."""
    say(*(f"warning: {warning}" for warning in found), error=True)


@contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr where a person looks at it, a line every tenth of the way otherwise."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    what = TextColumn("{task.description:<12}", markup=False)
    columns = (what, BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda fraction, what: bar.update(task, completed=min(1.0, fraction), description=plain(what))


def _lines() -> Callable[[float, str], None]:
    last = 0

    def progress(fraction: float, what: str) -> None:
        nonlocal last
        if min(10, int(10 * fraction)) > last:
            last = min(10, int(10 * fraction))
            say(f"{10 * last:3d} % {what}", error=True)

    return progress
