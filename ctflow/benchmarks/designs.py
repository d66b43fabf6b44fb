"""Network designs against each other: the error that the same processor time buys, and what a call costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ctflow.benchmarks.bars import Figure, Findings
from ctflow.experiments.patients import patients
from ctflow.priors._unet import UNet
from ctflow.system.progress import Progress
from ctflow.training.batches import Batches
from ctflow.training.processes import Process
from ctflow.training.recipe import Plan
from ctflow.training.run import Run
from ctflow.training.slices import Slices
from ctflow.training.validation import validate

# Channels such that one call at 256² in float32 costs the three about the same.
NETWORKS: dict[str, dict[str, Any]] = {
    "unshuffle": {"design": "unshuffle", "channels": [48, 96, 160, 160], "blocks": 2},
    "plain": {"design": "plain", "channels": [16, 32, 64, 128], "blocks": 2},
    "depthwise": {"design": "depthwise", "channels": [48, 96, 160, 160], "blocks": 2},
}
_SHARES = {"256": 0.7, "512": 0.3}
_TRAINING = {"steps": 1, "batch": 4, "zoom": 1.3, "log_sigma_mean": -1.4, "log_sigma_std": 1.5}
_QUICK = 20.0  # seconds: shows that the bench works, decides nothing


def measure(quick: bool, progress: Progress, data: Path | None = None, seconds: float = 420.0) -> Findings:
    """Train each design for the same time, on the same crops, and validate it.

    Args:
        quick: 20 seconds each.
        progress: told the fraction that is done and what comes next.
        data: folder of `Slices`.
        seconds: processor time for each design, so that what else the machine does changes nothing.
    """
    folder = patients(data)
    slices, held_out = Slices(folder, "train", tuple(_SHARES)), Slices(folder, "validation", ("256",))
    budget, found = _QUICK if quick else seconds, Findings()
    runs = {}
    for number, (name, network) in enumerate(NETWORKS.items()):
        plan: Plan = {"network": network, "training": _TRAINING}
        runs[name] = Run(plan, Process(torch.device("cpu")))
        batches = Batches(slices, _SHARES, runs[name].schedule)

        def report(done: float, number: int = number, name: str = name) -> None:
            progress((number + done) / len(NETWORKS), name)

        _train(runs[name], batches, budget, report)
    times = _milliseconds({name: run.average for name, run in runs.items()})
    for name, run in runs.items():
        errors = validate(run.average, held_out.spread(8))
        found.rows += [Figure(f"{name}: error at t = {t}", hu, "HU") for t, hu in errors.items()]
        size = sum(p.numel() for p in run.network.parameters()) / 1e6
        found.rows.append(Figure(f"{name}: one call at 256², float32", times[name], "ms of one core"))
        found.rows.append(Figure(f"{name}: parameters", size, "million"))
        found.rows.append(Figure(f"{name}: steps in {budget:.0f} s", run.step, "steps"))
    return found


def _train(run: Run, batches: Batches, budget: float, report: Callable[[float], None]) -> None:
    """Take steps until the processor time is spent; the learning rate falls with it."""
    started = time.process_time()
    while (done := (time.process_time() - started) / budget) < 1:
        run.advance(batches[run.step], done)
        report(done)


def _milliseconds(networks: dict[str, UNet]) -> dict[str, float]:
    """Median processor time of one call at 256² in float32, taken in turns, milliseconds."""
    x, level = torch.zeros(1, 1, 256, 256), torch.zeros(1)
    x = x.contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.no_grad():
        for _ in range(7):
            for name, network in networks.items():
                started = time.process_time()
                network(x, level, level)
                times[name].append(1e3 * (time.process_time() - started))
    return {name: statistics.median(seconds) for name, seconds in times.items()}
