"""Doing units: under a lock, each once, sharing what units of one case and protocol have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout

from ctflow import metrics
from ctflow.errors import CTFlowError, StudyError
from ctflow.experiments.image_tests import examine
from ctflow.experiments.store import Arrays, Store, writing
from ctflow.experiments.task import Unit, load_prior
from ctflow.registry import build, importing, imports_allowed
from ctflow.runs.measurement import Job, measure, prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.run import finite, reconstruct
from ctflow.solving import Solution
from ctflow.system.devices import device_name
from ctflow.system.version import software

T = TypeVar("T")
_FBP = {"name": "fbp"}  # stands for the methods while volume and operator are made; it is not run


@dataclass(frozen=True)
class Task:
    """Units that one worker does one after the other; it can be pickled.

    Args:
        out: the study's folder.
        units: what to do; those of one case and protocol together.
        retry_failed: do those again that failed.
        wait: wait for units that another process is doing, and do them if it dies.
        threads: threads of every computation; None leaves the process as it is.
        imports: whether the study's files may name classes of any module, as whoever made the task may.
    """

    out: Path
    units: tuple[Unit, ...]
    retry_failed: bool = False
    wait: bool = False
    threads: int | None = None
    imports: bool = field(default_factory=imports_allowed)


def run_task(task: Task) -> dict[str, str]:
    """Do the units of a task.

    Returns:
        By unit: "done", "failed", "kept" (finished before) or "busy" (another process is doing it).

    Raises:
        OutputError: the study's folder cannot be written.
    """
    if task.threads is not None:
        torch.set_num_threads(task.threads)
        numba.set_num_threads(min(task.threads, numba.get_num_threads()))
    store, bench = Store(task.out), Bench()
    with importing(task.imports):
        return {unit.hash: _once(store, bench, unit, task) for unit in task.units}


def changes(before: dict[str, str], now: dict[str, str]) -> str:
    """What differs between the software of two places or times, "torch 2.6.0 -> 2.7.1"; "" for nothing.

    Args:
        before: by name, the versions that are compared with.
        now: the other versions.
    """
    names = dict.fromkeys([*before, *now])
    pairs = [(name, before.get(name, "unknown"), now.get(name, "unknown")) for name in names]
    return ", ".join(f"{name} {old} -> {new}" for name, old, new in pairs if old != new)


def settled(record: dict[str, Any] | None, retry_failed: bool) -> bool:
    """Whether a unit needs no more work."""
    return record is not None and not (retry_failed and record["status"] == "failed")


def _once(store: Store, bench: Bench, unit: Unit, task: Task) -> str:
    if settled(store.record(unit.place), task.retry_failed):
        return "kept"
    held = _held(store.lock(unit.hash), task.wait)
    if held is None:
        return "busy"
    with held:
        if settled(store.record(unit.place), task.retry_failed):
            return "kept"
        record, image = attempt(bench, unit)
        files: dict[str, Arrays] = {}
        if image and unit.keeps_image:
            _keep_truth(store, bench, unit)
            files["image.npz"] = image
        store.keep(unit.place, files, record)
        log(store, unit, record)
    return str(record["status"])


def _held(lock: FileLock, wait: bool) -> AcquireReturnProxy[Any] | None:
    with writing():
        try:
            return lock.acquire(blocking=wait)
        except Timeout:  # an OSError too, but not of the disk
            return None


def log(store: Store, unit: Unit, record: dict[str, Any]) -> None:
    """Append a unit, with the record of its result, to the manifest.

    Raises:
        OutputError: the disk is full.
    """
    kept = ("unit", "status", "reason", "case", "protocol", "method", "seed", "trial", "seconds")
    with writing():
        store.manifest.append({key: {**record, "trial": unit.trial}[key] for key in kept})


def attempt(bench: Bench, unit: Unit) -> tuple[dict[str, Any], Arrays]:
    """Compute a unit; what is refused or goes wrong becomes the record's reason.

    Returns:
        Content of unit.json, and the arrays of image.npz: hu (Z, Y, X) in HU and spacing_mm (3,).
    """
    started, figures, reason = time.perf_counter(), None, ""
    image: Arrays = {}
    try:
        figures, image = bench.compute(unit)
    except CTFlowError as error:
        reason = " ".join(str(error).split())
    except Exception as error:  # its text may quote a path; its type does not
        reason = f"unexpected {type(error).__name__}; `ctflow --debug study unit {unit.hash} ...` shows it"
    record = {
        **unit.description(),
        "status": "failed" if reason else "done",
        "reason": reason,
        "figures": figures,
        "samples": unit.samples,
        "prior_sha256": unit.prior_sha256,
        "protocol_text": unit.protocol.dump(),
        "ctflow": unit.code["ctflow"],
        "libraries": {name: version for name, version in unit.code.items() if name != "ctflow"},
        "machine": None if reason else device_name(unit.device),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return record, image


def _keep_truth(store: Store, bench: Bench, unit: Unit) -> None:
    place = f"cases/{unit.truth}"
    with writing(), store.lock(place.replace("/", "-")):
        if not (store.out / place).exists():
            truth = bench.job(unit).truth
            arrays = {"hu": truth.data.numpy().astype(np.float32), "mask": truth.mask.numpy()}
            store.keep(place, {"truth.npz": {**arrays, "spacing_mm": np.array(truth.geometry.spacing)}})


class Bench:
    """Computes units, and keeps the last volume, operator, data and prior for the next unit."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Any, Any]] = {}

    def compute(self, unit: Unit) -> tuple[dict[str, Any], Arrays]:
        """Figures and image of a unit.

        Returns:
            What `metrics.evaluate` and `reconstruct` find; hu (Z, Y, X) in HU with spacing_mm (3,), and sd
            like hu where there is more than one sample.

        Raises:
            StudyError: the unit is refused before it is read, or was planned with other software or another
                file of the prior than are here.
        """
        if changed := changes(unit.code, software()):
            raise StudyError(
                f"the unit was planned with other software than this worker has: {changed}; install the same "
                "on both and give --retry-failed"
            )
        if unit.refusal or unit.case.refusal:
            raise StudyError(unit.refusal or unit.case.refusal)
        job, method = self.job(unit), build("method", unit.table)
        problem = self._once("data", (unit.group, unit.seed), lambda: measure(job, unit.seed))
        fov, body = self._once("masks", unit.group, lambda: _masks(job))
        if method.needs_prior:
            job = replace(job, prior=self._prior(unit, job))
        spreads: list[torch.Tensor] = []
        means: list[torch.Tensor] = []

        def spread(solution: Solution) -> None:
            means.append(solution.mean)  # the volume is clipped at air, which is no solution
            if len(solution.x) > 1:
                spreads.append(1000 / job.mu.mu_water * solution.std[:, 0].cpu())

        volume, cost = reconstruct(
            job,
            method,
            problem,
            samples=unit.samples,
            seed=unit.seed,
            progress=lambda fraction: None,
            solved=spread,
        )
        figures = finite(metrics.evaluate(volume.data, job.truth.data, fov, body) | cost)
        figures |= examine(unit.asked, job, method, problem, torch.cat(means), unit.seed)
        spacing = np.array(volume.geometry.spacing)
        image = {"hu": volume.data.numpy().astype(np.float32), "spacing_mm": spacing}
        if spreads:
            image["sd"] = (torch.cat(spreads) * volume.mask).numpy().astype(np.float32)
        return figures, image

    def job(self, unit: Unit) -> Job:
        """Volume and operator of the unit's case under its protocol."""
        return self._once("job", unit.group, lambda: _job(unit))

    def _prior(self, unit: Unit, job: Job) -> Any:
        spacing = job.mu.geometry.spacing[2]

        def load() -> Any:
            prior, sha256 = load_prior(unit.prior, job.protocol.mu_water, spacing)
            if sha256 != unit.prior_sha256:
                raise StudyError(
                    f"the prior was planned with SHA-256 {unit.prior_sha256[:12]} and its files now have "
                    f"{sha256[:12]}; run the study again with --resume, which plans it anew"
                )
            return prior.to(unit.device)

        return self._once("prior", (unit.prior_sha256, job.protocol.mu_water, spacing), load)

    def _once(self, kind: str, key: Any, make: Callable[[], T]) -> T:
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept[kind] = (key, make())
        value: T = self._kept[kind][1]
        return value


def _job(unit: Unit) -> Job:
    tables = {**unit.measurement, "method": _FBP, "reference": _FBP}
    protocol = Protocol(unit.protocol.name, unit.protocol.summary, tables)
    return prepare(protocol, unit.case.read(), slices=unit.case.slices, device=unit.device)


def _masks(job: Job) -> tuple[Any, Any]:
    fov = metrics.fov_mask(job.truth)
    return fov, metrics.body_mask(job.truth.data, fov)


def tasks(
    out: Path, units: Sequence[Unit], workers: int, *, threads: int | None, retry_failed: bool, wait: bool
) -> list[Task]:
    """Units in portions: those of one case and protocol together, unless workers would stand idle.

    Args:
        out: the study's folder.
        units: what to do.
        workers: how many do it.
        threads: threads of every computation.
        retry_failed: do those again that failed.
        wait: wait for units that another process is doing.
    """
    groups: dict[Any, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.group, []).append(unit)
    parts = 1 if workers == 1 else -(-4 * workers // max(1, len(groups)))  # portions to level the end
    portions = [part for group in groups.values() for part in _portions(group, parts)]
    return [Task(out, tuple(portion), retry_failed, wait, threads) for portion in portions]


def _portions(group: list[Unit], parts: int) -> list[list[Unit]]:
    size = -(-len(group) // parts)
    return [group[k : k + size] for k in range(0, len(group), size)]
