"""Count the cost of a method: operator applications, network evaluations, backward passes, and their time."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Counts(Counter[str]):
    """Calls by name, and in `seconds` the time spent in the network and in the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)


_open: ContextVar[tuple[Counts, ...]] = ContextVar("tally", default=())
_running: ContextVar[str | None] = ContextVar("running", default=None)


@contextmanager
def counting() -> Iterator[Counts]:
    """Count the calls made inside the block; nested blocks each count all calls made within them."""
    tallies = Counts()
    token = _open.set((*_open.get(), tallies))
    try:
        yield tallies
    finally:
        _open.reset(token)


def count(what: str, times: int = 1) -> None:
    """Add to the counts of every open block: "forward", "adjoint", "network" or "backward"."""
    for counter in _open.get():
        counter[what] += times


@contextmanager
def clock(what: str) -> Iterator[None]:
    """Add the time of the block to the seconds of "network" or "operator" of every open count.

    The time of an inner block is subtracted from the outer one: every second belongs to one name only.
    """
    if not _open.get():
        yield
        return
    outer = _running.get()
    token = _running.set(what)
    started = time.perf_counter()
    try:
        yield
    finally:
        spent = time.perf_counter() - started
        _running.reset(token)
        for counter in _open.get():
            counter.seconds[what] += spent
            if outer is not None:
                counter.seconds[outer] -= spent
