"""What the network sees in a step: random crops, their noisy versions, noise levels and spacings."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from ctflow.training.recipe import Schedule
from ctflow.training.slices import Slices, to_network

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Crops and noisy crops, (batch, 1, crop, crop), noise levels and spacings in mm (NaN untold), (batch,)."""


class Batches(Dataset[Batch]):
    """The batches of a run, by step; a process of several has its own share of each.

    Crop k of a step comes from a generator seeded with the schedule's seed, the step and k. So a batch needs
    no memory of the ones before it: a resumed run sees what an uninterrupted one sees, and so do several
    processes together.

    Args:
        slices: where crops come from.
        shares: chance of each kind of slice.
        schedule: sizes, augmentation and law of the noise.
        share: crops of the batch that are wanted; all by default.
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
        """A random crop, resampled, flipped and transposed at random.

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
        return to_network(resampled[0]), self.slices.spacings[kind][which] * size / s.crop
