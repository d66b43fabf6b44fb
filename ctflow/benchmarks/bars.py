"""Bars, rows, and times that can be compared on a machine that does other things too."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A figure and what it must reach.

    Args:
        name: what was measured.
        value: the figure.
        bound: least value that holds, or the largest one with `at_most`.
        at_most: whether small values are good.
    """

    name: str
    value: float
    bound: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        """Whether the figure reaches the bound; NaN does not."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        sign, verdict = ("<=" if self.at_most else ">="), ("" if self.holds else "   MISSED")
        return f"{self.name:<58} {self.value:>9.3g}  {sign} {self.bound:<8.3g}{verdict}"


@dataclass(frozen=True)
class Row:
    """A figure for information.

    Args:
        name: what was measured.
        seconds: median time of one call.
        ratio: time of the reference over this time.
    """

    name: str
    seconds: float
    ratio: float

    def __str__(self) -> str:
        return f"{self.name:<58} {self.seconds * 1e3:>9.1f} ms  ratio {self.ratio:.3g}"


@dataclass(frozen=True)
class Figure:
    """A figure for information that is no time.

    Args:
        name: what was measured.
        value: the figure; NaN where it could not be measured.
        unit: its unit, or why there is none.
    """

    name: str
    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.name:<58} {self.value:>9.4g} {self.unit}"


@dataclass
class Findings:
    """What a bench has measured.

    Args:
        bars: figures with bounds.
        rows: figures for information: dataclasses that print as a line.
    """

    bars: list[Bar] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)

    @property
    def missed(self) -> list[Bar]:
        """Bars that do not hold."""
        return [bar for bar in self.bars if not bar.holds]

    def as_json(self) -> dict[str, Any]:
        """Everything, and the machine, as plain values."""
        bars = [{"name": b.name, "value": b.value, "bound": b.bound, "holds": b.holds} for b in self.bars]
        return {
            "bars": [_plain(bar) for bar in bars],
            "rows": [_plain(vars(row)) for row in self.rows],
            "machine": machine(),
        }

    def __str__(self) -> str:
        verdict = f"{len(self.bars) - len(self.missed)} of {len(self.bars)} bars hold"
        return "\n".join([*map(str, self.rows), "", *map(str, self.bars), "", verdict])


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON can say it, which knows no NaN and no infinity."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def machine() -> dict[str, Any]:
    """Processor, threads and versions, without which a time says nothing."""
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "astra-toolbox", "numba", "numpy")},
    }


def interleaved(
    calls: dict[str, Callable[[], object]], repetitions: int, processor: bool = False
) -> dict[str, list[float]]:
    """Seconds of every call, taken in turns, so that what disturbs one disturbs its neighbours too.

    Args:
        calls: what to time, by name.
        repetitions: turns.
        processor: seconds of this process's threads, not of the clock on the wall.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    now = time.process_time if processor else time.perf_counter
    for _ in range(repetitions):
        for name, call in calls.items():
            start = now()
            call()
            seconds[name].append(now() - start)
    return seconds


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch and our kernels in one thread within the block, as peers are that know no more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Power of the size with which time grows: the slope of a line through their logarithms."""
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, seconds)]).slope


def median_ratio(reference: Iterable[float], times: Iterable[float]) -> float:
    """Median of how much longer the reference took in the same turn."""
    return statistics.median(a / b for a, b in zip(reference, times, strict=True))
