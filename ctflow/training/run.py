"""The training run: weights, moments, crops and noise, all of which a checkpoint holds."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctflow.errors import ProtocolError
from ctflow.priors._unet import UNet
from ctflow.priors.network import precondition
from ctflow.training.export import export, load_checkpoint
from ctflow.training.slices import Schedule, Slices

logger = logging.getLogger(__name__)


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
        state = load_checkpoint(path)
        if state["plan"] != json.dumps(self.plan):
            raise ProtocolError(f"checkpoint '{path.name}' belongs to another recipe; train without --resume")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.random.bit_generator.state = json.loads(state["random"])
        self.noise.set_state(state["noise"])
        self.step, self.loss = state["step"], state["loss"]
