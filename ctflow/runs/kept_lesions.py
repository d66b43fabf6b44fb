"""What `ctflow bench lesions` has measured of methods, as sentences and warnings of a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TypedDict, cast

from ctflow.runs.protocol import Protocol
from ctflow.tables import JSON


class _Run(TypedDict):
    """What the bench has run."""

    task: str
    method: str
    views: int
    main: bool
    key: str


class _Shown(TypedDict):
    """What a method shows of lesions of one kind."""

    task: str
    method: str
    diameter_mm: float
    contrast_hu: float
    recovery: float
    false_signal_hu: float


class _Invented(TypedDict):
    """What a method invents."""

    task: str
    method: str
    above_100: float


_METHODS = ("method", "beside", "reference", "tuned", "accept")
_CONTRAST_HU = 60.0
_DIAMETERS_MM = (8.0, 12.0)


def key_of(protocol: Protocol, method: Mapping[str, object], prior_sha256: str) -> str:
    """SHA-256 of all that decides what a method shows of lesions, but for the patient.

    Args:
        protocol: its measurement counts, its other methods do not.
        method: the method's table.
        prior_sha256: hash of the prior, "" for a method without.
    """
    measurement = {name: table for name, table in protocol.tables.items() if name not in _METHODS}
    text = json.dumps([measurement, method, prior_sha256], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sentences(protocol: Protocol, prior_sha256: str) -> dict[str, str]:
    """What the bench found of each of a protocol's methods; nothing for those that it has not measured.

    Args:
        protocol: as it is run.
        prior_sha256: hash of its prior.
    """
    needed, found = {name: one.needs_prior for name, one in protocol.methods().items()}, {}
    for name, table in protocol.method_tables().items():
        key = key_of(protocol, table, prior_sha256 if needed[name] else "")
        for row in _runs():
            if row["key"] == key:
                found[name] = _sentence(row["task"], row["method"])
    return found


def warnings(protocol: Protocol, views: int) -> list[str]:
    """A warning where a flow method reconstructs from fewer views than it can be trusted with.

    That number is the smallest at which the bench has found no more 8 mm discs off by more than 100 HU than
    by TV.

    Args:
        protocol: as it is run.
        views: number of views.
    """
    main = [row for row in _runs() if row["main"]]
    safe = [row["views"] for row in main if _off(row["task"], row["method"]) <= _off(row["task"], "tv")]
    flows = [name for name, method in protocol.methods().items() if method.needs_prior]
    if not flows or not safe or views >= min(safe):
        return []
    return [
        f"{views} views are fewer than the {min(safe)} down to which flow methods were seen to invent no "
        f"more than TV: what {', '.join(flows)} show may not be there; compare with TV, and with the spread "
        "of moment-matching (--samples 8)"
    ]


def _sentence(task: str, method: str) -> str:
    shown = {
        row["diameter_mm"]: row
        for row in cast("list[_Shown]", _rows("recovery"))
        if (row["task"], row["method"], row["contrast_hu"]) == (task, method, _CONTRAST_HU)
    }
    kept = ", ".join(f"of {d:g} mm to {100 * shown[d]['recovery']:.0f} %" for d in _DIAMETERS_MM)
    false = shown[_DIAMETERS_MM[0]]["false_signal_hu"]
    off = 100 * _off(task, method)
    return (
        f"soft-tissue lesions of +{_CONTRAST_HU:.0f} HU are kept {kept}; an empty disc of 8 mm is off by "
        f"{false:.0f} HU (standard deviation), and {off:.2g} % of them by more than 100 HU"
    )


def _off(task: str, method: str) -> float:
    """Share of the 8 mm discs off by more than 100 HU."""
    rows = cast("list[_Invented]", _rows("above_100"))
    (share,) = (row["above_100"] for row in rows if (row["task"], row["method"]) == (task, method))
    return share


def _runs() -> list[_Run]:
    return cast("list[_Run]", _rows("key"))


def _rows(having: str) -> list[Mapping[str, JSON]]:
    return [row for row in _measured() if having in row]


@cache
def _measured() -> list[Mapping[str, JSON]]:
    """Rows of the bench, as `ctflow bench lesions --json` wrote them."""
    text = (files("ctflow.runs") / "lesions.json").read_text(encoding="utf-8")
    rows: list[Mapping[str, JSON]] = json.loads(text)["rows"]
    return rows
