"""Limits on the bytes and the time of a connection, whatever the other side sends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any

_LONGEST_PDU = 2**20  # we announce 16 KiB; a list of contexts is longer
_PIECE = 2**16

LARGEST_OBJECT = 2 * 10**9
"""Largest size of one object in bytes; it is held in memory."""

MOST_IN_ALL = 16 * 10**9
"""Largest size of one pull in bytes, unless the caller says otherwise."""


@dataclass
class Quota:
    """Limits on what the other side may send; its connection is closed when it exceeds them.

    pynetdicom itself waits for ever inside a message and believes any length that a message claims.

    Args:
        timeout_s: longest time for one message, s.
        in_all: most bytes over all connections.
        of_an_object: most bytes between two calls of `next_object`.
    """

    timeout_s: float
    in_all: int = MOST_IN_ALL
    of_an_object: int = LARGEST_OBJECT
    exceeded: bool = False
    _total: int = 0
    _since: dict[int, int] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def watch(self, event: Any) -> None:
        """Apply the limits to the connection of a pynetdicom event (EVT_CONN_OPEN)."""
        link = event.assoc.dul.socket
        link.socket.settimeout(self.timeout_s)
        link.recv = partial(self._receive, link)

    def next_object(self, connection: int) -> None:
        """Note that an object is complete and that what follows on the connection belongs to the next one."""
        with self._lock:
            self._since[connection] = 0

    def _receive(self, link: Any, size: int) -> bytearray:
        """Receive `size` bytes, fewer where the connection ends.

        Raises:
            OSError: there are too many bytes or they take too long; pynetdicom then closes the connection.
        """
        if size > _LONGEST_PDU:
            self.exceeded = True
            raise OSError("a message is too long")
        data, end = bytearray(), time.monotonic() + self.timeout_s
        while len(data) < size:
            if time.monotonic() > end:
                raise TimeoutError
            piece = link.socket.recv(min(size - len(data), _PIECE))
            if not piece:
                break
            data += piece
        self.count(id(link), len(data))
        return data

    def count(self, connection: int, size: int) -> None:
        """Note that `size` bytes have arrived on a connection, which its `id` stands for.

        Raises:
            OSError: that is more than is allowed.
        """
        with self._lock:
            self._total += size
            since = self._since[connection] = self._since.get(connection, 0) + size
            self.exceeded |= self._total > self.in_all or since > self.of_an_object
        if self.exceeded:
            raise OSError("more bytes arrived than were allowed")
