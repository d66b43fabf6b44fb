"""Count the cost of a method: operator applications, network evaluations, backward passes, and their time."""

from __future__ import annotations

import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path


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


@contextmanager
def peak_memory(cuda: bool = False) -> Iterator[dict[str, float]]:
    """Measure the peak memory inside the block beyond what was held before it.

    On CUDA this is the memory of the allocator on the current device, otherwise the resident memory of the
    process, which is accurate to a few MiB: the system counts pages, and the allocator returns them late.

    Args:
        cuda: measure the device instead of the process.

    Yields:
        A dictionary whose "bytes" is set at the end; NaN where the system does not tell.
    """
    held = {"bytes": math.nan}
    if cuda:
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield held
        held["bytes"] = float(torch.cuda.max_memory_allocated() - before)
        return
    with suppress(OSError):  # only Linux can reset its high-water mark
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    resident = _status("VmRSS")
    yield held
    held["bytes"] = _status("VmHWM") - resident


def _status(key: str) -> float:
    """A figure of /proc/self/status in bytes, NaN where there is none."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return math.nan
    found = re.search(rf"{key}:\s*(\d+) kB", text)
    return 1024 * float(found[1]) if found else math.nan
