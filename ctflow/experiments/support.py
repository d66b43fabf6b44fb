"""Support maps of a study's cases: what a protocol's data determine in the middle slice, kept once found."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ctflow.errors import CTFlowError
from ctflow.experiments.findings import Findings
from ctflow.experiments.records import Finding
from ctflow.experiments.store import Store, writing
from ctflow.geometry import VolumeGeometry
from ctflow.operators import LinearOperator
from ctflow.problem import simulate
from ctflow.runs.protocol import Protocol
from ctflow.runs.support import smoothed_support
from ctflow.system.version import full_version
from ctflow.volume import Volume

Floats = NDArray[np.float64]


def support(findings: Findings, unit: Finding) -> Floats | None:
    """How much of every voxel the unit's protocol determines in the middle slice of its case, 0 to 1.

    Args:
        findings: of the study.
        unit: any unit of the case under the protocol.

    Returns:
        (Y, X), dimensionless; None where the protocol does not measure the case.
    """
    text, key = unit["protocol_text"], support_key(unit)
    place = findings.out / "support" / key / "support.npz"
    if place.is_file():
        with np.load(place, allow_pickle=False) as stored:
            return np.asarray(stored["support"], np.float64)
    truth = findings.truth(unit)
    middle = truth.geometry.shape[0] // 2
    try:
        found = _map(text, truth.slices(middle, middle + 1), unit["seed"])
    except CTFlowError:
        return None
    with writing():
        place.parent.parent.mkdir(exist_ok=True)
    Store(findings.out).keep(f"support/{key}", {"support.npz": {"support": found.astype(np.float32)}})
    return found


def support_key(unit: Finding) -> str:
    """What names the map of a unit: a hash of the version, the case, the seed and the protocol."""
    text = f"{full_version()} {unit['truth']} {unit['seed']} {unit['protocol_text']}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _map(text: str, slice_: Volume, seed: int) -> Floats:
    protocol, A = _measuring(text, slice_.geometry)
    problem = simulate(A, slice_.to_attenuation(protocol.mu_water).data, protocol.noise(), seed)
    found: Floats = smoothed_support(problem, protocol.mu_water, seed)[0]
    return found


@lru_cache(maxsize=4)
def _measuring(text: str, geometry: VolumeGeometry) -> tuple[Protocol, LinearOperator]:
    protocol = Protocol.parse("study", text)
    return protocol, protocol.operator(geometry)
