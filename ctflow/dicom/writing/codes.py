"""Coded entries (PS3.16) for derived images."""

from __future__ import annotations

from pydicom.dataset import Dataset

# CID 7050 and CID 4052; all of the scheme DCM.
MEANINGS = {
    "DeidentificationMethodCodeSequence": {
        "113100": "Basic Application Confidentiality Profile",
        "113101": "Clean Pixel Data Option",
        "113102": "Clean Recognizable Visual Features Option",
        "113103": "Clean Graphics Option",
        "113104": "Clean Structured Content Option",
        "113105": "Clean Descriptors Option",
        "113106": "Retain Longitudinal Temporal Information Full Dates Option",
        "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
        "113108": "Retain Patient Characteristics Option",
        "113109": "Retain Device Identity Option",
        "113110": "Retain UIDs Option",
        "113111": "Retain Safe Private Option",
        "113112": "Retain Institution Identity Option",
    },
    "CTDIPhantomTypeCodeSequence": {
        "113682": "ACR Accreditation Phantom - CT",
        "113690": "IEC Head Dosimetry Phantom",
        "113691": "IEC Body Dosimetry Phantom",
        "113692": "NEMA XR21-2000 Phantom",
    },
}
"""Codes that may be copied from a source, with the standard's words, by attribute."""


def code(value: str, meaning: str, scheme: str = "DCM") -> Dataset:
    """Make one item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
