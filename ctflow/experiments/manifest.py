"""manifest.jsonl: what happened to every unit, one JSON object a line, never rewritten."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from ctflow.tables import JSON


class Manifest:
    """An append-only log that several processes write and that a crash can cut in one place only, its end.

    Args:
        path: the file; made with the first entry.
        lock: file that orders the writers.
    """

    def __init__(self, path: Path, lock: Path) -> None:
        self.path = path
        self._lock = lock

    def append(self, entry: Mapping[str, object]) -> None:
        """Write one line and wait until it is on the disk; half a line that a crash left goes first."""
        line = (json.dumps(entry, allow_nan=False) + "\n").encode()
        with FileLock(self._lock), self.path.open("ab+") as file:
            size = _whole(file)
            file.truncate(size)
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, size)  # a full disk: half a line helps nobody
                raise

    def entries(self) -> list[dict[str, JSON]]:
        """All whole entries, oldest first; a line that is no JSON object (a damaged disk) is left out."""
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_bytes().rpartition(b"\n")
        parsed = (_parsed(line) for line in whole.split(b"\n"))
        return [entry for entry in parsed if entry is not None]

    def recorded(self) -> dict[str, str]:
        """The last status of every unit."""
        return {str(entry["unit"]): str(entry["status"]) for entry in self.entries()}


def _whole(file: BinaryIO) -> int:
    """Length of the whole lines, bytes."""
    end = file.seek(0, os.SEEK_END)
    back = min(end, 65536)  # longer than any line
    file.seek(end - back)
    return end - back + file.read(back).rfind(b"\n") + 1


def _parsed(line: bytes) -> dict[str, JSON] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"unit", "status"} <= set(entry) else None
