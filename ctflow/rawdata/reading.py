"""Recognise measured data in a file or folder by content, and read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ctflow.dicom import holds_projections, read_projections
from ctflow.dicom.reading.inputs import is_dicom
from ctflow.errors import UsageError
from ctflow.rawdata.consistency import check_consistency
from ctflow.rawdata.geometry_file import read_sinogram
from ctflow.rawdata.half_fan import find_half_fan
from ctflow.rawdata.htc2022 import read_htc2022
from ctflow.rawdata.loading import TIFF, hdf5_names, magic
from ctflow.rawdata.lodopab import read_lodopab
from ctflow.rawdata.rtk import is_rtk, read_rtk
from ctflow.rawdata.two_detect import FILES, read_2detect
from ctflow.scan import Scan

_ARRAYS = {b"\x93NUM": ".npy"} | dict.fromkeys(TIFF, "TIFF")


def holds_scan(path: Path) -> bool:
    """Whether a path holds measured projections rather than a series of images."""
    if is_rtk(path):
        return True
    if path.is_dir():
        return (path / FILES[0]).is_file() or holds_projections(path)
    if not path.is_file() or is_dicom(path):  # a preamble may be the start of a TIFF
        return False
    start = magic(path)
    return (
        path.suffix.lower() in (".toml", ".npz")
        or start[:4] in _ARRAYS
        or start[:6] == b"MATLAB"
        or start[:4] == b"\x89HDF"
    )


def read_scan(path: str | Path) -> Scan:
    """Read measured projections.

    Folders of DICOM-CT-PD and of 2DeteCT, files of the Helsinki Tomography Challenge 2022 and of LoDoPaB-CT,
    RTK's geometry in XML or a folder with one (see `ctflow.rawdata.rtk`), and a geometry file (or the array
    beside a geometry file of its name) for everything else; see `read_sinogram`.

    Args:
        path: file or folder.

    Returns:
        Line integrals (rows, views, bins), dimensionless, and the rays they were measured along, mm.

    Raises:
        UsageError: the path holds no known format.
        UnreadableError: a file is damaged.
        SeriesError: raw data of a scanner cannot be reconstructed.
        GeometryError: the data do not fit their rays; see `ctflow.rawdata.consistency`.
        UnitError: the data are not line integrals.

    Examples:
        >>> import numpy as np
        >>> import ctflow as ct
        >>> chord = 2 * np.sqrt(np.clip(60.0**2 - (3.0 * np.arange(-31.5, 32)) ** 2, 0, None))  # disc, mm
        >>> np.save("measured.npy", np.tile(0.0192 * chord, (90, 1)))  # views × bins, line integrals
        >>> with open("measured.toml", "w") as file:
        ...     print('units = { length = "mm", angle = "degrees" }', file=file)
        ...     print('data = "measured.npy"', file=file)
        ...     print('geometry = { name = "parallel-beam", angles = 90, pitch = 3.0 }', file=file)
        ...
        >>> scan = ct.read_scan("measured.toml")
        >>> scan.y.shape
        torch.Size([1, 90, 64])
        >>> print(scan.beam)
        Parallel beam: 90 views over 178.0°, 64 bins of 3 mm. Field of view 192.0 mm.
    """
    scan = _read(Path(path))
    if scan.spot is not None:
        return scan
    scan = find_half_fan(scan)
    return replace(scan, notes=(*scan.notes, *check_consistency(scan)))


def _read(path: Path) -> Scan:
    if is_rtk(path):
        return read_rtk(path)
    if path.is_dir():
        return read_2detect(path) if (path / FILES[0]).is_file() else read_projections(path)
    if not path.is_file():
        raise UsageError("expected measured data, but there is no such file or folder; check the path")
    if path.suffix.lower() == ".toml":
        return read_sinogram(path)
    beside = path.with_suffix(".toml")
    if beside.is_file():
        return read_sinogram(beside)
    start = magic(path)
    if start[:6] == b"MATLAB":
        return read_htc2022(path)
    if start[:4] == b"\x89HDF" and hdf5_names(path) == ["data"]:
        return read_lodopab(path)
    raise UsageError(
        "the array does not describe its rays; write a geometry file of the same name beside it, "
        "ending in .toml (the how-to Measured data says what goes into it)"
    )
