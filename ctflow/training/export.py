"""Export a prior with its manifest and measured errors, from a checkpoint or from the data alone."""

from __future__ import annotations

import json
import math
import pickle
import statistics
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from ctflow.errors import UnreadableError, UsageError
from ctflow.priors._base import HU_CENTRE, HU_WIDTH
from ctflow.priors._manifest import CONVENTION, SHIPPED
from ctflow.priors._unet import build_unet
from ctflow.priors.gaussian import fit_spectrum
from ctflow.priors.network import FlowPrior, save
from ctflow.system.files import check_target
from ctflow.system.version import full_version
from ctflow.training.recipe import Recipe, Schedule
from ctflow.training.slices import HU_RANGE, Slices
from ctflow.training.validation import Point, denoising_errors, draw_sheet


class State(TypedDict):
    """What a checkpoint holds; `plan` is the recipe as JSON."""

    plan: str
    network: dict[str, Tensor]
    average: dict[str, Tensor]
    optimiser: dict[str, dict[str, object]]
    step: int
    loss: float
    seconds: NotRequired[float]
    curve: NotRequired[list[Point]]


def load_checkpoint(path: Path) -> State:
    """Load the state in a checkpoint.

    Raises:
        UsageError: there is none.
        UnreadableError: it is damaged.
    """
    if not path.is_file():
        raise UsageError(f"there is no checkpoint '{path.name}' to resume; train without --resume first")
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UnreadableError(
            f"checkpoint '{path.name}' is damaged; copy it again, or train to another --out"
        ) from error
    return state


def export_prior(checkpoint: Path, data: Path, out: Path) -> None:
    """Export a checkpoint's averaged weights as a prior, with errors on both splits and a sheet of samples.

    Args:
        checkpoint: file of a training run.
        data: folder of `Slices`.
        out: .safetensors file to write; the sheet is written beside it as .png. If the recipe's name is that
            of a shipped prior, the prior is named after the file.
    """
    state = load_checkpoint(checkpoint)
    plan: Recipe = json.loads(state["plan"])
    schedule = Schedule.parse(plan["training"])
    slices = Slices(data, "train", tuple(plan["shares"]))
    manifest: dict[str, object] = {
        "kind": "network",
        "name": out.stem if plan["name"] in SHIPPED else plan["name"],
        "version": plan.get("version", "1"),
        "network": plan["network"],
        "training": plan["training"],
        "shares": plan["shares"],
        **({"teacher": plan["teacher"]} if "teacher" in plan else {}),
        "steps": state["step"],
        "convention": CONVENTION,
        **_described(slices, schedule.zoom),
        "licence": "CC BY 4.0 (weights derived from TCIA collections under CC BY 3.0 and 4.0)",
    }
    network = build_unet(plan["network"])
    network.load_state_dict(state["average"])
    prior = FlowPrior(network, manifest)
    manifest["denoiser_error"] = measure_errors(prior, Slices(data, "validation", ("256",)).spread(8))
    save(out, network.state_dict(), manifest)
    prior.spacing = statistics.median(slices.known_spacings() or [math.nan])
    draw_sheet(prior, out.with_suffix(".png"), min(2 * schedule.crop, 256))


def _described(slices: Slices, zoom: float) -> dict[str, object]:
    """Manifest entries on the training slices; spacings are those of the resampled crops, mm."""
    sample = [u for u, _ in slices.spread(100)]
    spectrum, mean = fit_spectrum(sample)
    spacings = slices.known_spacings()
    return {
        "ctflow": full_version(),
        "hu_centre": HU_CENTRE,
        "hu_width": HU_WIDTH,
        "hu_range": HU_RANGE,
        "mean": mean,
        "sigma_data": 1.0,
        "standard_deviation": float(torch.cat([u.flatten() for u in sample]).double().std()),
        "spectrum": spectrum.tolist(),
        "spacings_mm": [min(spacings) / zoom, max(spacings) * zoom] if spacings else None,
        "collections": slices.collections,
        "data_sha256": slices.sha256(),
    }


def fit_gaussian(data: Path, out: Path, name: str = "ct-gaussian") -> None:
    """Fit the closed-form Gaussian prior to the training slices and write it.

    Args:
        data: folder of `Slices`.
        out: .safetensors file to write.
        name: name in the manifest.
    """
    check_target(out)
    slices = Slices(data, "train", ("256",))
    spectrum, mean = fit_spectrum([u for u, _ in slices.spread(400)])
    manifest = {
        "kind": "gaussian",
        "name": name,
        "mean": mean,
        "ctflow": full_version(),
        "hu_centre": HU_CENTRE,
        "hu_width": HU_WIDTH,
        "collections": slices.collections,
        "data_sha256": slices.sha256(),
        "licence": "CC BY 4.0 (a spectrum derived from TCIA collections under CC BY 3.0 and 4.0)",
    }
    save(out, {"spectrum": spectrum}, manifest)


def measure_errors(prior: FlowPrior, slices: list[tuple[Tensor, float]]) -> list[tuple[float, float]]:
    """Measure the root mean squared error of the denoiser over noise levels; r_t is that at (1 - t) / t.

    Args:
        prior: the prior to measure; its spacing is set to that of each slice.
        slices: image (rows, columns), network range, and pixel spacing, mm, of each.

    Returns:
        Pairs (sigma, error), network range, sigma from 0.02 to 20.
    """
    sigmas = torch.logspace(math.log10(0.02), math.log10(20), 13).tolist()
    return list(zip(sigmas, denoising_errors(prior, slices, sigmas), strict=True))
