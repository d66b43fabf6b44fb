"""The study in numbers: every method under every protocol, with intervals, tests and coverage by patient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from ctflow.evidence.conformal import Posterior, calibrate
from ctflow.evidence.statistics import bland_altman, bootstrap, by_patient, equivalence, holm, wilcoxon
from ctflow.experiments.findings import Findings
from ctflow.experiments.records import Finding
from ctflow.metrics import HU_CLASSES, body_mask, fov_mask
from ctflow.runs.figures import figure, inside
from ctflow.tables import JSON

FIGURES = ("rmse_hu", "body.bias_hu", "psnr", "ssim", "residual", "seconds")
"""Figures that are summarised, by their path in a unit's figures."""

WHITENESS = ("rejected", "lag_1", "residual", "z")
"""Figures of the residual, where a study asks for its whiteness."""

LEVEL = 0.9
"""Of the calibrated intervals."""

_VOXELS = 200_000  # of a patient that calibrate: bounds the memory, and errors no percentile


Interval = dict[str, float]
"""Mean, ends and number of an interval, as `evidence.statistics.Interval` names them."""


class Versus(TypedDict):
    """A method beside the reference."""

    reference: str
    difference_hu: Interval
    p: float
    least_p: float
    p_equivalent: float | None
    p_holm: NotRequired[float]


class Row(TypedDict):
    """A method under a protocol; see `summarise`."""

    patients: int
    units: int
    failed: int
    figures: dict[str, Interval | None]
    classes: dict[str, dict[str, Interval | None]]
    agreement: dict[str, float] | None
    versus: Versus | None
    coverage: dict[str, float | str] | None
    whiteness: dict[str, Interval | None]
    lesions: list[dict[str, float]]


Tables = dict[str, dict[str, Row]]
"""Rows by protocol and method."""


def summarise(findings: Findings) -> Tables:
    """Tables of all methods, by protocol and method.

    Args:
        findings: of the study.

    Returns:
        For each: patients, units, failed, an interval for every figure, RMSE and bias by class of CT numbers,
        agreement of the mean CT number with the truth's, comparison with the reference, coverage, and the
        lesion test and the whiteness of the residual where the study asks for them.
    """
    found = {
        protocol: {method: _row(findings, protocol, method) for method in findings.methods}
        for protocol in findings.protocols
    }
    compared = [row["versus"] for rows in found.values() for row in rows.values() if row["versus"]]
    for versus, p in zip(compared, holm([versus["p"] for versus in compared]), strict=True):
        versus["p_holm"] = p
    return found


def _row(findings: Findings, protocol: str, method: str) -> Row:
    units = _of(findings.units, protocol, method)
    done = [unit for unit in units if unit["status"] == "done"]
    classes = {
        name: {
            key: _interval(
                [u for u in done if inside(u["figures"], f"classes.{name}")], f"classes.{name}.{key}"
            )
            for key in ("rmse_hu", "bias_hu")
        }
        for name in HU_CLASSES
    }
    bias = _values(done, "body.bias_hu")
    return {
        "patients": len({unit["patient"] for unit in done}),
        "units": len(done),
        "failed": sum(unit["status"] == "failed" for unit in units),
        "figures": {key: _interval(done, key) for key in FIGURES},
        "classes": classes,
        "agreement": asdict(bland_altman(bias)) if len(bias) > 1 else None,
        "versus": _versus(findings, protocol, done) if method != findings.reference else None,
        "coverage": _coverage(findings, method, _of(findings.calibrating, protocol, method), done),
        "whiteness": {key: _interval(done, f"whiteness.{key}") for key in WHITENESS},
        "lesions": _lesions(done),
    }


def _of(units: Sequence[Finding], protocol: str, method: str) -> list[Finding]:
    return [unit for unit in units if (unit["protocol"], unit["method"]) == (protocol, method)]


def _values(units: Sequence[Finding], path: str) -> NDArray[np.float64]:
    """One value for each patient, in the order of their names."""
    known = [(unit["patient"], figure(unit["figures"], path)) for unit in units]
    pairs = [(name, value) for name, value in known if value is not None]
    return by_patient([value for _, value in pairs], [name for name, _ in pairs])


def _interval(units: Sequence[Finding], path: str) -> Interval | None:
    values = _values(units, path)
    return asdict(bootstrap(values)) if len(values) else None


def _versus(findings: Findings, protocol: str, done: Sequence[Finding]) -> Versus | None:
    """RMSE of a method minus that of the reference, over the cases and seeds that both finished."""
    others = {_pair(unit): unit for unit in _of(findings.done, protocol, findings.reference)}
    both = [unit for unit in done if _pair(unit) in others]
    if not both:
        return None
    mine, theirs = _values(both, "rmse_hu"), _values([others[_pair(unit)] for unit in both], "rmse_hu")
    margin = findings.margin_hu
    return {
        "reference": findings.reference,
        "difference_hu": asdict(bootstrap(mine - theirs)),
        "p": wilcoxon(mine, theirs),
        "least_p": min(1.0, 2 * 0.5 ** len(mine)),
        "p_equivalent": equivalence(mine, theirs, margin) if margin and len(mine) > 1 else None,
    }


def _pair(unit: Finding) -> tuple[str, int]:
    return unit["case_hash"], unit["seed"]


def _lesions(done: Sequence[Finding]) -> list[dict[str, float]]:
    """Rows of the lesion test, each the mean over the patients whose slice has room for it."""
    tested = [(unit["patient"], lesion_rows(unit)) for unit in done]
    found = []
    for lesion in dict.fromkeys(name for _, rows in tested for name in rows):
        mine = [(patient, rows[lesion]) for patient, rows in tested if lesion in rows]
        names = [patient for patient, _ in mine]
        row = {key: by_patient([_number(each[key]) for _, each in mine], names).mean() for key in mine[0][1]}
        found.append({**{key: float(value) for key, value in row.items()}, "patients": len(set(names))})
    return found


def lesion_rows(unit: Finding) -> dict[str, dict[str, JSON]]:
    """Rows of a unit's lesion test by lesion, as of `LesionRow`; none where there was no test."""
    rows = inside(unit["figures"], "lesions.rows")
    found = rows if isinstance(rows, Mapping) else {}
    return {lesion: dict(row) for lesion, row in found.items() if isinstance(row, Mapping)}


def _number(value: JSON) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _coverage(
    findings: Findings, method: str, calibrating: Sequence[Finding], done: Sequence[Finding]
) -> dict[str, float | str] | None:
    """Coverage of each patient's intervals, calibrated on validation patients.

    Where a study has none, every patient's are calibrated on the other ones: none calibrates itself.
    """
    seen, people = _people(findings, calibrating), _people(findings, done)
    if not people or len(seen or people) < (1 if seen else 2):
        return None
    rows, widths = [], []
    common = calibrate([scan for own in seen.values() for scan in own], LEVEL) if seen else None
    for one, scans in people.items():
        others = [scan for name, own in people.items() if name != one for scan in own]
        calibration = common or calibrate(others, LEVEL)
        rows += [calibration.coverage(scan) for scan in scans]
        widths += [np.median(calibration.half_width(scan.mean, scan.sd)) for scan in scans]
    return {
        "level": LEVEL,
        "spread": findings.samples[method]["spread"],
        "on": "validation patients" if seen else "the other patients",
        "patients": len(seen) or len(people) - 1,
        "half_width_hu": float(np.mean(widths)),
        **{
            name: float(np.mean([row[name] for row in rows if name in row]))
            for name in ("all", *HU_CLASSES)
            if any(name in row for row in rows)
        },
    }


def _people(findings: Findings, units: Sequence[Finding]) -> dict[str, list[Posterior]]:
    """Posteriors by patient, of the units that are done and have a spread."""
    people: dict[str, list[Posterior]] = {}
    for unit in units:
        posterior = _posterior(findings, unit) if unit["status"] == "done" else None
        if posterior is not None:
            people.setdefault(unit["patient"], []).append(posterior)
    return people


def _posterior(findings: Findings, unit: Finding) -> Posterior | None:
    image = findings.image(unit)
    if "sd" not in image:
        return None
    truth = findings.truth(unit)
    body = np.flatnonzero(body_mask(truth.data, fov_mask(truth)))
    chosen = body[:: max(1, math.ceil(len(body) / _VOXELS))]
    hu = truth.data.numpy().astype(np.float64).ravel()[chosen]
    return Posterior(hu, image["hu"].ravel()[chosen], image["sd"].ravel()[chosen], np.ones(len(chosen), bool))
