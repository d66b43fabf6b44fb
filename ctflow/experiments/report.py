"""A study's report: report.html, one page that needs no network, with report.json and CSV files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from ctflow.evidence.lesions import LesionRow
from ctflow.experiments.checklist import GUIDELINE, checklist
from ctflow.experiments.findings import Findings, read
from ctflow.experiments.pictures import TRUTH, cases, title, worst
from ctflow.experiments.records import Finding
from ctflow.experiments.spreadsheet import csv_text
from ctflow.experiments.store import Store
from ctflow.experiments.summary import FIGURES, WHITENESS, Tables, lesion_rows, summarise
from ctflow.metrics import CONVENTIONS, HU_CLASSES
from ctflow.registry import Call
from ctflow.runs.figures import figure, finite, inside
from ctflow.runs.html import render
from ctflow.runs.report import citation, sentence
from ctflow.runs.support import PRIOR_SD_HU, SMOOTHED
from ctflow.runs.viewer import parts
from ctflow.solving import build_method
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
    provenance = _provenance(findings)
    content = finite(_content(findings, tables, groups, provenance))
    words = _words(findings, provenance)
    shown = cases(findings, groups)
    viewer = parts(shown, TRUTH) if shown else {}
    page = render("experiments/report.html.j2", title=content["study"], **viewer, **content, **words)
    texts = {
        "report.csv": _rows(findings),
        "lesions.csv": _lesion_rows(findings),
        "report.json": json.dumps(content, indent=1, allow_nan=False) + "\n",
        "report.html": page,
    }
    for name, text in texts.items():
        Store(out).write(name, text)
    return out / "report.html"


def _worst_first(findings: Findings) -> list[list[Finding]]:
    """Units that are done by case, protocol and seed; largest RMSE of any but the reference first."""
    groups: dict[tuple[str, str, int], list[Finding]] = {}
    for unit in findings.done:
        groups.setdefault((unit["case_hash"], unit["protocol"], unit["seed"]), []).append(unit)
    order = {method: k for k, method in enumerate(findings.methods)}
    for group in groups.values():
        group.sort(key=lambda unit: order[unit["method"]])

    def largest(group: Sequence[Finding]) -> float:
        return figure(worst(group, findings.reference)["figures"], "rmse_hu") or 0.0

    return sorted(groups.values(), key=largest, reverse=True)


def _content(
    findings: Findings, tables: Tables, groups: list[list[Finding]], provenance: dict[str, object]
) -> dict[str, object]:
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
        "samples": findings.samples,
        "protocols": tables,
        "cases": [_case(group) for group in groups],
        "failures": [_taken(unit, (*_DESCRIBED, "unit")) for unit in failed],
        "lesion_refusals": _lesion_refusals(findings),
        "checklist": checklist(findings, tables),
        "conventions": CONVENTIONS,
        "support": {"prior_sd_hu": PRIOR_SD_HU, "smoothed_pixels": SMOOTHED},
        "texts": plan["protocols"],
        "parameters": _parameters(findings),
        "provenance": provenance,
        "citation": citation(
            _papers(plan["methods"]), any("geometry" in t for t in plan["protocols"].values())
        ),
    }


def _provenance(findings: Findings) -> dict[str, object]:
    return {
        "ctflow": full_version(),
        "study file": findings.plan["study"],
        "seeds": sorted({unit["seed"] for unit in findings.units}),
        "samples": sorted({unit["samples"] for unit in findings.done}),
        "machines": sorted({str(unit["machine"]) for unit in findings.done}),
        "prior sha256": sorted({unit["prior_sha256"][:16] for unit in findings.done} - {""}),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _lesion_refusals(findings: Findings) -> list[str]:
    refusals = (inside(unit["figures"], "lesions.refusal") for unit in findings.done)
    return sorted({str(refusal) for refusal in refusals if refusal})


def _taken(unit: Mapping[str, object], keys: Iterable[str]) -> dict[str, object]:
    return {key: unit[key] for key in keys}


def _case(group: Sequence[Finding]) -> dict[str, object]:
    kept = ("unit", "method", "parameters", "samples", "prior_sha256", "ctflow")
    return {
        "title": title(group[0]),
        **_taken(group[0], ("case", "case_hash", "patient", "split", "protocol", "seed")),
        "methods": [
            {**_taken(unit, kept), "figures": {key: figure(unit["figures"], key) for key in FIGURES}}
            for unit in group
        ],
    }


def _parameters(findings: Findings) -> dict[str, dict[str, dict[str, object]]]:
    """By method, the parameters that its units ran with: one table, unless protocols were tuned apart."""
    found: dict[str, dict[str, dict[str, object]]] = {}
    for unit in findings.units:
        found.setdefault(unit["method"], {}).setdefault(unit["protocol"], unit["parameters"])
    return found


def _papers(methods: dict[str, Call]) -> dict[str, str]:
    return {label: str(build_method(table).paper) for label, table in methods.items()}


def _words(findings: Findings, provenance: dict[str, object]) -> dict[str, object]:
    """What only the page needs."""
    return {
        "classes": list(HU_CLASSES),
        "convention_words": {key: sentence(value) for key, value in CONVENTIONS.items()},
        "provenance_words": {key: _listed(value) for key, value in provenance.items()},
        "parameter_words": {
            method: {protocol: sentence(table) or "none" for protocol, table in tables.items()}
            for method, tables in _parameters(findings).items()
        },
        "guideline": GUIDELINE,
        "untested": "; ".join(_lesion_refusals(findings)),
    }


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _rows(findings: Findings) -> str:
    classes = [f"{name}.rmse_hu" for name in HU_CLASSES]
    paths = (*_IN_CSV, *(f"classes.{name}" for name in classes))
    return csv_text(
        ["unit", *_DESCRIBED, *_IN_CSV, *classes],
        (
            [*_said(unit, _DESCRIBED), *(figure(unit["figures"], path) for path in paths)]
            for unit in findings.units
        ),
    )


def _lesion_rows(findings: Findings) -> str:
    names = [entry.name for entry in fields(LesionRow)]
    rows: list[list[object]] = []
    for unit in findings.done:
        said, refusal = _said(unit, _DESCRIBED[:6]), inside(unit["figures"], "lesions.refusal")
        rows += [[*said, *(row[name] for name in names), ""] for row in lesion_rows(unit).values()]
        if refusal is not None:
            rows.append([*said, *(None for _ in names), refusal])
    return csv_text(["unit", *_DESCRIBED[:6], *names, "refusal"], rows)


def _said(unit: Mapping[str, object], keys: Sequence[str]) -> list[object]:
    return [unit["unit"], *(unit[key] for key in keys)]
