"""The unit of work: one case, measured by one protocol, reconstructed by one method, with one seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property

from ctflow.experiments.cases import Case
from ctflow.experiments.records import Description, Planned
from ctflow.registry import Call, build, find_class
from ctflow.runs.measured_data import reference_filter
from ctflow.runs.protocol import Protocol
from ctflow.system.version import outside_sha256, software

_MEASURING = ("geometry", "operator", "noise", "mu_water", "energy_kev")


@dataclass(frozen=True)
class Unit:
    """What is computed at once, and kept under the hash of all that its result depends on.

    In the hash are the case's content, measurement, method, seed, samples, tests, the prior's files, device
    (CPU or GPU), the content of ctflow's code and that of classes from elsewhere, and the versions of the
    libraries whose arithmetic makes pixels. The machine is not, or shards on two machines would never make
    one study: number of threads, kind of processor and GPU change the order of sums. The classical methods
    give the same bits on one thread and on two; a network's rounding grows along a sampler's path, to 0.02 HU
    in a pixel for conjugate and to several HU for ms-flow, as another seed would. The record says on what it
    was computed.

    Args:
        case: the case.
        protocol: what is measured; its own methods are not used.
        method: the study's label of the method.
        table: `name` and keyword arguments of the method.
        seed: seed of noise and method.
        samples: images that a random method draws and averages.
        prior: name or file of the flow prior, for a method that needs one.
        prior_sha256: hash of its weights and of what is declared of it; else "".
        device: "cpu" or "cuda".
        trial: number of the tuning trial; None for a unit that is reported.
        refusal: why it cannot be computed, where that is known.
        asked: tests beyond the figures, "lesions" and "whiteness", with their keyword arguments.
        code: versions of ctflow and of the libraries that compute it.
    """

    case: Case
    protocol: Protocol
    method: str
    table: Call
    seed: int
    samples: int
    prior: str
    prior_sha256: str
    device: str = "cpu"
    trial: int | None = None
    refusal: str = ""
    asked: dict[str, dict[str, object]] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=software)

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits: equal where all is equal that the result depends on."""
        tables, name = self.protocol.tables, str(self.table["name"])
        calls = {
            "geometry": tables.get("geometry"),
            "operator": tables.get("operator"),
            "noise": tables["noise"],
        }
        parts = [find_class(kind, str(call["name"])) for kind, call in calls.items() if call]
        method = build("method", self.table)
        assert is_dataclass(method)
        assert not isinstance(method, type)
        content = {
            "case": self.case.sha256,
            "measurement": [self.protocol.name, self.measurement, reference_filter(self.protocol)],
            "method": [self.method, name, asdict(method)],
            "prior": self.prior_sha256,
            "seed": self.seed,
            "samples": self.samples,
            "device": self.device,
            "code": self.code,
            "outside": [outside_sha256(part) for part in (*parts, find_class("method", name))],
            "refusal": self.refusal,
            "asked": self.asked,
            "image": self.keeps_image,
        }
        return _hash(content)

    @property
    def keeps_image(self) -> bool:
        """Whether its image is kept: not that of a tuning trial, unless it has a spread to calibrate with."""
        return self.trial is None or self.samples > 1

    @property
    def measurement(self) -> dict[str, object]:
        """The protocol's tables that say what is measured."""
        return {key: value for key, value in self.protocol.tables.items() if key in _MEASURING}

    @property
    def place(self) -> str:
        """Its folder in the study's folder."""
        return f"units/{self.hash}"

    @property
    def truth(self) -> str:
        """Name of the folder that keeps its case as this code reads it."""
        return _hash([self.case.sha256, self.code])

    @property
    def group(self) -> tuple[str, str]:
        """What shares its volume and operator: the same case under the same protocol."""
        return self.case.sha256, self.protocol.name

    def description(self) -> Description:
        """The unit in words, for manifest, plan and report; no path and no patient's name."""
        return {
            "unit": self.hash,
            "case": self.case.label,
            "case_hash": self.case.sha256[:16],
            "truth": self.truth,
            "patient": self.case.patient,
            "split": self.case.split,
            "protocol": self.protocol.name,
            "method": self.method,
            "parameters": {key: value for key, value in self.table.items() if key != "name"},
            "seed": self.seed,
        }

    def planned(self) -> Planned:
        """The same with what it is for: number of the tuning trial, None where it is reported."""
        return {**self.description(), "trial": self.trial}


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
