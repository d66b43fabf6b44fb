"""The split of a study: every patient, with all their cases, is on one side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ctflow.errors import StudyError
from ctflow.experiments.study import SPLITS, known_key
from ctflow.tables import value_of


def sides(split: Mapping[str, object], cases: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """The side of every patient.

    Args:
        split: lists of patients (or of case names) by side, or shares of the patients and a seed; where it is
            empty, a case without a side of its own is a test case.
        cases: name, patient and own side (or "") of every case.

    Returns:
        "train", "validation" or "test" by patient.

    Raises:
        StudyError: a patient is on two sides, or on none, or a list names nobody.
    """
    patients = {patient: patient for _, patient, _ in cases} | {name: patient for name, patient, _ in cases}
    given: dict[str, set[str]] = {patient: set() for _, patient, _ in cases}
    for name, patient, side in cases:
        if side:
            known_key(side, SPLITS, f"case '{name}' is on an unknown side '{side}'")
            given[patient].add(side)
    for side in SPLITS:
        for number, entry in enumerate(_listed(split, side), start=1):
            if str(entry) not in patients:  # not quoted: it may be a patient's ID
                raise StudyError(f"entry {number} of split.{side} is no patient and no case; correct it")
            given[patients[str(entry)]].add(side)
    for name, patient, _ in cases:
        if len(given[patient]) > 1:
            raise StudyError(
                f"the patient of case '{name}' is in {' and in '.join(sorted(given[patient]))}; a patient, "
                "with all cases, must be on one side of the split: correct the lists"
            )
    fixed = {patient: min(found) for patient, found in given.items() if found}
    free = [patient for patient in given if patient not in fixed]
    return fixed | _drawn(split, free)


def _drawn(split: Mapping[str, object], patients: list[str]) -> dict[str, str]:
    if not any(side in split for side in SPLITS):
        return dict.fromkeys(patients, "test")
    given = [split.get(side) for side in SPLITS]
    shares = [float(side) if isinstance(side, int | float) else 0.0 for side in given]
    if not any(shares):
        if patients:
            raise StudyError(
                f"{len(patients)} patients are on no side of the split; put every patient in a list"
            )
        return {}
    order = np.random.default_rng(value_of(split, "seed", 0)).permutation(len(patients))
    ends = np.rint(np.cumsum(shares) * len(patients)).astype(int)
    return {patients[k]: SPLITS[int(np.searchsorted(ends, place, "right"))] for place, k in enumerate(order)}


def _listed(split: Mapping[str, object], side: str) -> list[object]:
    listed = split.get(side)
    return listed if isinstance(listed, list) else []
