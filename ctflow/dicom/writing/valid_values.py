"""Header values that the standard allows, so that a derived image does not inherit a source's mistakes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from datetime import datetime
from typing import Any

from pydicom import config
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import format_number_as_ds, validate_value

from ctflow.dicom.writing.codes import MEANINGS, code

# Enumerated values and defined terms (PS3.3 C.7.1.1, C.7.3.1.1.2, C.8.2.1, C.12.1.1.7, C.7.6.1.1.5.1):
# anything else is an error there, or might be somebody's name.
# fmt: off
_ALLOWED = {
    "PatientSex": {"M", "F", "O"},
    "PatientPosition": {
        "HFS", "HFP", "HFDL", "HFDR", "FFS", "FFP", "FFDL", "FFDR", "LFS", "LFP", "RFS", "RFP",
    },
    "RotationDirection": {"CW", "CC"},
    "PatientIdentityRemoved": {"YES", "NO"},
    "LongitudinalTemporalInformationModified": {"UNMODIFIED", "MODIFIED", "REMOVED"},
    "BurnedInAnnotation": {"YES", "NO"},
    "LossyImageCompressionMethod": {
        "ISO_10918_1", "ISO_14495_1", "ISO_15444_1", "ISO_15444_15", "ISO_18181_1", "ISO_13818_2",
        "ISO_14496_10", "ISO_23008_2",
    },
}
# fmt: on
_UID = r"[0-2](\.(0|[1-9]\d*))+"  # PS3.5 9.1; the first number is that of ISO, ITU-T or both
_LONGEST_UID = 64
_CONTROL = r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]"
_WHOLE = range(-(2**31), 2**31)  # IS of PS3.5 6.2


def decimals(values: Iterable[float]) -> list[str]:
    """Format numbers as DICOM decimal strings of at most 16 characters; nanometres are rounded away as noise.

    pydicom writes longer ones silently, and validators reject them.
    """
    return [format_number_as_ds(round(float(value), 9) + 0.0) for value in values]


def is_valid_uid(uid: str) -> bool:
    """Whether a UID has the form of PS3.5 9.1: numbers without leading zeros, 64 characters at most."""
    return len(uid) <= _LONGEST_UID and re.fullmatch(_UID, uid, re.ASCII) is not None


def valid_uid(uid: str) -> UID:
    """Return the UID itself, or a new one where the standard forbids it.

    The new one is derived from the old one alone, so that references hold between series and between runs.
    """
    return UID(uid) if is_valid_uid(uid) else generate_uid(entropy_srcs=["in place of", uid])


def as_text(text: str) -> str:
    """Make a text valid as one value of LO or ST: control characters and backslashes become underscores."""
    return re.sub(rf"{_CONTROL}|\\", "_", text)


def copy_valid(header: Dataset, source: Dataset, names: Iterable[str]) -> None:
    """Copy attributes into `header` whose value the standard allows."""
    for name in names:
        try:
            value = _valid(source[name]) if source.get(name) not in (None, "", []) else None
            if value not in (None, "", []):
                setattr(header, name, value)
        except (ValueError, TypeError, OverflowError, AttributeError):
            continue  # pydicom converts a value when it is asked for, and refuses "120 kV" for a number


def _valid(element: DataElement) -> Any:
    """The value as it may be written; None or a ValueError where it may not be.

    The type of the attribute is taken from the dictionary, not from the source.
    """
    form = dictionary_VR(element.tag)
    if (form == "SQ") != (element.VR == "SQ"):
        return None
    if form == "SQ":
        return [found for item in element.value if (found := _coded(item, element.keyword)) is not None]
    values = list(element.value) if element.VM > 1 else [element.value]
    if not _so_many(len(values), dictionary_VM(element.tag)):
        return None
    if form in ("DS", "FD", "FL"):
        return _numbers(values, form)
    texts = [str(value).strip() for value in values]
    if not all(_is_valid(text, form, element.keyword) for text in texts):
        return None
    return deepcopy(element.value)


def _coded(item: Dataset, sequence: str) -> Dataset | None:
    """Rebuild an item of a code sequence: its code if it is known, with the meaning given by the standard."""
    known = MEANINGS.get(sequence, {})
    value = str(item.get("CodeValue"))
    ours = item.get("CodingSchemeDesignator") == "DCM" and value in known
    return code(value, known[value]) if ours else None


def _so_many(count: int, multiplicity: str) -> bool:
    """Whether a multiplicity such as "1", "3", "1-2" or "2-2n" allows `count` values."""
    low, _, high = multiplicity.partition("-")
    if "n" not in multiplicity:
        return int(low) <= count <= int(high or low)
    return count >= int(low) and count % int(high.rstrip("n") or 1) == 0


def _numbers(values: Sequence[Any], form: str) -> Any:
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        return None
    kept = decimals(numbers) if form == "DS" else numbers
    return kept if len(kept) > 1 else kept[0]


def _is_valid(text: str, form: str, name: str) -> bool:
    """Whether a text may be the value of an attribute; a ValueError also means that it may not."""
    if re.search(_CONTROL, text) or text not in _ALLOWED.get(name, {text}):
        return False
    if form == "DA":
        datetime.strptime(text, "%Y%m%d")  # the 31st of February
    if form == "PN" and any(group.count("^") > 4 for group in text.split("=")):
        return False
    if form == "UI" and not is_valid_uid(text):
        return False
    if form == "IS" and int(text) not in _WHOLE:
        return False
    validate_value(form, int(text) if form in ("US", "SS", "UL", "SL") else text, config.RAISE)
    return True
