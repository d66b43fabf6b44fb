"""Memory of a reconstruction against the number of flow steps: MS-Flow beside single shooting."""

from __future__ import annotations

import torch

from ctflow.benchmarks.bars import Bar, Figure, Findings
from ctflow.datasets.synthetic import toy_volume
from ctflow.geometry import ParallelBeam
from ctflow.noise import Poisson
from ctflow.operators import Radon
from ctflow.priors import FlowPrior
from ctflow.problem import simulate
from ctflow.samplers import MSFlow, SingleShooting
from ctflow.solving import solve
from ctflow.system.memory import peak_memory
from ctflow.system.progress import Progress

_SIZE = 128
_MIB = 2**20


def measure(quick: bool, progress: Progress) -> Findings:
    """Peak memory of one slice of 128² from 20 views.

    Args:
        quick: 5, 20 and 100 flow steps; else 10 and 50 too.
        progress: told the fraction that is done and what comes next.
    """
    found, peaks = Findings(), {}
    counts = (5, 20, 100) if quick else (5, 10, 20, 50, 100)
    runs = [(name, steps) for name in ("MS-Flow", "single shooting") for steps in counts]
    for number, (name, steps) in enumerate(runs):
        progress(number / len(runs), f"{name}, {steps} flow steps")
        peaks[name, steps] = peak(name, steps) / _MIB
        found.rows.append(Figure(f"{name}, {steps} flow steps: peak memory", peaks[name, steps], "MiB"))
    growth = {name: peaks[name, 100] / peaks[name, 5] for name in ("MS-Flow", "single shooting")}
    found.bars.append(
        Bar("MS-Flow: peak memory at 100 flow steps over 5", growth["MS-Flow"], 1.05, at_most=True)
    )
    found.rows.append(Figure("single shooting: the same ratio", growth["single shooting"], ""))
    return found


def peak(name: str, steps: int) -> float:
    """Bytes of tensors that a run of `steps` flow steps holds at most beyond what was held before it.

    Every allocation is counted, not the memory of the process: what the system's allocator keeps for later
    is no property of a method.

    Args:
        name: "MS-Flow" or "single shooting".
        steps: Euler steps between noise and image.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mu = toy_volume(1, _SIZE).to_attenuation()
    prior = FlowPrior.load("ct-256", spacing=mu.geometry.spacing[2])
    prior.to(device)
    problem = simulate(Radon(mu.geometry, ParallelBeam(20)), mu.data.to(device), Poisson(1e5))
    shooting = {
        "MS-Flow": MSFlow(steps, 1),
        "single shooting": SingleShooting(segments=steps, iterations=1),
    }
    if device == "cuda":
        return solve(problem, shooting[name], prior).peak_memory_bytes
    with peak_memory("tensors") as held:
        solve(problem, shooting[name], prior)
    return held["bytes"]
