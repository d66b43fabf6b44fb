"""What a reader asks of a study, answered from its files; what they cannot know is left to the authors."""

from __future__ import annotations

from collections import Counter

from ctflow.evidence.statistics import FEW
from ctflow.experiments.findings import Findings
from ctflow.experiments.summary import Tables

GUIDELINE = "after CLAIM 2024 (Tejani et al., Radiology: Artificial Intelligence 6, 2024)"
"""Where the questions come from."""


def checklist(findings: Findings, tables: Tables) -> list[dict[str, str]]:
    """Questions with their answers.

    Args:
        findings: of the study.
        tables: of `summarise`.

    Returns:
        For each: item, state ("met", "not met" or "authors") and detail.
    """
    answers = [
        _split(findings),
        _tuning(findings),
        _complete(findings),
        _patients(findings),
        _versions(findings),
        _tests(tables),
        ("Reference standard", None, "the input images; what is measured is simulated from them"),
        (
            "Equal noise",
            True,
            "all methods solve the same data: the noise depends on case, protocol and seed alone",
        ),
        ("Ethics and consent", None, "state the approval or why none is needed"),
        ("Source and selection of cases", None, "state sites, scanners, dates, inclusion and exclusion"),
        ("Training data of the prior", None, "state them, and that no patient of this study is among them"),
        ("Intended use and limits", None, "research use only, not for diagnosis"),
    ]
    states = {True: "met", False: "not met", None: "authors"}
    return [{"item": item, "state": states[met], "detail": detail} for item, met, detail in answers]


Answer = tuple[str, bool | None, str]


def _split(findings: Findings) -> Answer:
    tuned = {unit["patient"] for unit in (*findings.trials, *findings.calibrating)}
    tested = {unit["patient"] for unit in findings.units}
    both = len(tuned & tested)
    detail = f"{len(tuned)} patients for tuning and calibration, {len(tested)} for testing, {both} in both"
    return "Patients are on one side of the split", not both, detail


def _tuning(findings: Findings) -> Answer:
    if not findings.trials:
        return "Tuning on validation cases, at equal budgets", True, "nothing was tuned"
    sides = sorted({unit["split"] for unit in findings.trials})
    chosen = findings.plan["tuning"]
    numbers = Counter((unit["method"], unit["trial"]) for unit in findings.trials)
    trials = Counter(method for method, _ in numbers)
    detail = f"on {', '.join(sides)} cases by {chosen['objective']}; trials: " + ", ".join(
        f"{name} {number}" for name, number in trials.items()
    )
    # A method with a few choices alone has no more trials than choices.
    met = sides == ["validation"] and max(trials.values()) <= chosen["trials"]
    return "Tuning on validation cases, at equal budgets", met, detail


def _complete(findings: Findings) -> Answer:
    states = Counter(unit["status"] for unit in findings.units)
    detail = (
        ", ".join(f"{number} {status}" for status, number in states.items()) + "; every failure is listed"
    )
    return "Every unit is reported", set(states) == {"done"}, detail


def _patients(findings: Findings) -> Answer:
    number = len({unit["patient"] for unit in findings.done})
    detail = (
        f"{number} patients; below {FEW} intervals and tests say little, and 6 are the least for p < 0.05"
    )
    return "Enough patients for the statistics", number > FEW, detail


def _versions(findings: Findings) -> Answer:
    versions = sorted({unit["ctflow"] for unit in findings.done})
    return "One version of the software", len(versions) == 1, "ctflow " + ", ".join(versions)


def _tests(tables: Tables) -> Answer:
    number = sum(bool(row["versus"]) for rows in tables.values() for row in rows.values())
    detail = (
        f"{number} comparisons of RMSE by patient: Wilcoxon's p adjusted by Holm; BCa bootstrap intervals"
    )
    return "Uncertainty and multiplicity", True, detail
