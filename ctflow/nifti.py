"""Read and write NIfTI volumes: CT numbers in HU with their position in the patient."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctflow.dicom.reading.files import quiet
from ctflow.errors import OutputError, SeriesError, UnreadableError
from ctflow.geometry import VolumeGeometry
from ctflow.nifti_header import read_affine
from ctflow.plausibility import require_hu, scale
from ctflow.system.files import Reservation, reserved
from ctflow.system.optional import optional_library
from ctflow.units import AIR_HU, MU_WATER

if TYPE_CHECKING:
    from ctflow.volume import Volume

# Left, posterior, superior (DICOM) to right, anterior, superior (NIfTI) and back.
_TURN = np.diag([-1.0, -1.0, 1.0, 1.0])
_MAGIC = (b"n+1\0", b"n+2\0")
_PAIR = (b"ni1\0", b"ni2\0")  # the voxels lie in another file
_SKEW = 1e-3  # cosine of the angle between axes, 0.06°
_OBLIQUE_DEGREES = 5.0
_DEFLATE = 1032  # the highest compression ratio of deflate, RFC 1951
_MADE = b"ctflow, HU; research use; not for diagnosis"
_DESCRIPTION = slice(148, 228)  # `descrip` of a NIfTI-1 header
_UNKNOWN = "NIfTI: kernel, dose and processing of these images are unknown"
_ADVICE = "Give an axial CT volume in HU, or the DICOM series it came from"


@dataclass(frozen=True)
class NiftiSource:
    """Origin of a volume from a NIfTI file, which has neither patient nor slice headers.

    Args:
        sha256: digest of the voxels and their affine.
        warnings: warnings for the reader of a report.
    """

    sha256: str
    warnings: tuple[str, ...] = ()

    def __getitem__(self, part: slice) -> NiftiSource:
        return self


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a NIfTI-1 or NIfTI-2 volume, compressed or not, judged by content."""
    try:
        with Path(path).open("rb") as stream:
            start = stream.read(348)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(path) as stream:
                start = stream.read(348)
    except (OSError, EOFError, ValueError, zlib.error):
        return False
    return start[344:348] in _MAGIC + _PAIR or start[4:8] in _MAGIC + _PAIR


def read_nifti(path: str | os.PathLike[str], *, mu_water: float = MU_WATER, unit: str = "") -> Volume:
    """Read a CT volume from a NIfTI file, with slices axial and seen from the feet.

    Lengths in metres and micrometres become mm; a header that contradicts itself is refused.

    Args:
        path: .nii or .nii.gz of three dimensions.
        mu_water: attenuation of water of the volume, 1/mm.
        unit: unit of the voxels where they are not HU, see `ctflow.plausibility.scale`.

    Returns:
        Volume in HU, (Z, Y, X), on its grid in patient coordinates (LPS, mm); voxels that are NaN or
        infinite, and a filling below -1100 HU, are masked.

    Raises:
        UnreadableError: the file is damaged, or its stated size is false.
        SeriesError: it is not one axial CT volume in HU, or its header contradicts itself.
        UsageError: the unit is unknown.
        BackendError: nibabel is not installed.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((2, 16, 16), (3.0, 1.5, 1.5))  # (Z, Y, X), mm
        >>> volume = ct.Volume(torch.arange(512.0).reshape(grid.shape), grid, "HU")
        >>> ct.read_nifti(ct.write_nifti(volume, "ramp.nii.gz"))
        <Volume of 2 × 16 × 16 voxels of 3 × 1.5 × 1.5 mm (z, y, x), 0 to 511 HU>
    """
    import torch

    from ctflow.dicom.reading.padding import filling
    from ctflow.volume import Volume

    file = Path(path)
    with gzip.open(file) if _is_gzip(file) else file.open("rb") as stream:
        image = _opened(stream, file.stat().st_size * (_DEFLATE if _is_gzip(file) else 1))
        affine, said = read_affine(image.header, _as_stored(image, stream))
        voxels, affine = _turned(_voxels(image, stream), affine)
    hu = np.ascontiguousarray(voxels.transpose(2, 1, 0))
    geometry = _geometry(affine, hu.shape)
    slope, intercept = scale(unit or "HU", mu_water)
    hu = hu * np.float32(slope) + np.float32(intercept)
    broken = ~np.isfinite(hu)
    hu[broken] = AIR_HU
    mask = np.stack([~filling(slab) for slab in hu]) & ~broken
    digest = hashlib.sha256(hu.tobytes() + repr(geometry).encode()).hexdigest()
    volume = Volume(torch.from_numpy(hu), geometry, "HU", torch.from_numpy(mask), mu_water)
    said = [_UNKNOWN, *said, *require_hu(volume, unit)]
    if broken.any():
        said.append(f"{int(broken.sum())} voxels are NaN or infinite: masked, and air in what is computed")
    return replace(volume, source=NiftiSource(digest, tuple(said)))


def write_nifti(volume: Volume, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a volume as NIfTI in HU: 16-bit integers where all values are whole numbers, else 32-bit floats.

    Rows run from posterior to anterior and slices upwards, as dcm2niix writes them; the file appears once it
    is complete.

    Args:
        volume: voxels (Z, Y, X) in HU or 1/mm.
        path: file to make, .nii or .nii.gz.
        overwrite: replace a file that ctflow wrote earlier.

    Returns:
        The file.

    Raises:
        OutputError: the file exists or cannot be written, or its name ends differently.
        BackendError: nibabel is not installed.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((2, 16, 16), (3.0, 1.5, 1.5))  # (Z, Y, X), mm
        >>> volume = ct.Volume(torch.arange(512.0).reshape(grid.shape), grid, "HU")
        >>> path = ct.write_nifti(volume, "ramp.nii.gz")
        >>> ct.read_nifti(path).data.equal(volume.data)
        True
    """
    target = Path(path)
    with reserved_nifti(target, overwrite) as place:
        save_nifti(volume, place)
    return target


def reserved_nifti(target: Path, overwrite: bool = False) -> AbstractContextManager[Reservation]:
    """Reserve an output file before anything is read, or refuse one that could not be written.

    Raises:
        OutputError: it exists, another run is writing it, or its name does not end like that of a NIfTI file.
    """
    if not target.name.endswith((".nii.gz", ".nii")):
        raise OutputError("expected a NIfTI file to write; end its name with .nii.gz or .nii")
    return reserved(target, _written_nifti, "" if overwrite else "--overwrite")


def save_nifti(volume: Volume, place: Reservation) -> None:
    """Write a volume, as `write_nifti` does, to a file reserved for it."""
    image = _image(volume)
    with place.file() as new:
        image.to_filename(new)


def _written_nifti(path: Path) -> bool:
    """Whether ctflow wrote a file."""
    try:
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as stream:
            return bytes(stream.read(_DESCRIPTION.stop)[_DESCRIPTION]).rstrip(b"\0") == _MADE
    except (OSError, EOFError, zlib.error):
        return False


def _nibabel() -> Any:
    with optional_library("nibabel", "pip install 'ctflow[nifti]'"):
        import nibabel
    return nibabel


def _opened(stream: Any, most: int) -> Any:
    """Open the image without reading its voxels; an impossible header is refused."""
    nibabel = _nibabel()
    try:
        with quiet("nibabel.global"):
            start = stream.read(348)
            stream.seek(0)
            if start[344:] == _PAIR[0] or start[4:8] == _PAIR[1]:
                raise SeriesError(
                    ["the header of a pair (.hdr, .img), expected one file"],
                    "Save it as .nii: nibabel.save(nibabel.load('x.hdr'), 'x.nii')",
                )
            second = start[4:8] == _MAGIC[1]
            image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_stream(stream)
            shape = tuple(map(int, image.shape))
            size = float(np.prod(shape, dtype=np.float64)) * image.dataobj.dtype.itemsize
    except SeriesError:
        raise
    except Exception:  # nibabel raises many types on damaged headers
        raise UnreadableError("expected a NIfTI file but its header is damaged; copy it again") from None
    solid = [*shape[:3], *(1 for n in shape[3:] if n == 1)]
    if len(shape) < 3 or len(solid) != len(shape) or min(shape) < 1:
        raise SeriesError([f"{len(shape)} dimensions {shape}, expected one volume of three"], _ADVICE)
    if size > most:
        raise UnreadableError(
            f"the NIfTI header claims {size / 2**20:.1f} MiB, more than the file can hold; copy it again"
        )
    return image


def _as_stored(image: Any, stream: Any) -> Any:
    """The header as stored, without nibabel's repairs."""
    stream.seek(0)
    return type(image.header).from_fileobj(stream, check=False)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _turned(
    voxels: NDArray[np.float32], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Reorder the axes to run towards left, posterior and superior, (X, Y, Z); affine to LPS, mm."""
    turns = _nibabel().orientations
    turn = turns.ornt_transform(turns.io_orientation(affine), turns.axcodes2ornt("LPS"))
    return turns.apply_orientation(voxels, turn), _TURN @ affine @ turns.inv_ornt_aff(turn, voxels.shape)


def _voxels(image: Any, stream: Any) -> NDArray[np.float32]:
    """Scaled values, (X, Y, Z), after which the file must end."""
    voxels = image.dataobj
    try:
        with quiet("nibabel.global"):
            array = np.asarray(voxels, dtype=np.float32)
            stream.seek(voxels.offset + math.prod(voxels.shape) * voxels.dtype.itemsize)
            behind = stream.read(2**20)
    except Exception:  # nibabel and zlib raise many types on truncated data
        raise UnreadableError(
            "the voxels of the NIfTI file are truncated or damaged; copy it again"
        ) from None
    if behind.strip(b"\0"):
        raise UnreadableError(
            "bytes follow the last voxel, so the header's size or type is wrong; copy the file again, or "
            "save it again from the program that made it"
        )
    return array.reshape(array.shape[:3])


def _geometry(affine: NDArray[np.float64], shape: tuple[int, ...]) -> VolumeGeometry:
    """Grid of (Z, Y, X) voxels from the affine of (x, y, z) indices to LPS, mm."""
    right, down, up, origin = affine[:3].T
    spacing = [float(np.linalg.norm(axis)) for axis in (up, down, right)]
    units = [axis / length for axis, length in zip((up, down, right), spacing, strict=True)]
    skew = max(abs(float(units[a] @ units[b])) for a, b in ((0, 1), (0, 2), (1, 2)))
    angle = float(np.degrees(np.arccos(min(1.0, abs(units[0][2])))))
    reasons = []
    if skew > _SKEW:
        reasons.append(f"the axes are {np.degrees(np.arcsin(skew)):.2f}° from perpendicular (gantry tilt?)")
    if angle > _OBLIQUE_DEGREES:
        reasons.append(f"the slices lie {angle:.1f}° off axial, expected at most {_OBLIQUE_DEGREES:.0f}°")
    if reasons:
        raise SeriesError(reasons, _ADVICE)
    lines = np.column_stack([up, down, right, origin])
    rows = (*(tuple(float(value) for value in line) for line in lines), (0.0, 0.0, 0.0, 1.0))
    return VolumeGeometry((shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]), rows)


def _image(volume: Volume) -> Any:
    """Make a NIfTI image; rows are reversed so that the axes are right-handed, as NIfTI readers expect."""
    nibabel = _nibabel()
    volume = volume.to_hu()
    hu = volume.data.detach().cpu().numpy()
    lines = np.array(volume.geometry.affine)
    up, down, right, origin = lines[:3].T
    affine = np.eye(4)
    affine[:3] = np.column_stack([right, -down, up, origin + (hu.shape[1] - 1) * down])
    limits = np.iinfo(np.int16)
    whole = bool((hu == np.rint(hu)).all()) and limits.min <= hu.min() and hu.max() <= limits.max
    voxels = hu[:, ::-1].transpose(2, 1, 0).astype(np.int16 if whole else np.float32)
    image = nibabel.Nifti1Image(voxels, _TURN @ affine)
    image.header.set_xyzt_units("mm")
    skewed = abs(float(up @ np.cross(right, down))) < (1 - 1e-6) * np.prod(volume.geometry.spacing)
    image.set_qform(
        _TURN @ affine, code=0 if skewed else 1
    )  # a quaternion cannot shear; 1: the scanner's axes
    image.set_sform(_TURN @ affine, code=1)
    image.header["descrip"] = _MADE
    return image
