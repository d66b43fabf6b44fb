"""The header of a derived CT slice, copied by allow-list so that nothing private slips through."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from ctflow.dicom.writing.codes import code
from ctflow.dicom.writing.content import Window
from ctflow.dicom.writing.deidentify import KEPT
from ctflow.dicom.writing.valid_values import copy_valid, decimals, valid_uid
from ctflow.system.version import full_version

# Present even when the source has none: type 2 in PS3.3 A.3.3, and dciodvfy reports their absence.
# fmt: off
_TYPE_2 = [
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber", "PositionReferenceIndicator", "KVP",
    "AcquisitionNumber", "PatientPosition",
]
# fmt: on

# Patient, study and series: the same in every slice, taken from the first.
# fmt: off
_OF_THE_SERIES = [
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber", "PositionReferenceIndicator",
    "IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved",
    "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified", "StudyDescription", "BodyPartExamined", "ProtocolName",
    "PatientPosition",
]

# How the X-rays of a slice were taken; nothing about the scanner's own reconstruction (kernel).
_OF_THE_SLICE = [
    "KVP", "AcquisitionNumber", "ScanOptions", "AcquisitionDate", "AcquisitionTime",
    "DataCollectionDiameter", "ReconstructionDiameter", "DistanceSourceToDetector",
    "DistanceSourceToPatient", "TableHeight", "RotationDirection", "ExposureTime", "XRayTubeCurrent",
    "Exposure", "FilterType", "GeneratorPower", "FocalSpots", "RevolutionTime", "SingleCollimationWidth",
    "TotalCollimationWidth", "TableSpeed", "TableFeedPerRotation", "SpiralPitchFactor", "CTDIvol",
    "CTDIPhantomTypeCodeSequence", "DataCollectionCenterPatient", "ReconstructionTargetCenterPatient",
    "ContrastBolusAgent", "SliceThickness",
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

PURPOSE = "research use; not for diagnosis"


def copied_header(source: Dataset, first: Dataset) -> Dataset:
    """Header that a derived slice inherits from its source slice and the first slice of the series."""
    header = Dataset()
    copy_valid(header, first, _OF_THE_SERIES)
    copy_valid(header, source, _OF_THE_SLICE)
    add_required(header, str(first.get("Laterality") or ""))
    coded = header.get("DeidentificationMethodCodeSequence")
    if header.get("PatientIdentityRemoved") == "YES" and not (header.get("DeidentificationMethod") or coded):
        header.DeidentificationMethod = "not stated by the source series"  # type 1C, empty in some sources
    return header


def deidentified_header(source: Dataset) -> Dataset:
    """Header that a de-identified slice inherits from its source slice."""
    header = Dataset()
    copy_valid(header, source, KEPT)
    if source.get("BodyPartExamined") in _UNPAIRED:  # a word of the standard's, no free text
        header.BodyPartExamined = source.BodyPartExamined
    add_required(header)
    return header


def add_required(header: Dataset, laterality: str = "") -> None:
    """Add required attributes that are missing, without a value."""
    for name in _TYPE_2:
        if name not in header:
            setattr(header, name, None)
    if header.get("BodyPartExamined") not in _UNPAIRED:
        header.Laterality = laterality if laterality in ("L", "R") else ""


def describe(
    header: Dataset, description: str, derivation: str, windows: tuple[Window, ...], now: datetime
) -> None:
    """State what the series is and what made it and when, the same for every slice."""
    header.SpecificCharacterSet = "ISO_IR 192"
    header.SOPClassUID = CTImageStorage
    header.Modality = "CT"
    header.SeriesDescription = description
    header.DerivationDescription = derivation
    header.SeriesDate = header.ContentDate = now.strftime("%Y%m%d")
    header.SeriesTime = header.ContentTime = now.strftime("%H%M%S")
    header.Manufacturer = header.ManufacturerModelName = "ctflow"
    header.SoftwareVersions = full_version()
    header.WindowCenter = [str(centre) for _, centre, _ in windows]
    header.WindowWidth = [str(width) for _, _, width in windows]
    header.WindowCenterWidthExplanation = [name for name, _, _ in windows]


def equipment(source: Dataset | None) -> list[Dataset]:
    """ContributingEquipmentSequence: the scanner that measured, the software that computed (CID 7005)."""
    items = []
    if source is not None and source.get("Manufacturer"):
        scanner = Dataset()
        scanner.Manufacturer = ""
        copy_valid(scanner, source, ("Manufacturer", "ManufacturerModelName", "SoftwareVersions"))
        scanner.PurposeOfReferenceCodeSequence = [code("109101", "Acquisition Equipment")]
        items.append(scanner)
    computer = Dataset()
    computer.Manufacturer = computer.ManufacturerModelName = "ctflow"
    computer.SoftwareVersions = full_version()
    computer.ContributionDescription = f"CT reconstruction; {PURPOSE}"
    computer.PurposeOfReferenceCodeSequence = [code("109102", "Processing Equipment")]
    return [*items, computer]


def note_pixels(header: Dataset, source: Dataset) -> None:
    """Carry over what is known about the source's pixels and also holds for pixels computed from them.

    Decoding does not undo lossy compression, and text burned into an image is reconstructed with it.
    """
    copy_valid(header, source, ("BurnedInAnnotation",))
    header.LossyImageCompression = "00"
    if source.get("LossyImageCompression") == "01":
        header.LossyImageCompression = "01"
        copy_valid(header, source, ("LossyImageCompressionRatio", "LossyImageCompressionMethod"))


def source_reference(source: Dataset, same_place: bool) -> Dataset:
    """SourceImageSequence item: the slice that a derived slice was computed from."""
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = valid_uid(str(source.SOPInstanceUID))
    if "ReferencedFrameNumber" in source:  # the slice was a frame of an enhanced image
        item.ReferencedFrameNumber = source.ReferencedFrameNumber
    item.SpatialLocationsPreserved = "YES" if same_place else "NO"
    item.PurposeOfReferenceCodeSequence = [code("121322", "Source image for image processing operation")]
    return item


def set_position(header: Dataset, affine: Any, k: int) -> None:
    """Set position, orientation and pixel spacing of slice k of a grid with this affine, mm."""
    matrix = np.array(affine, dtype=np.float64)
    down, right = matrix[:3, 1], matrix[:3, 2]
    dy, dx = np.linalg.norm(down), np.linalg.norm(right)
    header.ImagePositionPatient = decimals(matrix[:3, 3] + k * matrix[:3, 0])
    header.ImageOrientationPatient = decimals([*right / dx, *down / dy])
    header.PixelSpacing = decimals([float(dy), float(dx)])
    if not header.get("SliceThickness"):
        header.SliceThickness = decimals([float(np.linalg.norm(matrix[:3, 0]))])[0]


def set_pixels(header: Dataset, stored: np.ndarray[Any, np.dtype[np.int16]], hu_scale: float) -> None:
    """Set the pixels: signed 16-bit numbers, HU = hu_scale · stored; stored (rows, columns)."""
    header.Rows, header.Columns = stored.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.RescaleSlope = decimals([hu_scale])[0]
    header.RescaleIntercept, header.RescaleType = "0", "HU"
    header.PixelData = stored.astype("<i2").tobytes()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
