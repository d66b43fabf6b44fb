"""What a study's folder holds, read for the report: all that knows its files is here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ctflow.errors import UsageError
from ctflow.experiments.records import PLAN, Finding, Plan, Planned, Result
from ctflow.experiments.store import Store
from ctflow.geometry import VolumeGeometry
from ctflow.runs.figures import Samples, sampled
from ctflow.solving import build_method
from ctflow.volume import Volume

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Findings:
    """A study's plan, the records of its units, and their images on request.

    Args:
        out: the study's folder.
        plan: content of plan.json.
        units: unit.json of every unit of the test side; of one that is not done its description, status
            "pending".
        trials: unit.json of the tuning.
        calibrating: unit.json of the validation side, whose spread calibrates intervals.
    """

    out: Path
    plan: Plan
    units: list[Finding]
    trials: list[Finding]
    calibrating: list[Finding]

    @cached_property
    def done(self) -> list[Finding]:
        """Units with figures."""
        return [unit for unit in self.units if unit["status"] == "done"]

    @cached_property
    def methods(self) -> list[str]:
        """Labels in the order of the study file; the reference first."""
        labels = list(dict.fromkeys([*self.plan["methods"], *(unit["method"] for unit in self.units)]))
        return sorted(labels, key=lambda label: label != self.reference)

    @cached_property
    def protocols(self) -> list[str]:
        """Names in the order of the study file."""
        return list(dict.fromkeys([*self.plan["protocols"], *(unit["protocol"] for unit in self.units)]))

    @cached_property
    def reference(self) -> str:
        """The method that others are compared with: the study's choice, else its first."""
        return str(self.plan["statistics"].get("reference", next(iter(self.plan["methods"]))))

    @cached_property
    def samples(self) -> dict[str, Samples]:
        """By method, how many samples its units that are done averaged, and what their spread is."""
        asked = {label: 1 for label in self.plan["methods"]}
        asked |= {unit["method"]: unit["samples"] for unit in self.done}
        return {label: sampled(build_method(self.plan["methods"][label]), n) for label, n in asked.items()}

    @property
    def margin_hu(self) -> float | None:
        """Largest difference of RMSE that does not matter, HU, where the study states one."""
        margin = self.plan["statistics"].get("margin_hu")
        return float(margin) if isinstance(margin, int | float) else None

    def image(self, unit: Finding) -> dict[str, Floats]:
        """Arrays of a unit that is done: hu (Z, Y, X), and sd of its samples where there are some, HU."""
        with np.load(self.out / "units" / unit["unit"] / "image.npz", allow_pickle=False) as stored:
            return {name: np.asarray(stored[name], np.float64) for name in ("hu", "sd") if name in stored}

    def truth(self, unit: Finding) -> Volume:
        """The case that a unit measured, HU."""
        with np.load(self.out / "cases" / unit["truth"] / "truth.npz", allow_pickle=False) as stored:
            hu, spacing = torch.from_numpy(np.asarray(stored["hu"], np.float32)), stored["spacing_mm"]
            mask = torch.from_numpy(np.asarray(stored["mask"], bool)) if "mask" in stored else None
            rows = np.asarray(stored["affine"], np.float64).tolist() if "affine" in stored else []
        z, y, x = (float(length) for length in spacing)
        affine = tuple(tuple(row) for row in rows)
        shape = (int(hu.shape[0]), int(hu.shape[1]), int(hu.shape[2]))
        return Volume(hu, VolumeGeometry(shape, (z, y, x), affine), "HU", mask)  # type: ignore[arg-type]


def read(out: Path) -> Findings:
    """Read a study's folder.

    Args:
        out: folder that `ctflow study run` wrote, finished or not.

    Raises:
        UsageError: it holds no plan, or that of a version that is not read.
    """
    store = Store(out)
    plan = store.read(PLAN)
    if plan is None:
        raise UsageError("there is no plan.json to read; give the folder that ctflow study run wrote")
    if "trials" not in plan:
        raise UsageError(
            f"the plan is of ctflow {plan.get('ctflow')}, which this version does not read; run the "
            "study again with --resume"
        )
    units, trials = ([_found(store, unit) for unit in kind] for kind in (plan["units"], plan["trials"]))
    test, validation = ([u for u in units if (u["split"] == "test") is side] for side in (True, False))
    return Findings(out, plan, test, trials, validation)


_PENDING: Result = {
    "status": "pending",
    "reason": "not done yet",
    "figures": None,
    "samples": 0,
    "prior_sha256": "",
    "protocol_text": "",
    "ctflow": "",
    "libraries": {},
    "machine": None,
    "seconds": 0.0,
}


def _found(store: Store, planned: Planned) -> Finding:
    """A unit of the plan with its result: one result may serve a tuning trial and a reported unit."""
    record = store.record(f"units/{planned['unit']}")
    return {**record, **planned} if record else {**_PENDING, **planned}
