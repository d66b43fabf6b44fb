"""What a study asks of a test image beyond figures: lesions put in and removed, what the data still hold."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.evidence.lesions import lesion_test
from ctflow.evidence.whiteness import residual, whiteness
from ctflow.problem import InverseProblem
from ctflow.runs.measurement import Job
from ctflow.runs.run import finite


def examine(
    asked: dict[str, dict[str, Any]],
    job: Job,
    method: Any,
    problem: InverseProblem,
    x: Tensor,
    seed: int,
) -> dict[str, Any]:
    """The tests that a study asks for; one that does not fit the case has its refusal in place of figures.

    Args:
        asked: by test, "lesions" or "whiteness", its keyword arguments.
        job: volume, operator and prior.
        method: what reconstructed the image.
        problem: data of all slices.
        x: the solution, (slices, 1, Y, X), 1/mm.
        seed: of places, noise and method.

    Returns:
        For "whiteness" the share of the views that are not white, the autocorrelation at one bin, and the
        residual with its distance from 1 in standard errors; for "lesions" rows as of `LesionRow`.
    """
    tests = {"lesions": _lesions, "whiteness": _whiteness}
    found: dict[str, Any] = {}
    for name, arguments in asked.items():
        try:
            found[name] = finite(tests[name](arguments, job, method, problem, x, seed))
        except GeometryError as error:
            found[name] = {"refusal": str(error)}
    return found


def _lesions(
    arguments: dict[str, Any], job: Job, method: Any, problem: InverseProblem, x: Tensor, seed: int
) -> dict[str, Any]:
    """In the middle slice of the case."""
    middle = job.truth.geometry.shape[0] // 2
    rows = lesion_test(
        job.truth.slices(middle, middle + 1),
        job.A,
        job.noise,
        method,
        job.prior,
        seed=seed,
        device=job.device,
        **arguments,
    )
    return {"rows": {f"{row.diameter_mm:g} mm {row.contrast_hu:+g} HU": asdict(row) for row in rows}}


def _whiteness(
    arguments: dict[str, Any], job: Job, method: Any, problem: InverseProblem, x: Tensor, seed: int
) -> dict[str, Any]:
    found, left = whiteness(problem, x, **arguments), residual(problem, x)
    return {
        "rejected": found.rejected,
        "lag_1": float(found.autocorrelation[0]),
        "residual": left.mean,
        "z": left.z,
    }
