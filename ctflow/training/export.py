"""From a checkpoint, or from the data alone, to a prior on disk with its manifest and measured errors."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctflow import __version__
from ctflow.errors import UnreadableError, UsageError
from ctflow.priors._base import HU_CENTRE, HU_WIDTH
from ctflow.priors._unet import UNet
from ctflow.priors.gaussian import fit_spectrum
from ctflow.priors.network import FlowPrior, save
from ctflow.training.slices import HU_RANGE, Slices


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint.

    Raises:
        UsageError: there is none.
        UnreadableError: it is damaged.
    """
    if not path.is_file():
        raise UsageError(f"there is no checkpoint '{path.name}' to resume; train without --resume first")
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UnreadableError(f"checkpoint '{path.name}' is damaged; train without --resume") from error
    return state


def export(checkpoint: Path, data: Path, out: Path) -> None:
    """Turn a checkpoint's averaged weights into a prior, with its error measured on the validation split.

    Args:
        checkpoint: file of a training run.
        data: folder of `Slices`.
        out: .safetensors file to write.
    """
    state = load_checkpoint(checkpoint)
    plan = json.loads(state["plan"])
    slices = Slices(data, "train", tuple(plan["shares"]))
    manifest: dict[str, Any] = {
        "kind": "network",
        "name": plan["name"],
        "network": plan["network"],
        "training": plan["training"],
        "steps": state["step"],
        "ctflow": __version__,
        "hu_centre": HU_CENTRE,
        "hu_width": HU_WIDTH,
        "hu_range": HU_RANGE,
        "convention": "x_t = (1 - t) z + t u; the network denoises x_t / t at noise level (1 - t) / t",
        "collections": slices.collections,
        "data_sha256": slices.sha256,
        "licence": "CC BY 4.0 (weights derived from TCIA collections under CC BY 3.0 and 4.0)",
        "mean": fit_spectrum([u for u, _ in slices.spread(100)])[1],
    }
    network = UNet(**plan["network"])
    network.load_state_dict(state["average"])
    prior = FlowPrior(network, manifest)
    manifest["denoiser_error"] = calibrate(prior, Slices(data, "validation", ("256",)).spread(8))
    save(out, network.state_dict(), manifest)


def fit_gaussian(data: Path, out: Path, name: str = "ct-gaussian") -> None:
    """Fit the closed-form Gaussian prior to the training slices and write it.

    Args:
        data: folder of `Slices`.
        out: .safetensors file to write.
        name: name in the manifest.
    """
    slices = Slices(data, "train", ("256",))
    spectrum, mean = fit_spectrum([u for u, _ in slices.spread(400)])
    manifest = {
        "kind": "gaussian",
        "name": name,
        "mean": mean,
        "ctflow": __version__,
        "hu_centre": HU_CENTRE,
        "hu_width": HU_WIDTH,
        "collections": slices.collections,
        "data_sha256": slices.sha256,
        "licence": "CC BY 4.0 (a spectrum derived from TCIA collections under CC BY 3.0 and 4.0)",
    }
    save(out, {"spectrum": spectrum}, manifest)


def calibrate(prior: FlowPrior, slices: list[tuple[Tensor, float]]) -> list[tuple[float, float]]:
    """Root mean squared error of the denoiser over noise levels.

    Args:
        prior: the prior to measure; its spacing is set to that of each slice.
        slices: image (rows, columns), network range, and pixel spacing, mm, of each.

    Returns:
        Pairs (sigma, error), network range, sigma from 0.02 to 20.
    """
    generator = torch.Generator().manual_seed(0)
    table = []
    for sigma in torch.logspace(math.log10(0.02), math.log10(20), 13).tolist():
        t = 1 / (1 + sigma)
        squared = 0.0
        for u, prior.spacing in slices:
            noisy = u[None] + sigma * torch.randn(1, *u.shape, generator=generator)
            with torch.no_grad():
                squared += float(((prior.denoise(t * noisy, t) - u) ** 2).mean()) / len(slices)
        table.append((sigma, math.sqrt(squared)))
    return table
