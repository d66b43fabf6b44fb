"""A worker does units, each once, under a lock; those of one case and protocol share what they can."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from ctflow.errors import CTFlowError, StudyError
from ctflow.experiments.image_tests import examine
from ctflow.experiments.records import Record
from ctflow.experiments.store import Arrays, Store, writing
from ctflow.experiments.unit import Unit
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.runs.figures import MethodFigures, finite
from ctflow.runs.measurement import Measurement
from ctflow.runs.preparation import prepare
from ctflow.runs.reconstruction import reconstruct
from ctflow.solving import build_method
from ctflow.system.devices import device_name
from ctflow.system.version import changes, software

T = TypeVar("T")


@dataclass(frozen=True)
class Portion:
    """Units that one worker does one after the other; it can be pickled.

    Args:
        out: the study's folder.
        units: what to do; those of one case and protocol together.
        retry_failed: do those again that failed.
        wait: wait for units that another process is doing, and do them if it dies.
    """

    out: Path
    units: tuple[Unit, ...]
    retry_failed: bool = False
    wait: bool = False


def run_portion(portion: Portion) -> dict[str, str]:
    """Do the units of a portion.

    Returns:
        By unit: "done", "failed", "kept" (finished before) or "busy" (another process is doing it).

    Raises:
        OutputError: the study's folder cannot be written.
    """
    store, worker = Store(portion.out), Worker()
    return {unit.hash: _once(store, worker, unit, portion) for unit in portion.units}


def finished(record: Record | None, retry_failed: bool) -> bool:
    """Whether a unit needs no more work."""
    return record is not None and not (retry_failed and record["status"] == "failed")


def _once(store: Store, worker: Worker, unit: Unit, portion: Portion) -> str:
    if finished(store.record(unit.place), portion.retry_failed):
        return "kept"
    held = _held(store.lock(unit.hash), portion.wait)
    if held is None:
        return "busy"
    with held:
        if finished(store.record(unit.place), portion.retry_failed):
            return "kept"
        record, image = attempt(worker, unit)
        files: dict[str, Arrays] = {}
        if image and unit.keeps_image:
            _keep_truth(store, worker, unit)
            files["image.npz"] = image
        store.keep(unit.place, files, record)
        log(store, unit, record)
    return record["status"]


def _held(lock: FileLock, wait: bool) -> AbstractContextManager[object] | None:
    with writing():
        try:
            return lock.acquire(blocking=wait)
        except Timeout:  # an OSError too, but not of the disk
            return None


def log(store: Store, unit: Unit, record: Record) -> None:
    """Append a unit, with the record of its result, to the manifest.

    Raises:
        OutputError: the disk is full.
    """
    kept = ("unit", "status", "reason", "case", "protocol", "method", "seed", "trial", "seconds")
    known: Mapping[str, object] = {**record, "trial": unit.trial}
    with writing():
        store.manifest.append({key: known[key] for key in kept})


def attempt(worker: Worker, unit: Unit) -> tuple[Record, Arrays]:
    """Compute a unit; what is refused or goes wrong becomes the record's reason.

    Returns:
        Content of unit.json, and the arrays of image.npz: hu (Z, Y, X) in HU and spacing_mm (3,).
    """
    started, figures, reason = time.perf_counter(), None, ""
    image: Arrays = {}
    try:
        figures, image = worker.compute(unit)
    except CTFlowError as error:
        reason = " ".join(str(error).split())
    except Exception as error:  # its text may quote a path; its type does not
        reason = f"unexpected {type(error).__name__}; `ctflow --debug study unit {unit.hash} ...` shows it"
    record: Record = {
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


def _keep_truth(store: Store, worker: Worker, unit: Unit) -> None:
    place = f"cases/{unit.truth}"
    with writing(), store.lock(place.replace("/", "-")):
        if not (store.out / place).exists():
            truth = worker.measurement(unit).truth
            arrays = {"hu": truth.data.numpy().astype(np.float32), "mask": truth.mask.numpy()}
            grid = {"spacing_mm": np.array(truth.geometry.spacing), "affine": np.array(truth.geometry.affine)}
            store.keep(place, {"truth.npz": {**arrays, **grid}})


class _Last(Generic[T]):
    """The last value that was made, for the next that asks for the same."""

    def __init__(self) -> None:
        self._kept: tuple[object, T] | None = None

    def get(self, key: object, make: Callable[[], T]) -> T:
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, make())
        return self._kept[1]


class Worker:
    """Computes units, and keeps the last volume, operator, data and prior for the next unit."""

    def __init__(self) -> None:
        self._measurement, self._problem = _Last[Measurement](), _Last[InverseProblem]()
        self._prior = _Last[Prior]()

    def compute(self, unit: Unit) -> tuple[MethodFigures, Arrays]:
        """Figures and image of a unit.

        Returns:
            Figures of `reconstruct`, and what the study asks besides; hu (Z, Y, X) in HU with
            spacing_mm (3,), and sd like hu where there is more than one sample.

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
        measurement, method = self.measurement(unit), build_method(unit.table)
        problem = self._problem.get((unit.group, unit.seed), lambda: measurement.problem(unit.seed))
        prior = self._loaded(unit, measurement) if method.needs_prior else None
        found = reconstruct(measurement, problem, method, prior, samples=unit.samples, seed=unit.seed)
        tests = examine(unit.asked, measurement, method, prior, problem, found.x, unit.seed)
        spacing = np.array(found.volume.geometry.spacing)
        image = {"hu": found.volume.data.numpy().astype(np.float32), "spacing_mm": spacing}
        if found.spread is not None:
            image["sd"] = (found.spread.data * found.volume.mask).numpy().astype(np.float32)
        return finite(found.figures) | tests, image

    def measurement(self, unit: Unit) -> Measurement:
        """The unit's case as its protocol measures it."""
        return self._measurement.get(
            unit.group,
            lambda: prepare(unit.protocol, unit.case.read(), slices=unit.case.slices, device=unit.device),
        )

    def _loaded(self, unit: Unit, measurement: Measurement) -> Prior:
        def load() -> Prior:
            prior = measurement.prior(unit.prior)
            if prior.sha256 != unit.prior_sha256:
                raise StudyError(
                    f"the prior was planned with SHA-256 {unit.prior_sha256[:12]} and its files now have "
                    f"{prior.sha256[:12]}; run the study again with --resume, which plans it anew"
                )
            return prior

        grid = measurement.grid
        key = unit.prior_sha256, measurement.protocol.mu_water, grid.spacing[2], measurement.device
        return self._prior.get(key, load)


def portions(
    out: Path, units: Sequence[Unit], workers: int, *, retry_failed: bool, wait: bool
) -> list[Portion]:
    """Units in portions: those of one case and protocol together, unless workers would stand idle.

    Args:
        out: the study's folder.
        units: what to do.
        workers: how many do it.
        retry_failed: do those again that failed.
        wait: wait for units that another process is doing.
    """
    groups: dict[tuple[str, str], list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.group, []).append(unit)
    parts = 1 if workers == 1 else -(-4 * workers // max(1, len(groups)))  # portions to level the end
    shared = [part for group in groups.values() for part in _split(group, parts)]
    return [Portion(out, tuple(part), retry_failed, wait) for part in shared]


def _split(group: list[Unit], parts: int) -> list[list[Unit]]:
    size = -(-len(group) // parts)
    return [group[k : k + size] for k in range(0, len(group), size)]
