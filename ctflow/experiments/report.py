"""A study's report: report.html, one page that needs no network, with report.json and CSV files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ctflow.evidence.lesions import LesionRow
from ctflow.experiments.checklist import GUIDELINE, checklist
from ctflow.experiments.findings import Findings, Record, read
from ctflow.experiments.pictures import title, viewer
from ctflow.experiments.spreadsheet import csv_text
from ctflow.experiments.store import Store
from ctflow.experiments.summary import FIGURES, WHITENESS, figure, summarise
from ctflow.experiments.support import PRIOR_SD_HU, SMOOTHED
from ctflow.metrics import CONVENTIONS, HU_CLASSES
from ctflow.registry import build
from ctflow.runs.html import render
from ctflow.runs.reconstruction import finite
from ctflow.runs.report import citation, sentence
from ctflow.system.version import full_version

_DESCRIBED = ("case", "patient", "split", "protocol", "method", "seed", "status", "reason")
_IN_CSV = (
    *FIGURES,
    "fov.rmse_hu",
    "body.psnr_soft_tissue",
    "body.ssim_soft_tissue",
    "network",
    *(f"whiteness.{key}" for key in WHITENESS),
)


def write_report(out: Path) -> Path:
    """Write report.html, report.json, report.csv and lesions.csv from what a study has done so far.

    Args:
        out: the study's folder.

    Returns:
        Path of the page.

    Raises:
        UsageError: the folder holds no plan.
        OutputError: the folder cannot be written.
    """
    findings = read(out)
    tables = summarise(findings)
    groups = _worst_first(findings)
    content = finite_all(_content(findings, tables, groups))
    page = render("experiments/report.html.j2", viewer=viewer(findings, groups), **content, **_words(content))
    texts = {
        "report.csv": _rows(findings),
        "lesions.csv": _lesion_rows(findings),
        "report.json": json.dumps(content, indent=1, allow_nan=False) + "\n",
        "report.html": page,
    }
    for name, text in texts.items():
        Store(out).write(name, text)
    return out / "report.html"


def finite_all(value: Any) -> Any:
    """Content that JSON can hold: numbers that are not finite become None, in lists too.

    Args:
        value: table, list, number or text.
    """
    if isinstance(value, list | tuple):
        return [finite_all(inner) for inner in value]
    if isinstance(value, dict):
        return {key: finite_all(inner) for key, inner in value.items()}
    return finite(value) if isinstance(value, float) else value


def _worst_first(findings: Findings) -> list[list[Record]]:
    """Units that are done by case, protocol and seed; largest RMSE of any but the reference first."""
    groups: dict[Any, list[Record]] = {}
    for unit in findings.done:
        groups.setdefault((unit["case_hash"], unit["protocol"], unit["seed"]), []).append(unit)
    order = {method: k for k, method in enumerate(findings.methods)}
    for group in groups.values():
        group.sort(key=lambda unit: order[unit["method"]])
    return sorted(groups.values(), key=lambda group: -_worst(group, findings.reference))


def _worst(group: Sequence[Record], reference: str) -> float:
    tested = [unit for unit in group if unit["method"] != reference] or group
    return max(figure(unit, "rmse_hu") or 0.0 for unit in tested)


def _content(findings: Findings, tables: dict[str, dict[str, Record]], groups: list[list[Record]]) -> Record:
    """What report.json holds."""
    plan = findings.plan
    every = [*findings.units, *findings.calibrating]
    failed = [unit for unit in every if unit["status"] != "done"]
    return {
        "study": plan["study"],
        "summary": plan["summary"],
        "reference": findings.reference,
        "margin_hu": findings.margin_hu,
        "counts": {"planned": len(every), "done": len(every) - len(failed), "left": len(failed)},
        "protocols": tables,
        "cases": [_case(group) for group in groups],
        "failures": [{key: unit[key] for key in (*_DESCRIBED, "unit")} for unit in failed],
        "lesion_refusals": sorted(
            {(unit["figures"].get("lesions") or {}).get("refusal", "") for unit in findings.done} - {""}
        ),
        "checklist": checklist(findings, tables),
        "conventions": CONVENTIONS,
        "support": {"prior_sd_hu": PRIOR_SD_HU, "smoothed_pixels": SMOOTHED},
        "texts": plan["protocols"],
        "parameters": _parameters(findings),
        "provenance": {
            "ctflow": full_version(),
            "study file": plan["study"],
            "seeds": sorted({unit["seed"] for unit in findings.units}),
            "samples": sorted({unit["samples"] for unit in findings.done}),
            "machines": sorted({unit["machine"] for unit in findings.done}),
            "prior sha256": sorted({unit["prior_sha256"][:16] for unit in findings.done} - {""}),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
        "citation": citation(
            _papers(plan["methods"]), any("geometry" in t for t in plan["protocols"].values())
        ),
    }


def _case(group: Sequence[Record]) -> Record:
    kept = ("unit", "method", "parameters", "samples", "prior_sha256", "ctflow")
    return {
        "title": title(group[0]),
        **{key: group[0][key] for key in ("case", "case_hash", "patient", "split", "protocol", "seed")},
        "methods": [
            {**{key: unit[key] for key in kept}, "figures": {key: figure(unit, key) for key in FIGURES}}
            for unit in group
        ],
    }


def _parameters(findings: Findings) -> dict[str, Any]:
    """By method, the parameters that its units ran with: one table, unless protocols were tuned apart."""
    found: dict[str, dict[str, Any]] = {}
    for unit in findings.units:
        found.setdefault(unit["method"], {}).setdefault(unit["protocol"], unit["parameters"])
    return found


def _papers(methods: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {label: str(build("method", table).paper) for label, table in methods.items()}


def _words(content: Record) -> dict[str, Any]:
    """What only the page needs."""
    return {
        "classes": list(HU_CLASSES),
        "convention_words": {key: sentence(value) for key, value in content["conventions"].items()},
        "provenance_words": {key: _listed(value) for key, value in content["provenance"].items()},
        "parameter_words": {
            method: {protocol: sentence(table) or "none" for protocol, table in tables.items()}
            for method, tables in content["parameters"].items()
        },
        "guideline": GUIDELINE,
        "untested": "; ".join(content["lesion_refusals"]),
    }


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _rows(findings: Findings) -> str:
    classes = [f"{name}.rmse_hu" for name in HU_CLASSES]
    paths = (*_IN_CSV, *(f"classes.{name}" for name in classes))
    return csv_text(
        ["unit", *_DESCRIBED, *_IN_CSV, *classes],
        ([*_said(unit, _DESCRIBED), *(figure(unit, path) for path in paths)] for unit in findings.units),
    )


def _lesion_rows(findings: Findings) -> str:
    names = [entry.name for entry in fields(LesionRow)]
    rows: list[list[Any]] = []
    for unit in findings.done:
        tested, said = unit["figures"].get("lesions") or {}, _said(unit, _DESCRIBED[:6])
        rows += [[*said, *(row[name] for name in names), ""] for row in tested.get("rows", {}).values()]
        if "refusal" in tested:
            rows.append([*said, *(None for _ in names), tested["refusal"]])
    return csv_text(["unit", *_DESCRIBED[:6], *names, "refusal"], rows)


def _said(unit: Record, keys: Sequence[str]) -> list[Any]:
    return [unit["unit"], *(unit[key] for key in keys)]
