"""What the terminal shows: tables on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def print_plan(plan: dict[str, str], as_json: bool) -> None:
    """Print what a run would do."""
    lines = [f"{key:<12} {text}" for key, text in plan.items()]
    print(json.dumps({"plan": plan}, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


def print_figures(figures: dict[str, Any], as_json: bool, against: str | None = None) -> None:
    """Print the table of a run, or one JSON object, on stdout, and its warnings on stderr."""
    print_warnings(figures["warnings"])
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ctflow.report import table

    header, rows = table(figures, against)
    grid = Table(box=box.SIMPLE)
    for number, title in enumerate(header):
        # As Text: rich would take "[dB]" for markup.
        grid.add_column(Text(title), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*row, style="bold" if row[0] == figures["method"] else None)
    console = Console(highlight=False)
    console.width = max(console.width, 160)  # never fold a number
    console.print(grid)


def print_warnings(warnings: Iterable[str]) -> None:
    """Print warnings on stderr, a line each."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


@contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr where a person looks at it, a line every tenth of the way otherwise."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda fraction, what: bar.update(task, completed=fraction, description=what)


def _lines() -> Callable[[float, str], None]:
    last = 0

    def progress(fraction: float, what: str) -> None:
        nonlocal last
        if int(10 * fraction) > last:
            last = int(10 * fraction)
            print(f"{10 * last:3d} % {what}", file=sys.stderr)

    return progress
