"""How long work tells how far it has come: the three kinds of call that a caller may pass."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Called as progress(fraction from 0 to 1, what is being done)."""

FractionProgress = Callable[[float], None]
"""Called as progress(fraction from 0 to 1)."""

StepProgress = Callable[[int, int], None]
"""Called as callback(steps done, steps in all)."""
