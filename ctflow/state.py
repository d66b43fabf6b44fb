"""What an object is, and what it merely keeps: copies and pickles take the one and make the other anew."""

from __future__ import annotations

from functools import cached_property
from typing import Any


class Copyable:
    """Copies, deep copies and pickles of an object leave out its cached properties.

    What a process hands out (handles of a library, compiled code, closures) means nothing in another one, and
    nothing once its owner is gone; it belongs into a `cached_property`, which every copy makes for itself.
    """

    def __getstate__(self) -> dict[str, Any]:
        kind = type(self)
        return {
            name: value
            for name, value in vars(self).items()
            if not isinstance(getattr(kind, name, None), cached_property)
        }
