"""Tuning: every method's best trial on the validation cases, frozen before a test case is touched."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ctflow.experiments.records import TUNED, Choice, Chosen, Record, Tuned
from ctflow.experiments.store import Store
from ctflow.experiments.unit import Unit
from ctflow.runs.figures import figure
from ctflow.runs.protocol import ACCEPT


def frozen_choice(store: Store, units: Sequence[Unit], objective: str) -> Chosen:
    """What earlier runs chose from the same trials, else the choice from their figures, which is then kept.

    Args:
        store: the study's folder; holds the records of all units.
        units: the tuning's units.
        objective: "rmse_hu" (of the body), "psnr" or "ssim".

    Returns:
        By protocol and method: parameters, trial, score, and the scores of all trials.
    """
    key = hashlib.sha256(" ".join([objective, *sorted(unit.hash for unit in units)]).encode()).hexdigest()
    known = store.read(TUNED)
    if known and known["key"] == key:
        return known["chosen"]
    records = {unit.hash: record for unit in units if (record := store.record(unit.place)) is not None}
    chosen = choose(units, records, objective)
    tuned: Tuned = {"key": key, "objective": objective, "chosen": chosen}
    store.replace(TUNED, tuned)
    return chosen


def choose(units: Sequence[Unit], records: Mapping[str, Record], objective: str) -> Chosen:
    """The trial with the best mean objective over the validation cases, for every protocol and method.

    A case that fails in every trial is left out; a trial that fails in another case cannot win.

    Args:
        units: the tuning's units.
        records: their records by hash.
        objective: "rmse_hu", "psnr" or "ssim".

    Returns:
        By protocol and method: parameters, trial, score and trials; or a refusal where every trial failed.
    """
    chosen: Chosen = {}
    for protocol, method in dict.fromkeys((unit.protocol.name, unit.method) for unit in units):
        mine = [unit for unit in units if (unit.protocol.name, unit.method) == (protocol, method)]
        chosen.setdefault(protocol, {})[method] = _best(mine, records, objective)
    return chosen


def _best(units: list[Unit], records: Mapping[str, Record], objective: str) -> Choice:
    # Losses: smaller is better, whatever the objective; infinite where a trial failed.
    sign = 1 if ACCEPT[objective] == "<=" else -1
    numbers = list(dict.fromkeys(unit.trial for unit in units))
    cases = list(dict.fromkeys(unit.case.label for unit in units))
    losses = np.full((len(numbers), len(cases)), math.inf)
    for unit in units:
        value = figure(records[unit.hash]["figures"], objective)
        if value is not None:
            losses[numbers.index(unit.trial), cases.index(unit.case.label)] = sign * value
    usable = np.isfinite(losses).any(0)
    if not usable.any():
        reason = next(records[unit.hash]["reason"] for unit in units)
        return {"refusal": f"every tuning trial of '{units[0].method}' failed, the first because: {reason}"}
    scores = losses[:, usable].mean(1)
    best = int(scores.argmin())
    tables = {unit.trial: unit.table for unit in units}
    parameters = [{key: v for key, v in tables[number].items() if key != "name"} for number in numbers]
    return {
        "parameters": parameters[best],
        "trial": numbers[best],
        "score": float(sign * scores[best]),
        "trials": [
            {"parameters": table, "score": float(sign * score) if math.isfinite(score) else None}
            for table, score in zip(parameters, scores, strict=True)
        ],
    }
