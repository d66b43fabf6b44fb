"""Training batches: random crops, their noisy versions, noise levels and spacings."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from ctflow.priors._base import HU_CENTRE, HU_WIDTH
from ctflow.training.recipe import Schedule
from ctflow.training.slices import Slices, to_network

Picture = NDArray[np.float32]
_AIR_HU = -950.0  # above it there is tissue, that of the lungs included
Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Crops and noisy crops, (batch, 1, crop, crop), noise levels and spacings in mm (or NaN), (batch,)."""


class Batches(Dataset[Batch]):
    """The batches of a run, by step; each of several processes has its own share of every batch.

    Crop k of a step comes from a generator seeded with the schedule's seed, the step and k, so that a batch
    does not depend on the ones before it: a resumed run sees the same batches as an uninterrupted one, and so
    do several processes together.

    Args:
        slices: slices to crop.
        shares: probability of each kind of slice.
        schedule: sizes, augmentation and distribution of the noise.
        share: indices of the wanted crops of a batch; all by default.
    """

    def __init__(
        self, slices: Slices, shares: dict[str, float], schedule: Schedule, share: range | None = None
    ) -> None:
        self.slices, self.schedule = slices, schedule
        self.kinds = list(shares)
        self.chances = np.array([shares[kind] for kind in self.kinds]) / sum(shares.values())
        self.share = range(schedule.batch) if share is None else share

    def __getitem__(self, step: int) -> Batch:
        """Crops, noisy crops, noise levels and spacings of a step."""
        s = self.schedule
        crops, noisy, levels, spacings = [], [], [], []
        for k in self.share:
            random = np.random.default_rng([s.seed, step, k])
            u, spacing = self.crop(random)
            sigma = math.exp(s.log_sigma_mean + s.log_sigma_std * random.standard_normal())
            z = torch.from_numpy(random.standard_normal(tuple(u.shape), dtype=np.float32))
            crops.append(u)
            noisy.append(u + sigma * z)
            levels.append(sigma)
            spacings.append(spacing if random.random() < s.told else math.nan)
        return torch.stack(crops), torch.stack(noisy), torch.tensor(levels), torch.tensor(spacings)

    def crop(self, random: np.random.Generator) -> tuple[Tensor, float]:
        """Draw a random crop, resampled, flipped and transposed at random.

        Returns:
            Image in network range, (1, crop, crop), and its pixel spacing, mm.
        """
        s, kind = self.schedule, str(random.choice(self.kinds, p=self.chances))
        which = random.integers(len(self.slices.by_kind[kind]))
        image = self.slices.by_kind[kind][which]
        size = min(round(s.crop * s.zoom ** random.uniform(-1, 1)), *image.shape)
        top, left = (random.integers(n - size + 1) for n in image.shape)
        crop = image[top : top + size, left : left + size]
        if random.random() < 0.5:
            crop = crop.T
        crop = crop[:: random.choice([-1, 1]), :: random.choice([-1, 1])]
        resampled = functional.interpolate(
            torch.from_numpy(crop.astype(np.float32))[None, None],
            (s.crop,) * 2,
            mode="bicubic",
            antialias=True,
        )
        u, spacing = to_network(resampled[0]), self.slices.spacings[kind][which] * size / s.crop
        if random.random() < s.lesions:
            u = u + torch.from_numpy(_lesions(u[0].numpy(), spacing, random))
        return u, spacing


def _lesions(u: Picture, spacing: float, random: np.random.Generator) -> Picture:
    """Draw one to three lesions to add to a slice (rows, columns), network range; zero if it is all air."""
    body = np.argwhere(u > (_AIR_HU - HU_CENTRE) / HU_WIDTH)
    added = np.zeros_like(u)
    rows, columns = np.ogrid[: u.shape[0], : u.shape[1]]
    pixel = 1.0 if math.isnan(spacing) else spacing
    for _ in range(random.integers(1, 4) if len(body) else 0):
        top, left = body[random.integers(len(body))]
        radius = math.exp(random.uniform(math.log(1.5), math.log(10.0))) / pixel  # pixels, of the longer axis
        turn, flat, edge = random.uniform(0, math.pi), random.uniform(0.6, 1.0), random.uniform(0.2, 0.8)
        along = math.cos(turn) * (rows - top) + math.sin(turn) * (columns - left)
        across = math.cos(turn) * (columns - left) - math.sin(turn) * (rows - top)
        outside = np.hypot(along, across / flat) - radius  # pixels
        contrast = random.choice([-1, 1]) * random.uniform(10, 100)
        added += (contrast / HU_WIDTH * expit(-outside / edge)).astype(u.dtype)
    return added
