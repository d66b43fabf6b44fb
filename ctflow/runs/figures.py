"""What report.json holds, key by key."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from ctflow.tables import JSON

MethodFigures = dict[str, JSON]
"""Figures of one method: `ctflow.metrics.Metrics`, None for what is infinite, and what the method cost."""


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
    measured: bool
    residual_of_input: float
    conventions: dict[str, JSON]
    accept: dict[str, Threshold]
    warnings: list[str]
    measurement: str
    grid: str
    provenance: Provenance
