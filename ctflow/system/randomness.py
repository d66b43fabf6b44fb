"""Random numbers that depend on the seed alone, whatever defaults the user has set in torch."""

from __future__ import annotations

import operator
from collections.abc import Sequence
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


class _ForEach(torch.Generator):
    """A generator for every problem of a batch, in their order."""

    each: list[torch.Generator]


def seeded_each(seeds: Sequence[SupportsIndex]) -> torch.Generator:
    """Make a generator for each problem of a batch, so that its numbers do not depend on the others.

    Raises:
        UsageError: a seed is not a whole number from 0 to 2⁶³ - 1.
    """
    made = _ForEach("cpu")
    made.each = [seeded(seed) for seed in seeds]
    return made


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers (*batch, ...), dimensionless, float32, on the generator's device.

    By `seeded_each` the shape is (..., problems, rows, views, bins) or (..., problems, Z, Y, X).
    """
    if isinstance(generator, _ForEach):
        own = (*shape[:-4], *shape[-3:])
        return torch.stack([normal(own, one) for one in generator.each], -4)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)
