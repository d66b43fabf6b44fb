"""Small DICOM series for tests, and ways to spoil them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
import torch
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from ctflow.dicom import write_series
from ctflow.dicom.reading.files import quiet
from ctflow.geometry import VolumeGeometry
from ctflow.volume import Volume

CANARY = "ZANZIBAR"


def cylinder(slices: int = 6, size: int = 32) -> Volume:
    """A water cylinder with a denser rod that climbs from slice to slice, HU."""
    geometry = VolumeGeometry((slices, size, size), (2.5, 1.25, 1.25))
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    radius = torch.hypot(x - (size - 1) / 2, y - (size - 1) / 2)
    hu = torch.where(radius < size / 3, 0.0, -1000.0).repeat(slices, 1, 1)
    for k in range(slices):
        hu[k, 10 + k, 14:18] = 500.0 + k
    return Volume(hu, geometry, "HU")


def toy_series(folder: Path, slices: int = 6, seed: str = "toy") -> list[Path]:
    """Write the cylinder as a series; the same seed gives the same UIDs."""
    return list(write_series(cylinder(slices), folder, like=None, description="toy", seed_uid=seed))


def edit(file: Path, change: Callable[[pydicom.Dataset], object]) -> None:
    """Change the header of one file in place."""
    with quiet():  # pydicom warns of the values that tests plant
        dataset = pydicom.dcmread(file)
        change(dataset)
        dataset.save_as(file)


def setting(**values: object) -> Callable[[pydicom.Dataset], None]:
    """A change that sets attributes by keyword."""

    def change(dataset: pydicom.Dataset) -> None:
        for name, value in values.items():
            setattr(dataset, name, value)

    return change


def plant_canary(folder: Path, files: list[Path]) -> Path:
    """Put a patient's name into every identifying tag, every file name and the folder's; return it."""
    for number, file in enumerate(files):
        names = (
            "PatientID",
            "AccessionNumber",
            "StudyID",
            "StudyDescription",
            "SeriesDescription",
            "ProtocolName",
        )
        edit(file, setting(PatientName=f"{CANARY}^MARIA", **dict.fromkeys(names, CANARY)))
        file.rename(file.with_name(f"{CANARY}_{number}.dcm"))
    return folder.rename(folder.with_name(f"{CANARY}_MARIA"))


def enhanced(series: list[Path], file: Path, order: list[int] | None = None) -> Path:
    """One Enhanced CT file of a classic series, its frames in any order; slope 2 in the shared group.

    Written by the standard's tables (PS3.3 A.38.1.4), not by the reader's code.
    """
    slices = [pydicom.dcmread(path) for path in series]
    slices = [slices[k] for k in (order or range(len(slices)))]
    first = slices[0]
    whole = pydicom.Dataset()
    for element in first:
        if element.keyword not in _PER_FRAME:
            whole.add(element)
    whole.SOPClassUID = EnhancedCTImageStorage
    whole.SOPInstanceUID = generate_uid(entropy_srcs=[str(first.SOPInstanceUID)])
    whole.NumberOfFrames = len(slices)
    whole.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    shared = whole.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence = [
        item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
    ]
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=first.ImageOrientationPatient)]
    whole.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[item(StackID="1", InStackPositionNumber=k + 1, FrameAcquisitionNumber=1)],
            PlanePositionSequence=[item(ImagePositionPatient=one.ImagePositionPatient)],
            PixelValueTransformationSequence=[
                item(RescaleSlope="2", RescaleIntercept=str(k), RescaleType="HU")
            ],
            CTImageFrameTypeSequence=[item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])],
        )
        for k, one in enumerate(slices)
    ]
    whole.PixelData = b"".join(one.PixelData for one in slices)
    whole.file_meta = pydicom.dataset.FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.parent.mkdir(parents=True, exist_ok=True)
    whole.save_as(file, enforce_file_format=True)
    return file


_PER_FRAME = {
    "PixelSpacing",
    "SliceThickness",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
}


def item(**values: object) -> pydicom.Dataset:
    """An item of a sequence."""
    dataset = pydicom.Dataset()
    setting(**values)(dataset)
    return dataset


def coded(file: Path, syntax: str, **options: object) -> Path:
    """Compress the image of a file in place; JPEG by gdcm, as pydicom has no coder of it."""
    if syntax in ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"):
        pytest.importorskip(
            "jpeg_ls", reason="pyjpegls (the extra `codecs`), which codes JPEG-LS, is not here"
        )
    if syntax not in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"):
        edit(file, lambda dataset: dataset.compress(syntax, generate_instance_uid=False, **options))
        return file
    gdcm = pytest.importorskip("gdcm")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(file))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return file


def codestream(file: Path) -> bytes:
    """The compressed image of a file that holds one."""
    return next(generate_frames(pydicom.dcmread(file).PixelData, number_of_frames=1))


def with_codestreams(file: Path, *frames: bytes) -> Path:
    """Put compressed images into a file that holds one or several."""
    edit(file, lambda dataset: setattr(dataset, "PixelData", encapsulate(list(frames), has_bot=False)))
    return file
