"""The slices that a prior is trained on: int16 HU in memory, random crops in network range."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ctflow.datasets.synthetic import synthetic_slices
from ctflow.errors import UsageError
from ctflow.priors._base import HU_CENTRE, HU_WIDTH

SYNTHETIC = 64
"""Synthetic slices that stand beside patients where a recipe gives the kind `synthetic` a share."""

HU_RANGE = (-1000.0, 1500.0)
"""Training slices are clipped to this range, HU: dense metal is not anatomy."""


@dataclass(frozen=True)
class Schedule:
    """The `training` table of a recipe.

    Args:
        steps: optimiser steps.
        batch: crops per step.
        crop: side of a crop, pixels.
        zoom: crops are resampled by a factor of up to this, either way, so that spacings vary.
        told: share of the crops whose pixel spacing the network is told.
        rate: peak learning rate; it rises over `warmup` steps and falls to zero as a half cosine.
        warmup: steps of the rise.
        log_sigma_mean: mean of the normal law of ln sigma, network range.
        log_sigma_std: its standard deviation.
        ema_half_life: half life of the weights' moving average, steps.
        seed: seed of weights, crops and noise.

    References:
        Karras et al., NeurIPS 2022, section 5 (log-normal noise levels).
    """

    steps: int
    batch: int = 16
    crop: int = 128
    zoom: float = 1.0
    told: float = 0.8
    rate: float = 8e-4
    warmup: int = 100
    log_sigma_mean: float = -1.6
    log_sigma_std: float = 1.4
    ema_half_life: float = 200.0
    seed: int = 0


class Slices:
    """CT slices of one split of a folder with an `index.json`, as int16 HU in memory.

    `index.json` is a list of objects with `file` (an .npz that holds `hu`, int16 [slice, row, column]),
    `split`, `kind`, `collection` and `pixel_spacing_mm` (NaN where it is not known). The kind `synthetic`
    is made here, of chest phantoms, and needs no file.

    Args:
        folder: folder of the index.
        split: "train" or "validation".
        kinds: kinds to keep; all by default.

    Raises:
        UsageError: there is no index, or nothing in it fits.
    """

    def __init__(self, folder: Path, split: str, kinds: tuple[str, ...] = ()) -> None:
        index = folder / "index.json"
        if not index.is_file():
            raise UsageError("no index.json in the data folder; see ctflow.training.Slices for what it holds")
        entries = [
            entry
            for entry in json.loads(index.read_text())
            if entry["split"] == split and (not kinds or entry["kind"] in kinds)
        ]
        if not entries:
            raise UsageError(f"the data folder's index has no '{split}' slices of kind {kinds or 'any'}")
        self.collections = sorted({entry["collection"] for entry in entries})
        self.sha256 = hashlib.sha256("".join(sorted(entry["file"] for entry in entries)).encode()).hexdigest()
        self.by_kind: dict[str, list[np.ndarray[Any, Any]]] = {}
        self.spacings: dict[str, list[float]] = {}
        for entry in entries:
            with np.load(folder / entry["file"]) as archive:
                slices = list(archive["hu"])
            self.by_kind.setdefault(entry["kind"], []).extend(slices)
            self.spacings.setdefault(entry["kind"], []).extend([entry["pixel_spacing_mm"]] * len(slices))
        if "synthetic" in kinds:
            chests, spacing = synthetic_slices(SYNTHETIC)
            self.by_kind["synthetic"] = [hu.numpy().astype(np.int16) for hu in chests]
            self.spacings["synthetic"] = [spacing] * SYNTHETIC

    def crops(
        self, shares: dict[str, float], schedule: Schedule, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Random crops, resampled, flipped and transposed at random.

        Returns:
            Images in network range, (batch, 1, crop, crop), and their spacings, mm, NaN where untold.
        """
        kinds = list(shares)
        chances = np.array([shares[kind] for kind in kinds])
        crops, spacings = [], []
        for kind in random.choice(kinds, size=schedule.batch, p=chances / chances.sum()):
            which = random.integers(len(self.by_kind[kind]))
            image = self.by_kind[kind][which]
            zoom = schedule.zoom ** random.uniform(-1, 1)
            size = min(round(schedule.crop * zoom), *image.shape)
            top, left = (random.integers(n - size + 1) for n in image.shape)
            crop = image[top : top + size, left : left + size]
            if random.random() < 0.5:
                crop = crop.T
            crop = crop[:: random.choice([-1, 1]), :: random.choice([-1, 1])].astype(np.float32)
            crops.append(
                functional.interpolate(
                    torch.from_numpy(crop)[None, None], (schedule.crop,) * 2, mode="bicubic", antialias=True
                )
            )
            told = random.random() < schedule.told
            spacings.append(self.spacings[kind][which] * size / schedule.crop if told else math.nan)
        return to_network(torch.cat(crops)), torch.tensor(spacings)

    def spread(self, number: int) -> list[tuple[Tensor, float]]:
        """`number` slices (rows, columns) out of the 256² ones, network range, and their spacings, mm."""
        pairs = list(zip(self.by_kind["256"], self.spacings["256"], strict=True))
        return [
            (to_network(torch.from_numpy(image.astype(np.float32))), spacing)
            for image, spacing in pairs[:: max(1, len(pairs) // number)][:number]
        ]


def to_network(hu: Tensor) -> Tensor:
    """Network range of HU values, clipped to the training range; shape (*batch, Y, X)."""
    return (hu.clamp(*HU_RANGE) - HU_CENTRE) / HU_WIDTH
