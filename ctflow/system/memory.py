"""The one meter of peak memory: of a device, of this process, or of torch's tensors alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


@contextmanager
def peak_memory(
    of: Literal["process", "tensors"] | torch.device = "process",
) -> Iterator[dict[str, float]]:
    """Most memory held inside the block beyond what was held before it.

    Args:
        of: "process", its resident memory: Linux counts it in pages and the allocator hands it back late, so
            that it is good to a few MiB. "tensors", every allocation of torch on the CPU: exact, but with a
            profiler beside. A device: what torch's allocator handed out on that GPU, else as "process".

    Yields:
        A dictionary whose "bytes" is set at the end; NaN where the system does not tell.
    """
    held = {"bytes": math.nan}
    with _meter(of, held):
        yield held


def _meter(of: str | torch.device, held: dict[str, float]) -> AbstractContextManager[None]:
    if isinstance(of, str):
        return {"process": _process, "tensors": _tensors}[of](held)
    return _cuda(held, of) if of.type == "cuda" else _process(held)


@contextmanager
def _process(held: dict[str, float]) -> Iterator[None]:
    with suppress(OSError):  # only Linux can reset its high-water mark
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    resident = _status("VmRSS")
    yield
    held["bytes"] = _status("VmHWM") - resident


@contextmanager
def _cuda(held: dict[str, float], device: torch.device) -> Iterator[None]:
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield
    held["bytes"] = float(torch.cuda.max_memory_allocated(device) - before)


@contextmanager
def _tensors(held: dict[str, float]) -> Iterator[None]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        yield
    assert seen.profiler is not None  # the block has ended
    assert seen.profiler.kineto_results is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    changes = (e.nbytes() for e in events)  # pyright: ignore[reportAttributeAccessIssue] (torch's stub has a hole)
    held["bytes"] = float(max(accumulate(changes), default=0))


def _status(key: str) -> float:
    """A figure of /proc/self/status in bytes, NaN where there is none."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return math.nan
    found = re.search(rf"{key}:\s*(\d+) kB", text)
    return 1024 * float(found[1]) if found else math.nan
