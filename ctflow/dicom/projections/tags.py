"""The private attributes of DICOM-CT-PD, an open format of CT projections."""

from __future__ import annotations

import struct
from typing import Any

from pydicom.datadict import add_private_dict_entries
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from ctflow.errors import UnreadableError

CREATOR = "DICOM-CT-PD"
"""Private creator of the sets that ctflow writes; sets with any other creator are read as well."""

# Chen et al., Med. Phys. 42 (2015); Moen et al., Med. Phys. 48 (2021), table IV.
TAGS = {
    "DetectorElementTransverseSpacing": (0x7029, 0x1002, "FL"),  # mm, at the detector
    "DetectorElementAxialSpacing": (0x7029, 0x1006, "FL"),  # mm, at the detector
    "DetectorShape": (0x7029, 0x100B, "CS"),
    "NumberofDetectorRows": (0x7029, 0x1010, "US"),
    "NumberofDetectorColumns": (0x7029, 0x1011, "US"),
    "DetectorFocalCenterAngularPosition": (0x7031, 0x1001, "FL"),  # rad
    "DetectorFocalCenterAxialPosition": (0x7031, 0x1002, "FL"),  # mm
    "DetectorFocalCenterRadialDistance": (0x7031, 0x1003, "FL"),  # mm
    "ConstantRadialDistance": (0x7031, 0x1031, "FL"),  # mm
    "DetectorCentralElement": (0x7031, 0x1033, "FL"),  # column, row; counted from 1
    "SourceAngularPositionShift": (0x7033, 0x100B, "FL"),  # rad
    "SourceAxialPositionShift": (0x7033, 0x100C, "FL"),  # mm
    "SourceRadialDistanceShift": (0x7033, 0x100D, "FL"),  # mm
    "FlyingFocalSpotMode": (0x7033, 0x100E, "CS"),
    "NumberofSourceAngularSteps": (0x7033, 0x1013, "US"),
    "NumberofSpectra": (0x7033, 0x1061, "US"),
    "SpectrumIndex": (0x7033, 0x1063, "US"),
    "PhotonStatistics": (0x7033, 0x1065, "FL"),  # incident photons, one for each column
    "TimeStamp": (0x7033, 0x1067, "FL"),
    "TypeofProjectionData": (0x7037, 0x1009, "CS"),
    "TypeofProjectionGeometry": (0x7037, 0x100A, "CS"),
    "BeamHardeningCorrectionFlag": (0x7039, 0x1003, "CS"),
    "GainCorrectionFlag": (0x7039, 0x1004, "CS"),
    "DarkFieldCorrectionFlag": (0x7039, 0x1005, "CS"),
    "FlatFieldCorrectionFlag": (0x7039, 0x1006, "CS"),
    "BadPixelCorrectionFlag": (0x7039, 0x1007, "CS"),
    "ScatterCorrectionFlag": (0x7039, 0x1008, "CS"),
    "LogFlag": (0x7039, 0x1009, "CS"),
    "WaterAttenuationCoefficient": (0x7041, 0x1001, "DS"),  # 1/mm
}

add_private_dict_entries(
    CREATOR,
    {(group << 16) + (element & 0xFF): (vr, "1-n", name, "") for name, (group, element, vr) in TAGS.items()},
)

_CODES = {"FL": "f", "US": "H"}


def value(header: Dataset, name: str) -> Any:
    """A private attribute as a number, a text, or a list of numbers; None where it is absent.

    With implicit VR and an unknown creator the file does not state the type: the bytes are then read as the
    format prescribes, little endian.

    Raises:
        UnreadableError: the bytes are not values of that type.
    """
    group, element, vr = TAGS[name]
    if (group, element) not in header:
        return None
    found = header[group, element].value
    try:
        values = _unpacked(found, vr) if isinstance(found, bytes) else found
        if vr == "CS":
            return str(values).strip()
        numbers = [float(v) for v in values] if isinstance(values, list | MultiValue) else [float(values)]
    except (struct.error, TypeError, ValueError):
        raise UnreadableError(
            f"attribute {name} ({group:04X},{element:04X}) must hold {vr} values and does not; "
            "export the projections again"
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def _unpacked(raw: bytes, vr: str) -> Any:
    if vr not in _CODES:
        text = raw.decode("ascii", "replace").strip(" \0")
        return text if vr == "CS" else text.split("\\")
    size = struct.calcsize(_CODES[vr])
    return list(struct.unpack(f"<{len(raw) // size}{_CODES[vr]}", raw))


def put(header: Dataset, name: str, content: Any) -> None:
    """Write a private attribute; its block is reserved for `CREATOR`."""
    group, element, vr = TAGS[name]
    header.private_block(group, CREATOR, create=True).add_new(element & 0xFF, vr, content)
