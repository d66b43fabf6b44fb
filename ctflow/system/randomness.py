"""Random numbers: the same seed gives the same ones, whatever the user has set as torch's defaults."""

from __future__ import annotations

import operator
from typing import SupportsIndex

import torch
from torch import Tensor

from ctflow.errors import UsageError


def seeded(seed: SupportsIndex) -> torch.Generator:
    """A generator on the CPU that starts from a whole number, Python's or NumPy's.

    Raises:
        UsageError: the seed is none of 0 to 2⁶³ - 1.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise UsageError(f"a seed is a whole number from 0 to 2^63 - 1 and {seed!r} is none; give 0")
    return torch.Generator("cpu").manual_seed(number)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers (*batch, ...), dimensionless, float32, on the generator's device."""
    return torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)
