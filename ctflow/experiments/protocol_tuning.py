"""Search the parameters of a protocol's methods on patients that are kept for it, as many trials for each."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from ctflow.errors import CTFlowError, UsageError
from ctflow.experiments.slices import numbered
from ctflow.registry import Call, find_class, nested
from ctflow.runs.measurement import Measurement
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import reconstruct
from ctflow.samplers import Refinement
from ctflow.samplers.refinement import Refined
from ctflow.search_space import Range, trials
from ctflow.solving import build_method
from ctflow.system.files import explained


class Score(TypedDict):
    """What a trial found for one patient: PSNR (dB) and RMSE (HU) of the body, None with a reason."""

    psnr: float | None
    rmse_hu: float | None
    nfe: NotRequired[float]
    seconds: NotRequired[float]
    reason: NotRequired[str]


class Trial(Score):
    """A line of a log: a table of a method, what it says of the searched keys, and the patient that met it.

    It says all of them, the first trial too: the protocol's table, where that started from, may change.
    """

    protocol: str
    label: str
    split: str
    patient: int
    method: Call
    prior: str | None
    trial: int
    changes: Call


def tune(
    protocol: Protocol,
    log: Path,
    *,
    methods: list[str] | None = None,
    number: int = 12,
    split: str = "train",
    patients: int = 2,
    data: Path | None = None,
    seed: int = 0,
    callback: Callable[[int, int], None] = lambda trial, trials: None,
) -> dict[str, Call]:
    """Try as many parameters for every method, and keep those of the least mean RMSE of the body.

    The first trial of a method is the protocol's own table, the others are drawn from the method's `search`;
    a trial that fails counts and is logged with its reason. The log is appended to, one JSON object for each
    trial and patient; what stands in it with the same prior is not run again.

    Args:
        protocol: measurement, and the methods where a search starts from.
        log: file of lines.
        methods: labels of methods to tune, "ms-flow" or "ms-flow + refinement"; by default all of the
            protocol that declare what to search.
        number: tables to try for each method.
        split: the patients' group, "train" or "validation".
        patients: how many of them, one slice each.
        data: folder of slices; see `ctflow.experiments.patients`.
        seed: seed of the search.
        callback: called as callback(trial, trials) over all methods.

    Returns:
        The best table of every method, by label.

    Raises:
        UsageError: a method declares nothing to search.
    """
    starts = _starts(protocol, methods)
    measurements = {place: prepare(protocol, volume) for place, volume in numbered(split, patients, data)}
    lines = read_log(log)
    known = {
        (one["protocol"], one["label"], one["split"], one["patient"], json.dumps(one["method"]), one["prior"])
        for one in lines
    }
    for done, (label, start) in enumerate(starts.items()):
        for trial, drawn in enumerate(trials(_space(start), number, seed, label)):
            changes = {**_stated(start), **drawn}
            table = nested({**start, **changes})
            for place, measurement in measurements.items():
                prior = _prior_hash(measurement, table)
                if (protocol.name, label, split, place, json.dumps(table), prior) in known:
                    continue
                line: Trial = {
                    "protocol": protocol.name,
                    "label": label,
                    "split": split,
                    "patient": place,
                    "method": table,
                    "prior": prior,
                    "trial": trial,
                    "changes": changes,
                    **_score(table, measurement, place),
                }
                lines.append(line)
                with explained(), log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            callback(done * number + trial + 1, len(starts) * number)
    return {
        label: nested({**start, **best_changes(lines, protocol.name, label, measurements)})
        for label, start in starts.items()
    }


def label_of(table: Call) -> str:
    """What figures call a method's table: "ms-flow", "ms-flow + refinement"."""
    return str(table["name"]) + " + refinement" * ("refine" in nested(table))


def read_log(log: Path) -> list[Trial]:
    """Lines of a log of `tune`; none where there is no file."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def best_changes(lines: Sequence[Trial], protocol: str, label: str, patients: Collection[int]) -> Call:
    """What to change in a method's table: that of the least mean RMSE of the body over the patients.

    Args:
        lines: of a log.
        protocol: its name.
        label: the method's.
        patients: numbers of those that count; a trial that lacks or fails one of them is left out.

    Returns:
        Keys as `nested` takes them; empty where no trial has all patients.
    """
    losses: dict[str, dict[int, float]] = {}
    for line in lines:
        if (line["protocol"], line["label"]) == (protocol, label) and line["patient"] in patients:
            loss = math.inf if line["rmse_hu"] is None else line["rmse_hu"]
            losses.setdefault(json.dumps(line["changes"]), {})[line["patient"]] = loss
    means = {key: statistics.fmean(by.values()) for key, by in losses.items() if len(by) == len(patients)}
    changes: Call = json.loads(min(means, key=means.__getitem__, default="{}"))
    return changes


def _space(table: Call) -> dict[str, Range]:
    """What the table's method and its refinement, where it has one, declare."""
    space = dict(getattr(find_class("method", str(table["name"])), "search", {}))
    if "refine" in table:
        space |= {f"refine.{key}": values for key, values in Refinement.search.items()}
    return space


def _stated(table: Call) -> Call:
    """What the table says of the keys that are searched, defaults included."""
    method = build_method(table)
    parts = {"": method.method, "refine": method.refinement} if isinstance(method, Refined) else {"": method}
    split = {key: key.rpartition(".") for key in _space(table)}
    return {key: getattr(parts[part], name) for key, (part, _, name) in split.items()}


def _starts(protocol: Protocol, methods: list[str] | None) -> dict[str, Call]:
    """The first table of every method to tune, by label; what is found holds for its other tables too."""
    tables: dict[str, Call] = {}
    for table in (*protocol.method_tables().values(), *protocol.tables.get("tuned", [])):
        if _space(table):
            tables.setdefault(label_of(table), table)
    unknown = set(methods or []) - tables.keys()
    if unknown:
        raise UsageError(
            f"protocol '{protocol.name}' has nothing to search for {', '.join(sorted(unknown))}; there are "
            f"{', '.join(sorted(tables))}"
        )
    return {label: table for label, table in tables.items() if label in (methods or tables)}


def _prior_hash(measurement: Measurement, table: Call) -> str | None:
    needed = getattr(find_class("method", str(table["name"])), "needs_prior", False)
    return measurement.prior("ct-256").sha256[:12] if needed else None


def _score(table: Call, measurement: Measurement, seed: int) -> Score:
    try:
        method = build_method(table)
        prior = measurement.prior("ct-256") if method.needs_prior else None
        figures = reconstruct(measurement, measurement.problem(seed), method, prior).figures
    except CTFlowError as error:
        return {"psnr": None, "rmse_hu": None, "reason": str(error)}
    return {
        "psnr": round(figures["body"]["psnr"], 3),
        "rmse_hu": round(figures["rmse_hu"], 2),
        "nfe": figures["network"],
        "seconds": round(figures["seconds"], 2),
    }
