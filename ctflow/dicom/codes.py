"""Coded entries (PS3.16) of derived images."""

from __future__ import annotations

from pydicom.dataset import Dataset


def code(value: str, meaning: str, scheme: str = "DCM") -> Dataset:
    """One item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
