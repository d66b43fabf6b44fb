"""Benches: what ctflow promises as figures, measured where it runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from ctflow.benchmarks.bars import Bar, Findings, Row
from ctflow.errors import UsageError

__all__ = ["BENCHES", "Bar", "Findings", "Row", "measure"]

Progress = Callable[[float, str], None]

BENCHES = {"operators": "projections against ASTRA on the CPU: speed, adjoints, accuracy, memory"}
"""Every bench and what it measures; each is a module of this package with a `measure`."""


def measure(name: str, quick: bool = False, progress: Progress = lambda fraction, what: None) -> Findings:
    """Run a bench.

    Args:
        name: one of `BENCHES`.
        quick: fewer repetitions, without the rows that are for information only and slow.
        progress: told the fraction that is done and what comes next.

    Raises:
        UsageError: there is no such bench.
    """
    if name not in BENCHES:
        raise UsageError(f"there is no bench '{name}'; there are {', '.join(BENCHES)}")
    found: Findings = import_module(f"ctflow.benchmarks.{name}").measure(quick, progress)
    return found
