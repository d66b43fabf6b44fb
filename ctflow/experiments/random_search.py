"""Random search for the parameters of a protocol's methods, on training patients, at one budget each."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ctflow import metrics
from ctflow.errors import CTFlowError, UsageError
from ctflow.experiments.slices import cases, measured
from ctflow.priors import FlowPrior, Prior
from ctflow.registry import build, nested
from ctflow.runs.protocol import Protocol
from ctflow.solving import solve
from ctflow.system.files import explained
from ctflow.units import attenuation_to_hu
from ctflow.volume import Volume

Range = tuple[float, float] | list[Any]
"""Ends of a range that is searched evenly in the logarithm, or a list of choices."""

SPACES: dict[str, dict[str, Range]] = {
    "tv": {"strength": (20.0, 3000.0)},
    "ms-flow": {
        "regularisation": (0.5, 8.0),
        "model_error": (0.02, 0.3),
        "refine.noise": (0.015, 0.1),
    },
    "conjugate": {
        "start": [0.3, 0.4, 0.5, 0.6, 0.7],
        "guidance": (0.3, 3.0),
        "jacobian": [0.0, 0.5, 1.0],
        "refine.noise": (0.015, 0.1),
    },
    "flow-dps": {"trust": (0.03, 10.0), "interpolate": [False, True]},
    "pi-gfm": {"start": [0.1, 0.2, 0.4, 0.6], "guidance": (0.1, 3.0), "calibrated": [False, True]},
    "dps": {"guidance": (0.03, 10.0), "renewal": [0.0, 0.5, 1.0], "high": [3.0, 10.0, 20.0]},
}
"""What is searched for every method; everything else stays as the protocol has it."""


def tune(
    protocol: Protocol,
    log: Path,
    *,
    methods: list[str] | None = None,
    trials: int = 12,
    patients: int = 2,
    data: Path | None = None,
    seed: int = 0,
    callback: Callable[[int, int], None] = lambda trial, trials: None,
) -> dict[str, dict[str, Any]]:
    """Try as many parameters for every method, and keep those of the highest mean PSNR.

    The first trial of a method is the protocol's own table; a trial that fails counts and is logged with its
    reason. The log is appended to, one JSON object a line.

    Args:
        protocol: measurement, and the methods where a search starts from.
        log: file of lines.
        methods: names to tune; by default all of the protocol that `SPACES` knows.
        trials: tables to try for each method.
        patients: training patients, one slice each.
        data: folder of slices; see `ctflow.experiments.patients`.
        seed: seed of the search.
        callback: called as callback(trial, trials) over all methods.

    Returns:
        The best table of every method, by name.

    Raises:
        UsageError: a method has no search space.
    """
    tables = _starts(protocol, methods)
    volumes = cases("train", patients, data)
    best: dict[str, dict[str, Any]] = {}
    for number, (name, start) in enumerate(tables.items()):
        scores: list[tuple[float, dict[str, Any]]] = []
        for trial, table in enumerate(_tables(start, trials, np.random.default_rng(seed))):
            found = _score(protocol, table, volumes)
            line = {"protocol": protocol.name, "trial": trial, "method": table} | found
            with explained(), log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            scores.append((found["psnr"] or -math.inf, table))
            callback(number * trials + trial + 1, len(tables) * trials)
        best[name] = max(scores, key=lambda pair: pair[0])[1]
    return best


def _starts(protocol: Protocol, methods: list[str] | None) -> dict[str, dict[str, Any]]:
    """The first table of every method to tune, by name; what is found holds for its other tables too."""
    tables: dict[str, dict[str, Any]] = {}
    for table in (*protocol.method_tables().values(), *protocol.tables.get("tuned", [])):
        tables.setdefault(table["name"], table)
    unknown = set(methods or []) - (tables.keys() & SPACES.keys())
    if unknown:
        raise UsageError(
            f"protocol '{protocol.name}' has nothing to search for {', '.join(sorted(unknown))}; there are "
            f"{', '.join(sorted(tables.keys() & SPACES.keys()))}"
        )
    wanted = methods or list(SPACES)
    return {name: table for name, table in tables.items() if name in wanted and name in SPACES}


def _tables(start: dict[str, Any], trials: int, random: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The start, then draws from the space; what a table fixes, its number of steps, stays.

    A table without a refinement gets none.
    """
    space = SPACES[start["name"]]
    yield start
    for _ in range(trials - 1):
        drawn: dict[str, Any] = {}
        for key, values in space.items():
            if isinstance(values, list):
                drawn[key] = values[random.integers(len(values))]
            else:
                low, high = (math.log(end) for end in values)
                drawn[key] = float(f"{math.exp(random.uniform(low, high)):.3g}")
        yield nested({**start, **{k: v for k, v in drawn.items() if k.partition(".")[0] in {k, *start}}})


def _score(protocol: Protocol, table: dict[str, Any], volumes: list[Volume]) -> dict[str, Any]:
    psnr, rmse, seconds = [], [], []
    try:
        method = build("method", table)
        for seed, volume in enumerate(volumes):
            prior = _prior(protocol, volume) if method.needs_prior else None
            problem, truth = measured(protocol, volume, seed)
            solution = solve(problem, method, prior)
            fov = metrics.fov_mask(truth)
            image = attenuation_to_hu(solution.mean, truth.mu_water)
            figures = metrics.evaluate(image, truth.data, fov, metrics.body_mask(truth.data, fov))
            psnr.append(figures["psnr"])
            rmse.append(figures["rmse_hu"])
            seconds.append(solution.stats["seconds"])
    except CTFlowError as error:
        return {"psnr": None, "rmse_hu": None, "reason": str(error)}
    return {
        "psnr": round(statistics.fmean(psnr), 3),
        "rmse_hu": round(statistics.fmean(rmse), 2),
        "nfe": solution.stats["network"],
        "seconds": round(statistics.fmean(seconds), 2),
        "prior": prior.sha256[:12] if prior else None,
    }


def _prior(protocol: Protocol, volume: Volume) -> Prior:
    return FlowPrior.load("ct-256", protocol.mu_water, spacing=volume.geometry.spacing[2])
