"""How long work tells how far it has come: the calls that a caller may pass, and what shows them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[float, str], None]
"""Called as progress(fraction from 0 to 1, what is being done)."""

FractionProgress = Callable[[float], None]
"""Called as progress(fraction from 0 to 1)."""

StepProgress = Callable[[int, int], None]
"""Called as callback(steps done, steps in all)."""

_SILENT = 60.0  # seconds after which work without a terminal is reported anew


@contextmanager
def shown(tell: Callable[[str], None], plain: Callable[[str], str] = str) -> Iterator[Progress]:
    """Show a progress bar on stderr in a terminal, elsewhere lines with the time that is left.

    Args:
        tell: prints a line.
        plain: makes a text of what is being done fit for a terminal.
    """
    if not sys.stderr.isatty():
        yield lines(tell)
        return
    from rich import progress as bars
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    what = TextColumn("{task.description:<12}", markup=False)
    columns = (what, BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with bars.Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda fraction, what: bar.update(task, completed=min(1.0, fraction), description=plain(what))


@contextmanager
def shown_steps(name: str, wanted: bool) -> Iterator[StepProgress]:
    """Show the steps of what has this name, as `shown` does, if it is wanted."""
    if not wanted:
        yield lambda step, steps: None
        return
    from rich.console import Console

    with shown(Console(stderr=True, highlight=False, markup=False).print) as progress:
        yield lambda step, steps: progress(step / max(1, steps), name)


def lines(tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Progress:
    """Tell a line for every tenth of the work, and for every minute in which something was done.

    Args:
        tell: prints a line.
        clock: seconds since any moment.
    """
    begun = told_at = clock()
    told = 0

    def progress(fraction: float, what: str) -> None:
        nonlocal told, told_at
        fraction = min(1.0, fraction + 1e-6)  # the last of many shares may end just below 1
        now, tenth = clock(), int(10 * fraction)
        if tenth > told or (now - told_at >= _SILENT and 0 < fraction < 1):
            left = (now - begun) * (1 - fraction) / fraction
            more = f", about {_duration(left)} left" if left >= 1 else ""
            tell(f"{int(100 * fraction):3d} % {what}{more}")
            told, told_at = max(told, tenth), now

    return progress


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
