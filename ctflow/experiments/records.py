"""What a study's files hold, key by key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypedDict, TypeVar

from ctflow.registry import Call
from ctflow.runs.figures import MethodFigures

T = TypeVar("T")


class Description(TypedDict):
    """A unit in words: no path and no patient's name."""

    unit: str
    case: str
    case_hash: str
    truth: str
    patient: str
    split: str
    protocol: str
    method: str
    parameters: dict[str, object]
    seed: int


class Planned(Description):
    """The same with what it is for: number of the tuning trial, None where it is reported."""

    trial: int | None


class Status(Planned):
    """How far a planned unit is: "done", "failed" or "pending", and why it failed."""

    status: str
    reason: str


class Result(TypedDict):
    """What became of a unit; no figures where it failed."""

    status: str
    reason: str
    figures: MethodFigures | None
    samples: int
    prior_sha256: str
    protocol_text: str
    ctflow: str
    libraries: dict[str, str]
    machine: str | None
    seconds: float


class Record(Description, Result):
    """unit.json."""


class Finding(Planned, Result):
    """A unit of the plan with its result."""


class Tuning(TypedDict):
    """How methods are tuned: number of trials, figure that decides, seed of the draw."""

    trials: int
    objective: str
    seed: int


class Trial(TypedDict):
    """What was tried, and its mean objective; None where it failed."""

    parameters: dict[str, object]
    score: float | None


class Choice(TypedDict, total=False):
    """The best trial of a method under a protocol, or a refusal where every trial failed."""

    parameters: dict[str, object]
    trial: int | None
    score: float
    trials: list[Trial]
    refusal: str


Chosen = dict[str, dict[str, Choice]]
"""Choices by protocol and method."""


class Tuned(TypedDict):
    """tuned.json; the key is the hash of the trials."""

    key: str
    objective: str
    chosen: Chosen


class Plan(TypedDict):
    """plan.json."""

    study: str
    summary: str
    ctflow: str
    protocols: dict[str, str]
    methods: dict[str, Call]
    tuning: Tuning
    statistics: dict[str, object]
    trials: list[Planned]
    units: list[Planned]


@dataclass(frozen=True)
class JsonFile(Generic[T]):
    """A JSON file of a study's folder, and the type of its content.

    Args:
        name: its path in the folder.
    """

    name: str


PLAN = JsonFile[Plan]("plan.json")
TUNED = JsonFile[Tuned]("tuned.json")
INPUTS = JsonFile[dict[str, str]]("inputs.json")
"""Hashes of folders by their listing."""
SOFTWARE = JsonFile[dict[str, str]]("software.json")
"""Versions by name."""


def record_file(place: str) -> JsonFile[Record]:
    """The record of the unit at "units/<hash>"."""
    return JsonFile(f"{place}/unit.json")
