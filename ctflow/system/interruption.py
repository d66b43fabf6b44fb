"""Make every request to stop end a command as Ctrl-C does, with cleanup and one exit status."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_REQUESTS = (signal.SIGTERM, signal.SIGHUP)  # docker stop and scancel; a terminal that closes


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn requests to stop into KeyboardInterrupt while the block runs.

    Signals that the process ignores (nohup) or handles already are left alone, as are threads other than the
    main one, which alone receives signals.
    """
    changed = []
    if threading.current_thread() is threading.main_thread():
        changed = [number for number in _REQUESTS if signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay interruptions, including Ctrl-C, until a block that must be completed has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *_REQUESTS)}
    handled = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handled:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
    if asked:
        signal.raise_signal(asked[0])
