"""Copying header values that the standard allows; a derived image must not inherit a source's mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds, validate_value

# Enumerated values (PS3.3 C.7.1.1, C.7.3.1.1.2, C.8.2.1, C.12.1.1.7): anything else is an error there.
_ALLOWED = {
    "PatientSex": {"M", "F", "O"},
    "PatientPosition": {
        "HFS",
        "HFP",
        "HFDL",
        "HFDR",
        "FFS",
        "FFP",
        "FFDL",
        "FFDR",
        "LFS",
        "LFP",
        "RFS",
        "RFP",
    },
    "RotationDirection": {"CW", "CC"},
    "PatientIdentityRemoved": {"YES", "NO"},
    "LongitudinalTemporalInformationModified": {"UNMODIFIED", "MODIFIED", "REMOVED"},
}
_CODE = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")


def decimals(values: Iterable[float]) -> list[str]:
    """Numbers as DICOM decimal strings of at most 16 characters; a nanometre is noise and rounded away.

    pydicom writes longer ones without a word, and validators reject them.
    """
    return [format_number_as_ds(round(float(value), 9) + 0.0) for value in values]


def take(header: Dataset, source: Dataset, names: Iterable[str]) -> None:
    """Copy attributes that have a value, and one that the standard allows, into `header`."""
    for name in names:
        try:
            value = _lawful(source[name]) if source.get(name) not in (None, "", []) else None
            if value not in (None, "", []):
                setattr(header, name, value)
        except (ValueError, TypeError, OverflowError):
            continue  # pydicom converts a value when it is asked for, and refuses "120 kV" for a number


def _lawful(element: DataElement) -> Any:
    """The value, as it may be written; None or a ValueError where it may not."""
    if element.VR == "SQ":
        return [deepcopy(item) for item in element.value if all(item.get(part) for part in _CODE)]
    values = list(element.value) if element.VM > 1 else [element.value]
    if element.VR == "DS":
        numbers = decimals([float(value) for value in values])
        return numbers if len(numbers) > 1 else numbers[0]
    texts = [str(value).strip() for value in values]
    allowed = _ALLOWED.get(element.keyword)
    if any(re.search(r"[\x00-\x1f\x7f]", text) or (allowed and text not in allowed) for text in texts):
        return None
    for text in texts:
        validate_value(element.VR, text, config.RAISE)
    return deepcopy(element.value)
