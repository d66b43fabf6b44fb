"""Train a flow prior: `ctflow train ct-256.toml --data DIR -o prior.safetensors`."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import pickle
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ctflow import __version__
from ctflow.errors import ProtocolError, UnreadableError, UsageError
from ctflow.priors._base import HU_CENTRE, HU_WIDTH
from ctflow.priors._unet import UNet
from ctflow.priors.gaussian import fit_spectrum
from ctflow.priors.network import FlowPrior, precondition, save

logger = logging.getLogger(__name__)

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
    `split`, `kind`, `collection` and `pixel_spacing_mm` (NaN where it is not known).

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


def to_network(hu: Tensor) -> Tensor:
    """Network range of HU values, clipped to the training range; shape (*batch, Y, X)."""
    return (hu.clamp(*HU_RANGE) - HU_CENTRE) / HU_WIDTH


def train(
    recipe: Path,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    max_seconds: float | None = None,
    callback: Callable[[int, int], None] = lambda step, steps: None,
) -> Path | None:
    """Train the network that a recipe describes.

    A checkpoint stands beside `out` (suffix .checkpoint) and is renewed every 250 steps and at the end,
    however the run ends; a resumed run continues with the same weights, moments, crops and noise. The
    finished prior is written with a manifest.

    Args:
        recipe: TOML with `name`, `network`, `training` and `shares` (of each kind of slice).
        data: folder of `Slices`.
        out: .safetensors file to write.
        resume: continue from the checkpoint.
        max_seconds: stop after this time with a checkpoint.
        callback: called as callback(step, steps).

    Returns:
        The prior's path, or None where time ran out before the last step.

    Raises:
        ProtocolError: the recipe lacks a table or has an unknown key.
        UsageError: the data are missing, or there is no checkpoint to resume.
        UnreadableError: the checkpoint is damaged.
    """
    started = time.monotonic()
    plan = read_recipe(recipe)
    schedule = Schedule(**plan["training"])
    slices = Slices(data, "train", tuple(plan["shares"]))
    run = _Run(plan, schedule)
    checkpoint = out.with_suffix(".checkpoint")
    if resume:
        run.restore(checkpoint)
    try:
        while run.step < schedule.steps:
            if max_seconds is not None and time.monotonic() - started > max_seconds:
                return None
            run.advance(*slices.crops(plan["shares"], schedule, run.random))
            callback(run.step, schedule.steps)
            if run.step % 250 == 0:
                run.store(checkpoint)
                logger.info("step %d loss %.5f seconds %.0f", run.step, run.loss, time.monotonic() - started)
    finally:
        run.store(checkpoint)
    export(checkpoint, data, out)
    return out


def read_recipe(path: Path) -> dict[str, Any]:
    """The tables of a training recipe.

    Raises:
        ProtocolError: not TOML, or a table or key is missing or unknown.
    """
    try:
        plan = tomllib.loads(path.read_text())
        missing = {"name", "network", "training", "shares"} - plan.keys()
        if missing:
            raise ProtocolError(
                f"recipe '{path.name}' lacks {', '.join(sorted(missing))}; compare with ct-256.toml"
            )
        Schedule(**plan["training"])
        UNet(**plan["network"])
    except (tomllib.TOMLDecodeError, TypeError, OSError) as error:
        raise ProtocolError(f"recipe '{path.name}': {error}") from error
    return plan


class _Run:
    """The state of a training run, all of which a checkpoint holds."""

    def __init__(self, plan: dict[str, Any], schedule: Schedule) -> None:
        torch.manual_seed(schedule.seed)
        self.plan, self.schedule = plan, schedule
        self.network = UNet(**plan["network"]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=schedule.rate, weight_decay=1e-4)
        self.random = np.random.default_rng(schedule.seed)
        self.noise = torch.Generator().manual_seed(schedule.seed)
        self.step = 0
        self.loss = float("nan")

    def rate(self) -> float:
        """Learning rate of the present step."""
        rise = min(1.0, (self.step + 1) / self.schedule.warmup)
        return self.schedule.rate * rise * 0.5 * (1 + math.cos(math.pi * self.step / self.schedule.steps))

    def advance(self, u: Tensor, spacing: Tensor) -> None:
        """One optimiser step on a batch of crops and their spacings."""
        s = self.schedule
        sigma = (s.log_sigma_mean + s.log_sigma_std * torch.randn(len(u), generator=self.noise)).exp()
        noisy = u + sigma[:, None, None, None] * torch.randn(u.shape, generator=self.noise)
        with torch.autocast("cpu", torch.bfloat16):
            denoised = precondition(self.network, noisy, sigma, spacing)
        # (sigma² + 1) / sigma² makes every noise level's error on the network's own output count the same.
        weight = ((sigma**2 + 1) / sigma**2)[:, None, None, None]
        loss = (weight * (denoised - u) ** 2).mean()
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        self.loss = 0.98 * self.loss + 0.02 * loss.item() if self.step > 1 else loss.item()
        self._average()

    def _average(self) -> None:
        # Early on the average follows quickly, so that it does not remember the initial weights.
        keep = min(0.5 ** (1 / self.schedule.ema_half_life), self.step / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)

    def store(self, path: Path) -> None:
        """Write the checkpoint beside and rename it."""
        partial = path.with_suffix(".checkpoint-partial")
        state = {
            "plan": json.dumps(self.plan),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "random": json.dumps(self.random.bit_generator.state),
            "noise": self.noise.get_state(),
            "step": self.step,
            "loss": self.loss,
        }
        torch.save(state, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint of the same recipe."""
        state = _load_checkpoint(path)
        if state["plan"] != json.dumps(self.plan):
            raise ProtocolError(f"checkpoint '{path.name}' belongs to another recipe; train without --resume")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.random.bit_generator.state = json.loads(state["random"])
        self.noise.set_state(state["noise"])
        self.step, self.loss = state["step"], state["loss"]


def _load_checkpoint(path: Path) -> dict[str, Any]:
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
    state = _load_checkpoint(checkpoint)
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
        "mean": fit_spectrum([u for u, _ in _spread(slices, 100)])[1],
    }
    network = UNet(**plan["network"])
    network.load_state_dict(state["average"])
    prior = FlowPrior(network, manifest)
    manifest["denoiser_error"] = calibrate(prior, _spread(Slices(data, "validation", ("256",)), 8))
    save(out, network.state_dict(), manifest)


def fit_gaussian(data: Path, out: Path, name: str = "ct-gaussian") -> None:
    """Fit the closed-form Gaussian prior to the training slices and write it.

    Args:
        data: folder of `Slices`.
        out: .safetensors file to write.
        name: name in the manifest.
    """
    slices = Slices(data, "train", ("256",))
    spectrum, mean = fit_spectrum([u for u, _ in _spread(slices, 400)])
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


def _spread(slices: Slices, number: int) -> list[tuple[Tensor, float]]:
    """`number` slices evenly out of the 256² ones, network range, and their spacings, mm."""
    pairs = list(zip(slices.by_kind["256"], slices.spacings["256"], strict=True))
    return [
        (to_network(torch.from_numpy(image.astype(np.float32))), spacing)
        for image, spacing in pairs[:: max(1, len(pairs) // number)][:number]
    ]
