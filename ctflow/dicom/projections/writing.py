"""Write line integrals as a synthetic DICOM-CT-PD set, as a scanner would export them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from ctflow.dicom.projections.tags import put
from ctflow.dicom.reading.files import PathLike
from ctflow.dicom.writing.valid_values import decimals
from ctflow.errors import UsageError
from ctflow.geometry import FlyingSpot
from ctflow.scan import Scan
from ctflow.system.files import check_target, whole_folder
from ctflow.units import MU_WATER

_LARGEST = np.iinfo(np.uint16).max
_FLAGS = ("BeamHardening", "Gain", "DarkField", "FlatField", "BadPixel", "Scatter")


def write_projections(
    scan: Scan, path: PathLike, *, implicit: bool = False, columns_first: bool = True, quantum: float = 1.5e-4
) -> Path:
    """Write a scan as a synthetic DICOM-CT-PD set, one file for each view.

    Args:
        scan: line integrals (rows, views, bins), dimensionless, with the tables of its `spot`.
        path: folder to make; it appears once it is complete.
        implicit: write Implicit VR, which leaves private attributes without a type.
        columns_first: store detector columns as the rows of an image, as scanners' sets do.
        quantum: RescaleSlope; line integrals are rounded to multiples of it.

    Returns:
        The folder.

    Raises:
        OutputError: the folder exists already, or cannot be written.
        UsageError: the scan has no tables, or its values exceed 16 bits at this quantum.

    Examples:
        >>> import ctflow as ct
        >>> from ctflow.datasets.raw_phantom import measure_phantom, raw_phantom, scanner
        >>> scan = measure_phantom(raw_phantom(), scanner(views=24, turns=1.0, bins=64, rows=4))
        >>> folder = ct.write_projections(scan, "projections")
        >>> len(list(folder.iterdir())), scan.y.shape  # a file for each view; (rows, views, bins)
        (24, torch.Size([4, 24, 64]))
    """
    target = Path(path)
    spot = _checked(scan, target, quantum)
    low = float(scan.y.min())
    if float(scan.y.max()) - low > _LARGEST * quantum:
        raise UsageError(f"the data span more than 65,535 quanta of {quantum:g}; give a larger quantum")
    study, series = generate_uid(), generate_uid()
    with whole_folder(target) as folder:
        for view in range(scan.y.shape[1]):
            stored = np.rint((scan.y[:, view].numpy() - low) / quantum).astype(np.uint16)
            header = _view(scan, spot, view)
            header.StudyInstanceUID, header.SeriesInstanceUID = study, series
            header.RescaleSlope, header.RescaleIntercept = decimals([quantum, low])
            _pixels(header, stored.T if columns_first else stored, implicit)
            header.save_as(folder / f"view{view + 1:06d}.dcm", enforce_file_format=True)
    return target


def _checked(scan: Scan, target: Path, quantum: float) -> FlyingSpot:
    check_target(target)
    if scan.spot is None or not quantum > 0:
        raise UsageError("expected a scan with tables of its focal spot and a positive quantum; give both")
    return scan.spot


def _view(scan: Scan, spot: FlyingSpot, view: int) -> Dataset:
    """Header of one view of a phantom's examination."""
    header = Dataset()
    header.PatientName, header.PatientID = "CTFLOW^PHANTOM", "PHANTOM"
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid()
    header.Modality, header.InstanceNumber = "CT", view + 1
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SeriesDescription = "Synthetic projections"
    for name, content in _geometry(spot, view).items():
        put(header, name, content)
    photons = scan.photons
    if photons is not None:
        put(header, "PhotonStatistics", photons[view % len(photons)].tolist())
    for flag in _FLAGS:
        put(header, f"{flag}CorrectionFlag", "YES")
    put(header, "LogFlag", "YES")
    put(header, "WaterAttenuationCoefficient", decimals([scan.mu_water or MU_WATER])[0])
    return header


def _geometry(spot: FlyingSpot, view: int) -> dict[str, object]:
    turns = np.ptp(spot.phi) / (2 * np.pi) * len(spot.phi) / max(1, len(spot.phi) - 1)
    return {
        "DetectorElementTransverseSpacing": spot.pitch,
        "DetectorElementAxialSpacing": spot.row_pitch,
        "DetectorShape": "CYLINDRICAL",
        "NumberofDetectorRows": spot.rows,
        "NumberofDetectorColumns": spot.bins,
        "DetectorFocalCenterAngularPosition": float(spot.phi[view]) % (2 * np.pi),
        "DetectorFocalCenterAxialPosition": float(spot.z[view]),
        "DetectorFocalCenterRadialDistance": float(spot.rho[view]),
        "ConstantRadialDistance": spot.source_detector,
        "DetectorCentralElement": [spot.central[0] + 1, spot.central[1] + 1],
        "SourceAngularPositionShift": float(spot.shift_phi[view]),
        "SourceAxialPositionShift": float(spot.shift_z[view]),
        "SourceRadialDistanceShift": float(spot.shift_rho[view]),
        "FlyingFocalSpotMode": _mode(spot),
        "NumberofSourceAngularSteps": round(len(spot.phi) / turns) if turns else 1,
        "NumberofSpectra": 1,
        "SpectrumIndex": 1,
        "TimeStamp": float(view),
        "TypeofProjectionData": "HELICAL" if np.ptp(spot.z) > 0 else "AXIAL",
        "TypeofProjectionGeometry": "FANBEAM",
    }


def _mode(spot: FlyingSpot) -> str:
    axes = [name for name, table in (("XY", spot.shift_phi), ("Z", spot.shift_z)) if np.ptp(table) > 0]
    return "FFS" + ("".join(axes) or "NONE")


def _pixels(header: Dataset, stored: NDArray[np.uint16], implicit: bool) -> None:
    header.Rows, header.Columns = stored.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.PixelData = np.ascontiguousarray(stored).astype("<u2").tobytes()
    header["PixelData"].VR = "OW"
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
