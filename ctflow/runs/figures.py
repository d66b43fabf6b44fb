"""What report.json holds, key by key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NotRequired, TypedDict

from ctflow.solving import Method, Spread, samples_of, spread_of
from ctflow.tables import JSON

MethodFigures = dict[str, JSON]
"""Figures of one method: `ctflow.metrics.Row`, None for what is infinite."""


def finite(table: Mapping[str, object]) -> dict[str, JSON]:
    """A table that JSON can hold: numbers that are not finite become None, in tables and lists too."""
    return {key: _finite(value) for key, value in table.items()}


def _finite(value: object) -> JSON:
    if isinstance(value, Mapping):
        return finite(value)
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    assert value is None or isinstance(value, int | float | str)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figure(figures: JSON, path: str) -> float | None:
    """A figure by its path, "body.bias_hu"; None where there is none."""
    value = inside(figures, path)
    return float(value) if isinstance(value, int | float) else None


def inside(figures: JSON, path: str) -> JSON:
    """What stands at a path, "lesions.rows"; None where there is nothing."""
    for step in path.split("."):
        figures = figures.get(step) if isinstance(figures, Mapping) else None
    return figures


class ProtocolText(TypedDict):
    """The protocol that was run, overrides applied."""

    name: str
    summary: str
    text: str
    sha256: str
    overrides: list[str]


class PriorName(TypedDict):
    """The prior that was used."""

    name: str
    sha256: str


class Samples(TypedDict):
    """How many images of a method were averaged, and what their spread is: a `Spread`, and in words."""

    number: int
    spread: str
    meaning: str


def sampled(method: Method, asked: int) -> Samples:
    """What a method makes of the samples that are asked for."""
    number = samples_of(method, asked)
    kind = spread_of(method) if number > 1 else Spread.NONE
    return {"number": number, "spread": kind.value, "meaning": kind.words}


class Provenance(TypedDict):
    """What decides the pixels, where they were computed, and when, which may be left out."""

    ctflow: str
    seed: int
    samples: int
    slices: str
    prior: PriorName | None
    input_sha256: str | None
    mu_water_per_mm: float
    skipped_files: list[str]
    device: str
    python: str
    libraries: dict[str, str]
    created: NotRequired[str]


class Threshold(TypedDict):
    """How a figure of the main method stands to the protocol's threshold."""

    threshold: float
    value: float | None
    passed: bool


class Figures(TypedDict):
    """The content of report.json."""

    protocol: ProtocolText
    method: str
    reference: str
    methods: dict[str, MethodFigures]
    samples: dict[str, Samples]
    measured: bool
    residual_of_input: float
    conventions: dict[str, JSON]
    accept: dict[str, Threshold]
    lesions: dict[str, str]
    warnings: list[str]
    measurement: str
    grid: str
    provenance: Provenance
