"""The header of a derived CT slice: copied by whitelist, so that nothing private slips through."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from datetime import datetime
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat, format_number_as_ds

from ctflow import __version__

# Present even when the source has none: type 2 in PS3.3 A.3.3, and dciodvfy reports their absence.
# fmt: off
_TYPE_2 = [
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber", "PositionReferenceIndicator", "KVP",
    "AcquisitionNumber", "PatientPosition",
]
# fmt: on

# Patient, study and how the X-rays were taken; nothing about the scanner's own reconstruction (kernel).
# fmt: off
_COPIED = [
    "IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved",
    "DeidentificationMethod", "DeidentificationMethodCodeSequence", "StudyDescription", "BodyPartExamined",
    "ProtocolName", "ScanOptions", "AcquisitionDate", "AcquisitionTime", "DataCollectionDiameter",
    "ReconstructionDiameter", "DistanceSourceToDetector", "DistanceSourceToPatient", "TableHeight",
    "RotationDirection", "ExposureTime", "XRayTubeCurrent", "Exposure", "FilterType", "GeneratorPower",
    "FocalSpots", "RevolutionTime", "SingleCollimationWidth", "TotalCollimationWidth", "TableSpeed",
    "TableFeedPerRotation", "SpiralPitchFactor", "CTDIvol", "CTDIPhantomTypeCodeSequence",
    "DataCollectionCenterPatient", "ReconstructionTargetCenterPatient", "ContrastBolusAgent",
    "SliceThickness",
]
# fmt: on

# Body parts without a side (PS3.16 annex L, those that dciodvfy knows): Laterality must be absent for them
# and present, if empty, for every other.
# fmt: off
_UNPAIRED = {
    "ABDOMEN", "ABDOMENPELVIS", "BLADDER", "BRAIN", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "COLON",
    "CSPINE", "HEAD", "HEADNECK", "HEART", "JAW", "LIVER", "LSPINE", "LSSPINE", "MEDIASTINUM", "NECK",
    "NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV", "PANCREAS", "PELVIS", "PROSTATE", "SKULL", "SPINE",
    "SSPINE", "STOMACH", "TLSPINE", "TSPINE", "UTERUS", "WHOLEBODY",
}
# fmt: on

_WINDOWS = (("SOFT TISSUE", 40, 400), ("LUNG", -600, 1500), ("BONE", 300, 1500))
PURPOSE = "research use; not for diagnosis"


def decimals(values: Iterable[float]) -> list[str]:
    """Numbers as DICOM decimal strings of at most 16 characters; a nanometre is noise and rounded away.

    pydicom writes longer ones without a word, and validators reject them.
    """
    return [format_number_as_ds(round(float(value), 9) + 0.0) for value in values]


def copied(source: Dataset) -> Dataset:
    """What a derived slice keeps of its source slice."""
    header = Dataset()
    for name in (*_TYPE_2, *_COPIED):
        if source.get(name) in (None, "", []):
            continue
        header[name] = deepcopy(source[name])
        if header[name].VR == "DS":
            value = header[name].value
            numbers = (
                [value] if isinstance(value, float | str | DSfloat) or not np.iterable(value) else list(value)
            )
            setattr(header, name, decimals([float(number) for number in numbers]))
    for name in _TYPE_2:
        if name not in header:
            setattr(header, name, None)
    if header.get("BodyPartExamined") not in _UNPAIRED:
        header.Laterality = source.get("Laterality", "")
    return header


def describe(header: Dataset, description: str, derivation: str, now: datetime) -> None:
    """Say what the series is, who made it and when; the same for every slice."""
    header.SpecificCharacterSet = "ISO_IR 192"
    header.SOPClassUID = CTImageStorage
    header.Modality = "CT"
    header.SeriesDescription = description
    header.DerivationDescription = derivation
    header.SeriesDate = header.ContentDate = now.strftime("%Y%m%d")
    header.SeriesTime = header.ContentTime = now.strftime("%H%M%S")
    header.Manufacturer = header.ManufacturerModelName = "ctflow"
    header.SoftwareVersions = __version__
    header.BurnedInAnnotation = "NO"
    header.WindowCenter = [str(centre) for _, centre, _ in _WINDOWS]
    header.WindowWidth = [str(width) for _, _, width in _WINDOWS]
    header.WindowCenterWidthExplanation = [name for name, _, _ in _WINDOWS]


def equipment(source: Dataset | None) -> list[Dataset]:
    """ContributingEquipmentSequence: the scanner that measured and ctflow that computed (PS3.16 CID 7005)."""
    items = []
    if source is not None and source.get("Manufacturer"):
        scanner = Dataset()
        for name in ("Manufacturer", "ManufacturerModelName", "SoftwareVersions"):
            if source.get(name):
                setattr(scanner, name, source.get(name))
        scanner.PurposeOfReferenceCodeSequence = [_code("109101", "Acquisition Equipment")]
        items.append(scanner)
    computer = Dataset()
    computer.Manufacturer = computer.ManufacturerModelName = "ctflow"
    computer.SoftwareVersions = __version__
    computer.ContributionDescription = f"CT reconstruction; {PURPOSE}"
    computer.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    return [*items, computer]


def note_lossy(header: Dataset, source: Dataset) -> None:
    """Lossy compression is not undone by decoding: say so wherever the pixels go."""
    header.LossyImageCompression = "00"
    if source.get("LossyImageCompression") == "01":
        header.LossyImageCompression = "01"
        for name in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if name in source:
                header[name] = deepcopy(source[name])


def reference(source: Dataset) -> Dataset:
    """SourceImageSequence item: the slice that a derived slice was computed from."""
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    item.SpatialLocationsPreserved = "YES"
    item.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
    return item


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def place(header: Dataset, affine: Any, k: int) -> None:
    """Position, orientation and pixel spacing of slice k of a grid with this affine, mm."""
    matrix = np.array(affine, dtype=np.float64)
    down, right = matrix[:3, 1], matrix[:3, 2]
    dy, dx = np.linalg.norm(down), np.linalg.norm(right)
    header.ImagePositionPatient = decimals(matrix[:3, 3] + k * matrix[:3, 0])
    header.ImageOrientationPatient = decimals([*right / dx, *down / dy])
    header.PixelSpacing = decimals([float(dy), float(dx)])
    if not header.get("SliceThickness"):
        header.SliceThickness = decimals([float(np.linalg.norm(matrix[:3, 0]))])[0]


def pixels(header: Dataset, stored: np.ndarray[Any, np.dtype[np.int16]]) -> None:
    """Signed 16-bit CT numbers in HU, slope 1, intercept 0; stored (rows, columns)."""
    header.Rows, header.Columns = stored.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.RescaleSlope, header.RescaleIntercept, header.RescaleType = "1", "0", "HU"
    header.PixelData = stored.astype("<i2").tobytes()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
