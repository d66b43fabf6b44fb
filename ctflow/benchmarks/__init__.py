"""Benches: what ctflow promises as figures, measured where it runs."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import Any

from ctflow.benchmarks.bars import Bar, Figure, Findings, Row
from ctflow.errors import UsageError
from ctflow.system.progress import Progress

__all__ = ["BENCHES", "Bar", "Figure", "Findings", "Row", "measure"]

BENCHES = {
    "operators": "projections against ASTRA on the CPU: speed, adjoints, accuracy, memory",
    "speed": "FBP beside one adjoint and peers, backends by batch, cones beside ITK-RTK, growth of time",
    "series": "slices of 512²: methods beside TV by core seconds, reading, a whole run",
    "prior": "the shipped prior: denoising against Gaussian, TV, NLM and BM3D, cost, copies of patients",
    "samplers": "every sampler on CT and on images beside FBP and TV: quality, evaluations, time, steadiness",
    "frontier": "every sampler, pure and refined, at 5 to 100 evaluations: error of the body, core seconds",
    "volumes": "cones and helices: geometry beside ITK-RTK, patients' series beside TV in 3D, memory",
    "reality": "data of a scanner in place of the operator's own: what each effect costs each method",
    "lesions": "lesions put into patients' slices: what every method shows of them, and what it invents",
    "htc2022": "measured arcs of 90 to 30 degrees, by the rules of the Helsinki challenge of 2022",
    "memory": "peak memory against the number of flow steps: MS-Flow beside single shooting",
    "studies": "studies: overhead over a bare loop, two workers against one",
    "variants": "extensions of MS-Flow against it at equal evaluations, and operators with an unknown number",
    "designs": "network designs for a prior: error for the same training time, cost of a call",
}
"""Every bench and what it measures; each is a module of this package with a `measure`."""


def measure(
    name: str, quick: bool = False, progress: Progress = lambda fraction, what: None, **options: Any
) -> Findings:
    """Run a bench.

    Args:
        name: one of `BENCHES`.
        quick: fewer repetitions, without the rows that are for information only and slow.
        progress: told the fraction that is done and what comes next.
        options: what only some benches take, `data`, `seconds`, `picture` and `task`.

    Raises:
        UsageError: there is no such bench, or it takes no such option.
    """
    if name not in BENCHES:
        raise UsageError(f"there is no bench '{name}'; there are {', '.join(BENCHES)}")
    bench = import_module(f"ctflow.benchmarks.{name}").measure
    unknown = options.keys() - signature(bench).parameters.keys()
    if unknown:
        raise UsageError(f"bench '{name}' takes no {', '.join(sorted(unknown))}; leave it out")
    found: Findings = bench(quick, progress, **options)
    return found
