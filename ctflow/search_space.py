"""What is searched when a method is tuned: ranges beside its fields, and trials drawn from them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from ctflow.errors import StudyError


@dataclass(frozen=True)
class Range:
    """Where a keyword argument may lie.

    Args:
        values: the choices, or the two ends.
        choices: whether `values` are the only values.
        log: whether the logarithm is uniform, not the number.
    """

    values: tuple[object, ...]
    choices: bool = False
    log: bool = False

    @classmethod
    def parse(cls, where: str, value: object) -> Range:
        """A range from `[a, b, c]` (choices) or `{ low, high, log }`.

        Raises:
            StudyError: it is neither, or its ends are not in order.
        """
        if isinstance(value, list) and value:
            return cls(tuple(value), choices=True)
        if not isinstance(value, dict) or not {"low", "high"} <= set(value) <= {"low", "high", "log"}:
            raise StudyError(
                f"{where} must be a list of choices or {{ low = 1, high = 9, log = true }}; correct it"
            )
        low, high, log = value["low"], value["high"], bool(value.get("log", False))
        numbers = all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high))
        if not numbers or not low < high or (log and low <= 0):
            raise StudyError(
                f"{where} needs finite low < high, both positive with log; it has {low!r}, {high!r}"
            )
        return cls((low, high), log=log)

    def at(self, u: float) -> object:
        """The value at a share u of the range, 0 to 1; a whole number between whole ends."""
        if self.choices:
            return self.values[min(int(u * len(self.values)), len(self.values) - 1)]
        low, high = self.values
        assert isinstance(low, int | float)
        assert isinstance(high, int | float)
        value = low * (high / low) ** u if self.log else low + u * (high - low)
        return round(value) if isinstance(low, int) and isinstance(high, int) else value


def trials(tune: dict[str, Range], number: int, seed: int, label: str) -> list[dict[str, object]]:
    """Keyword arguments to try: first the method's own, then a Latin hypercube over the ranges.

    Args:
        tune: ranges by keyword.
        number: trials in all.
        seed: seed of the draw.
        label: the method's label, so that methods are drawn independently.

    Returns:
        `number` tables, the first one empty.

    References:
        McKay, Beckman and Conover, Technometrics 21 (1979) (Latin hypercube).
    """
    salt = int(hashlib.sha256(label.encode()).hexdigest()[:8], 16)
    random = np.random.default_rng([seed, salt])
    drawn = number - 1
    shares = {key: (random.permutation(drawn) + random.random(drawn)) / max(1, drawn) for key in tune}
    return [{}, *({key: tune[key].at(float(shares[key][k])) for key in tune} for k in range(drawn))]
