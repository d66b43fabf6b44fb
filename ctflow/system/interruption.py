"""A request to stop, whoever makes it, ends a command as Ctrl-C does: cleaned up, with one exit status."""

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

    What the process was told to ignore (nohup) or handles already is left as it is; so is every thread but
    the main one, which alone receives signals.
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
    """Put off an interruption, by Ctrl-C too, until the block has ended: for a change that must be whole."""
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
