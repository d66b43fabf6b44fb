"""The frontier: error inside the body against network evaluations and core seconds, pure and refined."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Picture
from matplotlib.ticker import NullFormatter, ScalarFormatter

from ctflow.benchmarks.bars import Findings
from ctflow.benchmarks.samplers import TASKS, crossfitted
from ctflow.experiments.protocol_tuning import label_of
from ctflow.experiments.slices import numbered
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import reconstruct
from ctflow.solving import build_method
from ctflow.system.progress import Progress

EVALUATIONS = (5, 10, 16, 36, 100)
"""Network evaluations of every method."""

_TASKS = ("CT 20", "CT 60", "fan 20", "fan 60", "limited angle")
_MORE_STEPS = {"flow-dps": 1}  # than evaluations
_FIRST = {"conjugate": 3}  # evaluations before a refinement
_SHARE = 0.7  # of the others' evaluations


@dataclass
class Point:
    """A method at a number of evaluations: means over patients.

    Args:
        task: key of `ctflow.benchmarks.samplers.TASKS`.
        name: method, " + refinement" where it has one.
        evaluations: of the network.
        rmse_hu: inside the body, for each patient.
        psnr: inside the body, dB, for each patient.
        core_seconds: processor time for each patient.
    """

    task: str
    name: str
    evaluations: int
    rmse_hu: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    core_seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        error, psnr = statistics.fmean(self.rmse_hu), statistics.fmean(self.psnr)
        return (
            f"{self.task:<17}{self.name:<23}NFE {self.evaluations:>3}  {psnr:6.2f} dB  {error:6.1f} HU  "
            f"{statistics.fmean(self.core_seconds):7.1f} core s"
        )


def measure(
    quick: bool, progress: Progress, data: Path | None = None, picture: Path | None = None
) -> Findings:
    """Run every sampler of the protocols at every number of evaluations.

    Args:
        quick: one patient instead of three.
        progress: told the fraction that is done and the task.
        data: folder of slices; see `ctflow.experiments.patients`.
        picture: where to draw it, as the suffix says: .png, .svg, .pdf.
    """
    patients = numbered("validation", 1 if quick else 3, data)
    points: dict[tuple[str, str, int], Point] = {}
    for number, task in enumerate(_TASKS):
        protocol = Protocol.load(TASKS[task])
        tables = _tables(protocol)
        for place, volume in patients:
            measurement = prepare(protocol, volume)
            problem, prior = measurement.problem(place), measurement.prior("ct-256")
            for done, table in enumerate(tables):
                progress((number + done / len(tables)) / len(_TASKS), task)
                started = time.process_time()
                method = build_method(crossfitted(protocol.name, table, place))
                figures = reconstruct(measurement, problem, method, prior).figures
                key = (task, label_of(table), int(figures["network"]))
                point = points.setdefault(key, Point(*key))
                point.core_seconds.append(time.process_time() - started)
                point.rmse_hu.append(figures["rmse_hu"])
                point.psnr.append(figures["body"]["psnr"])
    found = Findings(rows=list(points.values()))
    if picture is not None:
        draw(found.rows, picture)
    return found


def _tables(protocol: Protocol) -> list[dict[str, Any]]:
    """Every sampler of the protocol once, pure and refined as it has them, at every number of evaluations."""
    listed: dict[str, dict[str, Any]] = {}
    for table in [*protocol.method_tables().values(), *protocol.tables.get("tuned", [])]:
        if getattr(build_method(table), "needs_prior", False):
            listed[label_of(table)] = table
    return [at for table in listed.values() for number in EVALUATIONS for at in _at(table, number)]


def _at(table: dict[str, Any], evaluations: int) -> Iterator[dict[str, Any]]:
    """The table with so many evaluations; none where a method and its refinement do not fit into them."""
    name, refine = table["name"], table.get("refine")
    if refine is None:
        yield table | _spending(name, evaluations)
        return
    first = _FIRST[name] if name in _FIRST else round(_SHARE * evaluations)
    if 0 < first < evaluations:
        yield table | _spending(name, first) | {"refine": {**refine, "steps": evaluations - first}}


def _spending(name: str, evaluations: int) -> dict[str, Any]:
    """The keywords with which a method takes so many evaluations."""
    if name == "ms-flow":
        sweeps = 2 if evaluations % 2 == 0 else 1
        return {"states": evaluations // sweeps, "sweeps": sweeps}
    return {"steps": evaluations + _MORE_STEPS.get(name, 0)}


def draw(points: list[Point], file: Path) -> None:
    """Draw error against evaluations, and against core seconds, one row for each task."""
    tasks = list(dict.fromkeys(point.task for point in points))
    names = list(dict.fromkeys(point.name for point in points))
    picture = Picture(figsize=(10, 3 * len(tasks)), layout="constrained")
    axes = picture.subplots(len(tasks), 2, squeeze=False)
    for row, task in enumerate(tasks):
        for column, unit in enumerate(("network evaluations", "core seconds")):
            ax = axes[row, column]
            for number, name in enumerate(names):
                mine = [point for point in points if (point.task, point.name) == (task, name)]
                errors = [statistics.fmean(point.rmse_hu) for point in mine]
                spent = (
                    [point.evaluations for point in mine],
                    [statistics.fmean(point.core_seconds) for point in mine],
                )
                style = "--" if name.endswith("refinement") else "-"
                ax.plot(spent[column], errors, style, marker=".", color=f"C{number % 10}", label=name)
            best = min(statistics.fmean(point.rmse_hu) for point in points if point.task == task)
            ax.set(
                xscale="log",
                xticks=(EVALUATIONS, (2, 5, 10, 20, 50))[column],
                ylim=(0.97 * best, 1.6 * best),
                title=task,
                xlabel=unit,
                ylabel="RMSE of the body, HU",
            )
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.xaxis.set_minor_formatter(NullFormatter())
    picture.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    picture.savefig(file)
