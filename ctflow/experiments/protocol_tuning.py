"""Search the parameters of a protocol's methods on training patients, as many trials for each method."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctflow.errors import CTFlowError, UsageError
from ctflow.experiments.slices import cases
from ctflow.registry import find_class, nested
from ctflow.runs.measurement import Measurement, prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import reconstruct
from ctflow.search_space import Range, trials
from ctflow.solving import build_method
from ctflow.system.files import explained


def tune(
    protocol: Protocol,
    log: Path,
    *,
    methods: list[str] | None = None,
    number: int = 12,
    patients: int = 2,
    data: Path | None = None,
    seed: int = 0,
    callback: Callable[[int, int], None] = lambda trial, trials: None,
) -> dict[str, dict[str, Any]]:
    """Try as many parameters for every method, and keep those of the least mean RMSE of the body.

    The first trial of a method is the protocol's own table, the others are drawn from the method's `search`;
    a trial that fails counts and is logged with its reason. The log is appended to, one JSON object a line.

    Args:
        protocol: measurement, and the methods where a search starts from.
        log: file of lines.
        methods: names to tune; by default all of the protocol that declare what to search.
        number: tables to try for each method.
        patients: training patients, one slice each.
        data: folder of slices; see `ctflow.experiments.patients`.
        seed: seed of the search.
        callback: called as callback(trial, trials) over all methods.

    Returns:
        The best table of every method, by name.

    Raises:
        UsageError: a method declares nothing to search.
    """
    tables = _starts(protocol, methods)
    measurements = [prepare(protocol, volume) for volume in cases("train", patients, data)]
    best: dict[str, dict[str, Any]] = {}
    for place, (name, start) in enumerate(tables.items()):
        losses: list[tuple[float, dict[str, Any]]] = []
        for trial, changes in enumerate(trials(_space(start), number, seed, name)):
            table = nested({**start, **changes})
            found = _score(table, measurements)
            line = {"protocol": protocol.name, "trial": trial, "method": table} | found
            with explained(), log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            losses.append((found["rmse_hu"] if "reason" not in found else math.inf, table))
            callback(place * number + trial + 1, len(tables) * number)
        best[name] = min(losses, key=lambda pair: pair[0])[1]
    return best


def _space(table: dict[str, Any]) -> dict[str, Range]:
    """What the table's method and its refinement, where it has one, declare."""
    space = dict(getattr(find_class("method", table["name"]), "search", {}))
    if "refine" in table:
        refinement = find_class("method", "refinement")
        space |= {f"refine.{key}": values for key, values in getattr(refinement, "search", {}).items()}
    return space


def _starts(protocol: Protocol, methods: list[str] | None) -> dict[str, dict[str, Any]]:
    """The first table of every method to tune, by name; what is found holds for its other tables too."""
    tables: dict[str, dict[str, Any]] = {}
    for table in (*protocol.method_tables().values(), *protocol.tables.get("tuned", [])):
        if _space(table):
            tables.setdefault(str(table["name"]), table)
    unknown = set(methods or []) - tables.keys()
    if unknown:
        raise UsageError(
            f"protocol '{protocol.name}' has nothing to search for {', '.join(sorted(unknown))}; there are "
            f"{', '.join(sorted(tables))}"
        )
    return {name: table for name, table in tables.items() if name in (methods or tables)}


def _score(table: dict[str, Any], measurements: list[Measurement]) -> dict[str, Any]:
    figures = []
    prior = None
    try:
        method = build_method(table)
        for seed, measurement in enumerate(measurements):
            prior = measurement.prior("ct-256") if method.needs_prior else None
            found = reconstruct(measurement, measurement.problem(seed), method, prior)
            figures.append(found.figures)
    except CTFlowError as error:
        return {"psnr": None, "rmse_hu": None, "reason": str(error)}
    return {
        "psnr": round(statistics.fmean(one["psnr"] for one in figures), 3),
        "rmse_hu": round(statistics.fmean(one["rmse_hu"] for one in figures), 2),
        "nfe": figures[-1]["network"],
        "seconds": round(statistics.fmean(one["seconds"] for one in figures), 2),
        "prior": prior.sha256[:12] if prior else None,
    }
