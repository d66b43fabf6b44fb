"""The unit of work: one case, measured by one protocol, reconstructed by one method, with one seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from ctflow import __version__
from ctflow.protocol import Protocol
from ctflow.registry import build
from ctflow.studies.cases import Case

_MEASURING = ("geometry", "operator", "noise", "mu_water", "energy_kev")


@dataclass(frozen=True)
class Unit:
    """What is computed at once, and kept under the hash of all that its result depends on.

    Args:
        case: the case.
        protocol: what is measured; its own methods are not used.
        method: the study's label of the method.
        table: `name` and keyword arguments of the method.
        seed: seed of noise and method.
        samples: images that a random method draws and averages.
        prior: name or file of the flow prior, for a method that needs one.
        prior_sha256: hash of that file, else "".
        device: "cpu" or "cuda".
        trial: number of the tuning trial; None for a unit that is reported.
        refusal: why it cannot be computed, where that is known.
        asked: tests beyond the figures, "lesions" and "whiteness", with their keyword arguments.
    """

    case: Case
    protocol: Protocol
    method: str
    table: dict[str, Any]
    seed: int
    samples: int
    prior: str
    prior_sha256: str
    device: str = "cpu"
    trial: int | None = None
    refusal: str = ""
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits: equal where case, measurement, method, prior, seed and version are equal."""
        content = {
            "case": self.case.sha256,
            "measurement": [self.protocol.name, self.measurement],
            "method": [self.method, self.table["name"], asdict(build("method", self.table))],
            "prior": self.prior_sha256,
            "seed": self.seed,
            "samples": self.samples,
            "ctflow": __version__,
            "refusal": self.refusal,
            "asked": self.asked,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def measurement(self) -> dict[str, Any]:
        """The protocol's tables that say what is measured."""
        return {key: self.protocol.tables[key] for key in _MEASURING if key in self.protocol.tables}

    @property
    def place(self) -> str:
        """Its folder in the study's folder."""
        return f"{'units' if self.trial is None else 'tuning'}/{self.hash}"

    @property
    def group(self) -> tuple[str, str]:
        """What shares its volume and operator: the same case under the same protocol."""
        return self.case.sha256, self.protocol.name

    def description(self) -> dict[str, Any]:
        """The unit in words, for manifest, plan and report; no path and no patient's name."""
        return {
            "unit": self.hash,
            "case": self.case.label,
            "case_hash": self.case.sha256[:16],
            "patient": self.case.patient,
            "split": self.case.split,
            "protocol": self.protocol.name,
            "method": self.method,
            "parameters": {key: value for key, value in self.table.items() if key != "name"},
            "seed": self.seed,
            "trial": self.trial,
        }
