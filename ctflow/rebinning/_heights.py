"""Detector rows that see a height, and their weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctflow.rebinning.parallel import ParallelSet

_RIM = 1e-3  # of the half height: points seen only beyond it count as not seen
_CORE = 0.5  # of the detector's half height has full weight; beyond it the weight falls to zero at the edge


def row_of(part: ParallelSet, rise: Tensor, distance: Tensor, reach: Tensor) -> Tensor:
    """Fractional detector row that sees each point, (points,).

    Args:
        part: rays of one focal spot.
        rise: height of the point above the source, mm.
        distance: distance from the source to the point, in the plane of a slice, mm.
        reach: distance from the source to the detector along the same ray, mm.
    """
    return (rise * reach / distance - part.drop) / part.row_pitch + (len(part.y) - 1) / 2


def row_weight(row: Tensor, rows: int) -> Tensor:
    """Weight of fractional rows (points,): 1 in the core, falling as cos² to 0 at the edge of the detector.

    References:
        Stierstorfer et al., Phys. Med. Biol. 49 (2004), eq. 17.
    """
    off = (2 * row - (rows - 1)).abs() / rows
    fading = torch.cos(math.pi / 2 * ((off - _CORE) / (1 - _CORE)).clamp(0, 1)) ** 2
    return torch.where(off < 1 - _RIM, fading, 0.0)  # the cosine of a right angle is not quite zero


def at_row(values: Tensor, row: Tensor, bins: Tensor | None = None) -> Tensor:
    """Interpolate data at fractional rows, constant beyond the outer ones, and at fractional bins.

    Args:
        values: (rows, bins).
        row: (n,).
        bins: (n,) in the range of the bins; by default all bins, and n is their number.
    """
    rows, width = values.shape
    flat, row = values.reshape(-1), row.clamp(0, rows - 1)
    low = row.long().clamp_max(max(rows - 2, 0))
    up = row - low
    step = width if rows > 1 else 0
    if bins is None:
        at = low * width + torch.arange(width)
        return torch.lerp(flat[at], flat[at + step], up)
    left = bins.long().clamp_max(width - 2)
    at, right = low * width + left, bins - left
    below = torch.lerp(flat[at], flat[at + 1], right)
    return torch.lerp(below, torch.lerp(flat[at + step], flat[at + step + 1], right), up)
