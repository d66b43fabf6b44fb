"""Copies and pickles that carry the state of an object, but not what it has cached."""

from __future__ import annotations

from functools import cached_property
from typing import Any


class Copyable:
    """Copies, deep copies and pickles of an object leave out its cached properties.

    Handles of a library, compiled code and closures are meaningless in another process and after their owner
    is gone; they belong in a `cached_property`, which every copy computes for itself.
    """

    def __getstate__(self) -> dict[str, Any]:
        return self._kept(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(self._kept(state))  # pickles of earlier versions hold more

    def _kept(self, state: dict[str, Any]) -> dict[str, Any]:
        kind = type(self)
        passing = {name for name in state if isinstance(getattr(kind, name, None), cached_property)}
        return {name: value for name, value in state.items() if name not in passing}
