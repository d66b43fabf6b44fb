"""Training runs: weights, their average and the optimiser's moments, all kept in a checkpoint."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ctflow.errors import OutputError, ProtocolError, UsageError
from ctflow.priors._unet import UNet, build_unet
from ctflow.priors.network import FlowPrior, precondition
from ctflow.system.devices import multiplies_bfloat16
from ctflow.system.files import Reservation, check_target, reserved
from ctflow.system.interruption import uninterrupted
from ctflow.system.progress import StepProgress
from ctflow.training.batches import Batch, Batches
from ctflow.training.export import State, export_prior, load_checkpoint
from ctflow.training.optimiser import Optimiser
from ctflow.training.processes import Process, average, processes
from ctflow.training.recipe import Plan, Schedule, read_recipe
from ctflow.training.slices import Slices
from ctflow.training.validation import Point, validate, write_curve

logger = logging.getLogger(__name__)

_VALIDATED = 8  # slices
_FLOAT32 = "float32, since this CPU has no units for bfloat16, which would take several times as long"


def train(
    recipe: Path,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    max_seconds: float | None = None,
    device: str = "cpu",
    callback: StepProgress = lambda step, steps: None,
) -> Path | None:
    """Train the network that a recipe describes.

    A checkpoint beside `out` (suffix .checkpoint) is written at regular steps and at the end, however the run
    ends; a resumed run continues with the same weights, moments, crops and noise. Beside it are the learning
    curve (.curve.jsonl: step, seconds, loss, error in HU on validation slices by time) and, with the finished
    prior, a sheet of samples (.png). Processes started by `torchrun` train together and take the same steps
    as a single process; the first of them writes.

    Args:
        recipe: TOML as `read_recipe` reads it.
        data: folder of `Slices`.
        out: .safetensors file to write.
        resume: continue from the checkpoint.
        max_seconds: stop after this time with a checkpoint.
        device: "cpu" or "cuda".
        callback: called as callback(step, steps).

    Returns:
        Path of the prior, or None if time ran out before the last step.

    Raises:
        ProtocolError: the recipe lacks a table or has an unknown key, or the checkpoint is of another recipe.
        UsageError: the data are missing or are not HU, there is no checkpoint, or the loss diverges.
        UnreadableError: the data or the checkpoint are damaged.
        OutputError: there is no folder to write to, an earlier run exists and `resume` is not given, or
            another run is writing.
        BackendError: there is no such device.
    """
    started = time.monotonic()
    plan = read_recipe(recipe)
    _check(out, resume)
    checkpoint = out.with_suffix(".checkpoint")
    with processes(device) as process, _reserved(checkpoint, process) as place:
        run = Run(plan, process)
        logger.info("products in %s", "bfloat16" if run.in_bfloat16 else _FLOAT32)
        slices = Slices(data, "train", tuple(plan["shares"]))
        held_out = Slices(data, "validation", ("256",)).spread(_VALIDATED)
        if resume:
            run.restore(checkpoint)
        elif "start" in plan:
            run.begin(plan["start"])
        elif run.teacher is not None:
            run.narrow(run.teacher)
        batches = Batches(slices, plan["shares"], run.schedule, process.share(run.schedule.batch))
        try:
            for batch in _loader(batches, range(run.step, run.schedule.steps), process.device):
                if max_seconds is not None and run.agreed(time.monotonic() - started) > max_seconds:
                    return None
                run.advance(batch, run.step / run.schedule.steps)
                if place is None:
                    continue
                callback(run.step, run.schedule.steps)
                if run.step % run.schedule.every == 0 or run.step == run.schedule.steps:
                    run.note(validate(run.average, held_out), out.with_suffix(".curve.jsonl"))
                    run.store(place)
        finally:
            if place is not None:
                run.store(place)
        if place is not None:
            export_prior(checkpoint, data, out)
    return out


def _check(out: Path, resume: bool) -> None:
    if out.suffix != ".safetensors":
        raise OutputError("expected a prior to write; end its name with .safetensors")
    if not out.parent.is_dir():
        raise OutputError("there is no folder for the prior; make it first, or name another")
    begun = Path.is_file if out.with_suffix(".checkpoint").is_file() else None
    for ending in (".safetensors", ".checkpoint", ".curve.jsonl", ".png"):
        check_target(out.with_suffix(ending), begun, "" if resume else "--resume")


def _reserved(checkpoint: Path, process: Process) -> AbstractContextManager[Reservation | None]:
    """Reserve the checkpoint for the first process, which alone writes."""
    return nullcontext() if process.rank else reserved(checkpoint, Path.is_file)


def _loader(batches: Batches, steps: range, device: torch.device) -> DataLoader[Batch]:
    """Batches in the order of steps; worker processes prepare them if a GPU trains."""
    cuda = device.type == "cuda"
    workers = max(0, min(15, (os.cpu_count() or 1) - 1)) if cuda else 0
    return DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers, pin_memory=cuda)


def _teacher(name: str) -> FlowPrior:
    """The prior that a recipe learns from.

    Raises:
        ProtocolError: it is none of ctflow's networks.
    """
    prior = FlowPrior.load(name)
    if not isinstance(prior, FlowPrior):
        raise ProtocolError(
            f"'{Path(name).name}' cannot teach: it is no network that ctflow trained; name ct-256 or a prior "
            "of ctflow train, or remove 'teacher'"
        )
    prior.network.requires_grad_(False)
    return prior


class Run:
    """The state of a training run, all of which a checkpoint holds.

    Args:
        plan: tables of the recipe.
        process: this process and its device.
    """

    def __init__(self, plan: Plan, process: Process) -> None:
        self.plan, self.schedule, self.process = plan, Schedule.parse(plan["training"]), process
        torch.manual_seed(self.schedule.seed)
        self.network = build_unet(plan["network"]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.to(process.device)
        self.in_bfloat16 = multiplies_bfloat16(process.device)
        self.teacher: UNet | None = None
        if "teacher" in plan:
            teacher = _teacher(plan["teacher"]).to(process.device)
            self.teacher, self.plan = teacher.network, plan.copy()
            # With its hash, so that a run is not resumed under another teacher.
            self.plan["teacher"] = f"{teacher.name} (sha256 {teacher.sha256})"
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimiser = Optimiser(self.network)
        self.step, self.loss, self.seconds = 0, float("nan"), 0.0
        self.curve: list[Point] = []

    def rate(self, done: float) -> float:
        """Learning rate of the current step, after a share `done` of the run."""
        rise = min(1.0, (self.step + 1) / self.schedule.warmup)
        return self.schedule.rate * rise * 0.5 * (1 + math.cos(math.pi * done))

    def gradient(self, batch: Batch) -> Tensor:
        """Compute the loss of a batch, a scalar, and its gradient over all processes."""
        u, noisy, sigma, spacing = (part.to(self.process.device, non_blocking=True) for part in batch)
        with torch.autocast(self.process.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            denoised = precondition(self.network, noisy, sigma, spacing)
            if self.teacher is not None:
                with torch.no_grad():
                    u = precondition(self.teacher, noisy, sigma, spacing)
        # (sigma² + 1) / sigma² gives the errors of the network's output the same weight at every noise level.
        weight = ((sigma**2 + 1) / sigma**2)[:, None, None, None]
        loss = (weight * (denoised - u) ** 2).mean()
        self.network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        average([loss, *(p.grad for p in self.network.parameters() if p.grad is not None)])
        return loss.detach()

    def advance(self, batch: Batch, done: float) -> None:
        """Take one optimiser step on crops, noisy crops, noise levels and spacings.

        Args:
            batch: batch of the step.
            done: share of the run that is done, which determines the learning rate.

        Raises:
            UsageError: the loss is not finite; the weights are still those of the step before.
        """
        started = time.monotonic()
        loss = self.gradient(batch).item()
        if not math.isfinite(loss):
            raise UsageError(f"the loss at step {self.step + 1} is {loss}; lower training.rate and resume")
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        with uninterrupted():  # a checkpoint of half a step would go on from other weights
            self.optimiser.step(self.rate(done))
            self.step += 1
            self.loss = 0.98 * self.loss + 0.02 * loss if self.step > 1 else loss
            self._average()
        self.seconds += time.monotonic() - started

    def _average(self) -> None:
        # Early on the average follows quickly, so that it does not remember the initial weights.
        keep = min(0.5 ** (1 / self.schedule.ema_half_life), self.step / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)

    def agreed(self, seconds: float) -> float:
        """Time of the first process, for all processes, so that they stop at the same step."""
        mean = torch.tensor([seconds], device=self.process.device)
        average([mean])
        return mean.item()

    def note(self, rmse_hu: dict[str, float], path: Path) -> None:
        """Add the current step to the learning curve, and write the curve."""
        seconds, loss = round(self.seconds, 1), round(self.loss, 5)
        self.curve.append({"step": self.step, "seconds": seconds, "loss": loss, "rmse_hu": rmse_hu})
        write_curve(path, self.curve)
        logger.info("step %d loss %.5f seconds %.0f error in HU %s", self.step, loss, seconds, rmse_hu)

    def store(self, place: Reservation) -> None:
        """Write the checkpoint."""
        state: State = {
            "plan": json.dumps(self.plan),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "loss": self.loss,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        # Through a stream of Python: that of torch reports a full disk as an error of its archive.
        with place.file() as new, new.open("wb") as file:
            torch.save(state, file)

    def begin(self, name: str) -> None:
        """Start from the weights of a prior.

        Args:
            name: name or path, as for `FlowPrior.load`.

        Raises:
            ProtocolError: its network is not the recipe's.
        """
        prior = FlowPrior.load(name)
        if not isinstance(prior, FlowPrior) or prior.manifest["network"] != self.plan["network"]:
            raise ProtocolError(
                f"'{Path(name).name}' cannot start this run: its network is not the recipe's; "
                "copy the network table of its recipe, or remove 'start'"
            )
        for network in (self.network, self.average):
            network.load_state_dict(prior.network.state_dict())

    def narrow(self, teacher: UNet) -> None:
        """Start from every second, or every n-th, of a wider network's channels; inputs count n times.

        Raises:
            ProtocolError: its channels are no multiple of the recipe's, or it differs in more than these.
        """
        mine, wide = self.network.state_dict(), teacher.state_dict()
        alike = mine.keys() == wide.keys() and self.network.frequencies.shape == teacher.frequencies.shape
        fits = alike and all(
            mine[key].ndim == wide[key].ndim
            and all(old % new == 0 for old, new in zip(wide[key].shape, mine[key].shape, strict=True))
            for key in mine
        )
        if not fits:
            raise ProtocolError(
                f"the recipe's network {dict(self.plan['network'])} is no narrower one of its teacher's; "
                "give it the teacher's blocks, embedding and design, and a half or a third of its channels"
            )
        for key, weight in mine.items():
            every = [old // new for old, new in zip(wide[key].shape, weight.shape, strict=True)]
            inputs = every[1] if weight.ndim > 1 else 1
            weight.copy_(inputs * wide[key][tuple(slice(None, None, step) for step in every)])
        self.average.load_state_dict(mine)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint of the same recipe.

        Raises:
            ProtocolError: the checkpoint is of another recipe, or of a version with another optimiser.
        """
        state = load_checkpoint(path)
        if state["plan"] != json.dumps(self.plan):
            raise ProtocolError(
                f"checkpoint '{path.name}' belongs to another recipe; give that recipe, or another --out"
            )
        if state["optimiser"].keys() != self.optimiser.state_dict().keys():
            raise ProtocolError(
                f"checkpoint '{path.name}' was written by a version of ctflow with another optimiser; "
                "go on with that version, or train to another --out"
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.loss = state["step"], state["loss"]
        self.seconds, self.curve = state.get("seconds", 0.0), state.get("curve", [])
