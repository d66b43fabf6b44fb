"""De-identification by construction: a new header holds only the attributes listed here."""

from __future__ import annotations

from pydicom.dataset import Dataset

from ctflow.dicom.writing.codes import MEANINGS, code

# How the X-rays were taken, in numbers: PS3.15 table E.1-1 asks for no action on any of these. Free text,
# dates, names, identifying numbers and the scanner are not among them.
# fmt: off
KEPT = (
    "PatientPosition", "KVP", "SliceThickness", "DataCollectionDiameter", "ReconstructionDiameter",
    "DistanceSourceToDetector", "DistanceSourceToPatient", "TableHeight", "RotationDirection",
    "ExposureTime", "XRayTubeCurrent", "Exposure", "GeneratorPower", "FocalSpots", "RevolutionTime",
    "SingleCollimationWidth", "TotalCollimationWidth", "TableSpeed", "TableFeedPerRotation",
    "SpiralPitchFactor", "CTDIvol", "DataCollectionCenterPatient", "ReconstructionTargetCenterPatient",
)
# fmt: on

# The basic profile and, as all words of a written header are the program's own, cleaned descriptors.
_PROFILES = ("113100", "113105")
_DATES = ("SeriesDate", "SeriesTime", "ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime")


def pseudonym(study_uid: str) -> str:
    """Name and ID for the patient of an examination without one, a function of its UID alone."""
    return f"CTFLOW-{int(study_uid.rpartition('.')[2]) % 16**8:08x}"


def mark_deidentified(header: Dataset) -> None:
    """Remove dates and state the profile by which the patient's identity was removed (PS3.15 E.2)."""
    for name in _DATES:
        if name in header:
            delattr(header, name)
    header.StudyDate = header.StudyTime = None
    header.PatientID = pseudonym(header.StudyInstanceUID)
    header.PatientName, header.StudyID = header.PatientID.replace("-", "^"), "1"
    header.PatientIdentityRemoved = "YES"
    header.LongitudinalTemporalInformationModified = "REMOVED"
    header.DeidentificationMethod = "ctflow basic: new header by allow-list, PS3.15 annex E"
    name = "DeidentificationMethodCodeSequence"
    setattr(header, name, [code(value, MEANINGS[name][value]) for value in _PROFILES])
