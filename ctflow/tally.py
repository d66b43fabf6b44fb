"""Counts what a method spends: forward and adjoint applications, network evaluations, backward passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_open: ContextVar[tuple[Counter[str], ...]] = ContextVar("tally", default=())


@contextmanager
def tally() -> Iterator[Counter[str]]:
    """Count the calls made inside the block; blocks may nest, each sees all calls made within it."""
    counter: Counter[str] = Counter()
    token = _open.set((*_open.get(), counter))
    try:
        yield counter
    finally:
        _open.reset(token)


def count(what: str, times: int = 1) -> None:
    """Add to every open tally: "forward", "adjoint", "network" or "backward"."""
    for counter in _open.get():
        counter[what] += times
