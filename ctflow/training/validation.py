"""Validate a prior on slices that it has not seen: its error, the learning curve, a sheet of samples."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from ctflow.priors._base import HU_CENTRE, HU_WIDTH, Prior
from ctflow.priors._unet import UNet
from ctflow.priors.network import FlowPrior
from ctflow.system.files import whole_file

TIMES = (0.2, 0.5, 0.8)
"""Times of the flow at which a training run is validated: noise of 2000, 500 and 125 HU."""

WINDOW_HU = (-160.0, 240.0)
"""Soft-tissue window of the sheet."""


class Point(TypedDict):
    """A point of the learning curve: error in HU on validation slices, by time of the flow."""

    step: int
    seconds: float
    loss: float
    rmse_hu: dict[str, float]


def denoising_errors(
    prior: FlowPrior, slices: list[tuple[Tensor, float]], sigmas: list[float]
) -> list[float]:
    """Measure the root mean squared error of the denoiser at noise levels, with the same noise at every call.

    Args:
        prior: the prior to measure; its spacing is set to that of each slice.
        slices: image (rows, columns), network range, and pixel spacing, mm, of each.
        sigmas: noise levels, network range.

    Returns:
        Error at each level, network range.
    """
    generator = torch.Generator().manual_seed(0)
    device = next(prior.network.parameters()).device
    found = []
    for sigma in sigmas:
        t = 1 / (1 + sigma)
        squared = 0.0
        for u, prior.spacing in slices:
            noisy = u[None] + sigma * torch.randn(1, *u.shape, generator=generator)
            with torch.no_grad():
                denoised = prior.denoise((t * noisy).to(device), t).cpu()
            squared += float(((denoised - u) ** 2).mean()) / len(slices)
        found.append(math.sqrt(squared))
    return found


def validate(network: UNet, slices: list[tuple[Tensor, float]]) -> dict[str, float]:
    """Measure the denoising error at several times of the flow.

    Args:
        network: the network to measure.
        slices: image (rows, columns), network range, and pixel spacing, mm, of each.

    Returns:
        Root mean squared error, HU, by time.
    """
    manifest = {"name": "in training", "mean": 0.0, "hu_centre": HU_CENTRE, "hu_width": HU_WIDTH}
    found = denoising_errors(FlowPrior(network, manifest), slices, [(1 - t) / t for t in TIMES])
    return {str(t): HU_WIDTH * error for t, error in zip(TIMES, found, strict=True)}


def write_curve(path: Path, curve: list[Point]) -> None:
    """Write the learning curve, one JSON object per line; an earlier one is replaced."""
    with whole_file(path, Path.is_file, wait=True) as new:
        new.write_text("".join(json.dumps(point) + "\n" for point in curve))


def draw_sheet(prior: Prior, path: Path, size: int, samples: int = 16, seed: int = 0) -> None:
    """Draw samples of a prior as one picture, in a soft-tissue window, four per row.

    Args:
        prior: the prior.
        path: .png file to write; an earlier one is replaced.
        size: rows and columns of a sample, pixels.
        samples: number of samples.
        seed: seed of the initial noise.

    Raises:
        OutputError: the picture cannot be written.
    """
    from PIL import Image

    u = draw_samples(prior, size, samples, seed)
    low, high = WINDOW_HU
    grey = ((u * HU_WIDTH + HU_CENTRE - low) / (high - low)).clamp(0, 1).mul(255).round().byte().numpy()
    grey = np.pad(grey, ((0, -samples % 4), (0, 0), (0, 0)))
    rows = [np.concatenate(list(row), axis=1) for row in grey.reshape(-1, 4, size, size)]
    with whole_file(path, Path.is_file, wait=True) as new:
        Image.fromarray(np.concatenate(rows, axis=0)).save(new, "PNG")


def draw_samples(prior: Prior, size: int, samples: int = 16, seed: int = 0, steps: int = 24) -> Tensor:
    """Draw samples of a prior, (samples, size, size), network range."""
    with torch.no_grad():
        return prior.sample((samples, 1, size, size), steps, seed)[:, 0]
