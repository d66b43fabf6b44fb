"""Small DICOM series for tests, and ways to spoil them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import torch

from ctflow.dicom import write_series
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
