"""What a study asks of a test image beyond figures: lesions put in and removed, what the data still hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.evidence.lesions import LesionRow, lesion_test
from ctflow.evidence.whiteness import Whiteness, residual, whiteness
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.runs.figures import finite
from ctflow.runs.measurement import Measurement
from ctflow.solving import Method
from ctflow.tables import JSON


def examine(
    asked: Mapping[str, Mapping[str, object]],
    measurement: Measurement,
    method: Method,
    prior: Prior | None,
    problem: InverseProblem,
    x: Tensor,
    seed: int,
) -> dict[str, JSON]:
    """The tests that a study asks for; one that does not fit the case has its refusal in place of figures.

    Args:
        asked: by test, "lesions" or "whiteness", its keyword arguments.
        measurement: what was measured.
        method: what reconstructed the image.
        prior: its prior, where it needs one.
        problem: data of all slices.
        x: the solution, (slices, 1, Y, X), 1/mm.
        seed: of places, noise and method.

    Returns:
        For "whiteness" the share of the views that are not white, the autocorrelation at one bin, and the
        residual with its distance from 1 in standard errors; for "lesions" rows as of `LesionRow`.
    """
    tests: dict[str, Callable[..., dict[str, object]]] = {
        "lesions": partial(_lesions, measurement, method, prior, seed),
        "whiteness": partial(_whiteness, problem, x),
    }
    found: dict[str, JSON] = {}
    for name, arguments in asked.items():
        try:
            found[name] = finite(tests[name](**arguments))
        except GeometryError as error:
            found[name] = {"refusal": str(error)}
    return found


def _lesions(
    measurement: Measurement, method: Method, prior: Prior | None, seed: int, **arguments: object
) -> dict[str, object]:
    """In the middle slice of the case."""
    middle = measurement.grid.shape[0] // 2
    test: Callable[..., list[LesionRow]] = lesion_test  # the study file's keys have been checked
    rows = test(
        measurement.truth.slices(middle, middle + 1),
        measurement.A,
        measurement.noise,
        method,
        prior,
        seed=seed,
        device=measurement.device,
        **arguments,
    )
    return {"rows": {f"{row.diameter_mm:g} mm {row.contrast_hu:+g} HU": asdict(row) for row in rows}}


def _whiteness(problem: InverseProblem, x: Tensor, **arguments: object) -> dict[str, object]:
    test: Callable[..., Whiteness] = whiteness
    found, left = test(problem, x, **arguments), residual(problem, x)
    return {
        "rejected": found.rejected,
        "lag_1": float(found.autocorrelation[0]),
        "residual": left.mean,
        "z": left.z,
    }
