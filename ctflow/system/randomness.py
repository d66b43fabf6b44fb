"""Random numbers that depend on the seed alone, whatever defaults the user has set in torch."""

from __future__ import annotations

import operator
from typing import SupportsIndex

import torch
from torch import Tensor

from ctflow.errors import UsageError


def seeded(seed: SupportsIndex) -> torch.Generator:
    """Make a generator on the CPU from a seed, a whole number of Python or NumPy.

    Raises:
        UsageError: the seed is not a whole number from 0 to 2⁶³ - 1.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise UsageError(f"a seed must be a whole number from 0 to 2^63 - 1 and is {seed!r}; give 0")
    return torch.Generator("cpu").manual_seed(number)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers (*batch, ...), dimensionless, float32, on the generator's device."""
    return torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)
