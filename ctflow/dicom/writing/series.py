"""Write a volume as a derived CT series that validators and viewers accept."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID, generate_uid

from ctflow.dicom.reading.files import PathLike, quiet
from ctflow.dicom.source import Source
from ctflow.dicom.writing import header as headers
from ctflow.dicom.writing.content import Content, find_content
from ctflow.dicom.writing.deidentify import mark_deidentified
from ctflow.dicom.writing.examination import examination_of
from ctflow.dicom.writing.folder import check_series_folder, file_name, whole_series_folder
from ctflow.dicom.writing.valid_values import as_text
from ctflow.errors import GeometryError, OutputError, UsageError

if TYPE_CHECKING:
    from ctflow.volume import Volume

_LIMITS = np.iinfo(np.int16)
_FINEST_SCALE = 0.04  # 16 bits hold -1024 HU, what stands outside the mask, down to steps of 0.032 HU
_LONGEST_TEXT = 1024  # characters of ST
_LONGEST = {"description": 64, "derivation": 850}  # LO; ST holds 1024 and ctflow adds its own words


class WrittenSeries(list[Path]):
    """Paths of a written series in slice order; `clipped` counts voxels beyond the 16-bit range of HU."""

    clipped = 0


@quiet()
def write_series(
    volume: Volume,
    path: PathLike,
    *,
    like: Volume | None,
    description: str,
    derivation: str = "",
    content: str = "image",
    hu_scale: float = 1.0,
    series_number: int | None = None,
    deidentify: bool = False,
    seed_uid: str | None = None,
    overwrite: bool = False,
) -> WrittenSeries:
    """Write a volume as a new CT series in the examination of its source: IM0001.dcm, IM0002.dcm, …

    CT numbers are rounded to signed 16 bits and are -1024 HU outside the mask. Patient, study and acquisition
    are copied by allow-list, value by value; everything else states that ctflow made it, for research.

    Args:
        volume: voxels (Z, Y, X) in HU or 1/mm; a spread or a difference in HU.
        path: folder to make; it appears once it is complete.
        like: the volume that was read, whose patient, study and frame of reference are kept slice by slice;
            one that is not from DICOM gets a study of its own, derived from its voxels; None starts a new
            study of an unnamed object.
        description: SeriesDescription, at most 64 characters.
        derivation: how it was made, for DerivationDescription.
        content: "image", "spread" (standard deviation) or "difference"; the last two are marked as not being
            images of the patient.
        hu_scale: HU per stored unit, 0.04 to 1; a spread is stored in steps of 0.1 HU at most.
        series_number: SeriesNumber; 1000 above the source's by default.
        deidentify: name neither patient, date, scanner nor source images (PS3.15 Basic Profile).
        seed_uid: text from which, with pixels and source, the new UIDs are derived; random by default.
        overwrite: replace a folder that holds nothing but a series written earlier.

    Returns:
        The files in slice order, with the number of voxels that 16 bits could not hold in `.clipped`.

    Raises:
        OutputError: the folder exists or cannot be written, or a voxel is not a number.
        GeometryError: `like` has another number of slices.
        UsageError: a text is too long or holds characters that DICOM forbids, or hu_scale is out of range.

    References:
        DICOM PS3.3 A.3 (CT Image), C.12.1.1.5 (contributing equipment), C.7.6.1.1.4 (source images);
        PS3.15 table E.1-1 (de-identification).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((2, 16, 16), (3.0, 1.5, 1.5))  # (Z, Y, X), mm
        >>> volume = ct.Volume(torch.arange(512.0).reshape(grid.shape), grid, "HU")
        >>> written = ct.write_series(volume, "ramp", like=None, description="A ramp")  # or like=source
        >>> [file.name for file in written]
        ['IM0001.dcm', 'IM0002.dcm']
        >>> ct.read_series("ramp").data.equal(volume.data)
        True
    """
    kind, target = find_content(content), Path(path)
    texts = {"description": description, "derivation": derivation}
    source = _checked(volume, like, texts)
    check_series_folder(target, source.files if source is not None else (), overwrite)
    scale = _scale(kind, hu_scale)
    stored, clipped = _stored(volume, kind, scale)
    noticed = source.warnings if source is not None else []
    settings = [*texts.values(), content, repr(scale), repr(deidentify), *noticed]
    uid = _uids(seed_uid, stored, source, volume, settings)
    examination = examination_of(volume, like, uid, identified=not deidentify)
    now = datetime.now()
    note = f"{clipped} voxels clipped to 16 bits" if clipped else ""
    words = _words(derivation, kind.warning, note, source)
    written = WrittenSeries(target / file_name(k + 1) for k in range(len(stored)))
    written.clipped = clipped
    with whole_series_folder(target, overwrite) as folder:
        for k, slab in enumerate(stored):
            dataset = examination.header(k, now)
            origin = "DERIVED" if examination.derived or content != "image" else "ORIGINAL"
            dataset.ImageType = [origin, kind.pixel_kind, "AXIAL"]
            headers.describe(dataset, description, words, kind.windows, now)
            dataset.SeriesInstanceUID = uid("series")
            dataset.SeriesNumber = examination.number() if series_number is None else series_number
            dataset.InstanceNumber, dataset.SOPInstanceUID = k + 1, uid(f"slice {k}")
            headers.set_position(dataset, volume.geometry.affine, k)
            headers.set_pixels(dataset, slab, scale)
            if deidentify:
                mark_deidentified(dataset)
            dataset.save_as(folder / written[k].name, enforce_file_format=True)
    return written


def _checked(volume: Volume, like: Volume | None, texts: dict[str, str]) -> Source | None:
    for name, text in texts.items():
        if len(text) > _LONGEST[name] or text != as_text(text):
            raise UsageError(
                f"{name} holds {len(text)} characters; expected at most {_LONGEST[name]}, no "
                "backslash and no control character; shorten or clean it"
            )
    if like is None:
        return None
    if like.data.shape[0] != volume.data.shape[0]:
        raise GeometryError(
            f"the volume has {volume.data.shape[0]} slices and like= has {like.data.shape[0]}; "
            "take the same slices of both: like.slices(start, stop)"
        )
    return like.source if isinstance(like.source, Source) else None


def _words(derivation: str, meaning: str, clipped: str, source: Source | None) -> str:
    """DerivationDescription: how the series was made, with as many of the reader's warnings as fit."""
    words = "; ".join(filter(None, [derivation, meaning, clipped, headers.PURPOSE]))
    noticed = "; ".join(source.warnings) if source is not None else ""
    if not noticed:
        return words
    words = f"{words}; source: {noticed}"
    return words if len(words) <= _LONGEST_TEXT else f"{words[: _LONGEST_TEXT - 40]} ... (more in the report)"


def _scale(kind: Content, hu_scale: float) -> float:
    if not _FINEST_SCALE <= hu_scale <= 1:
        raise UsageError(f"hu_scale is {hu_scale}; expected {_FINEST_SCALE} to 1 HU per stored unit")
    return min(hu_scale, kind.finest)


def _stored(volume: Volume, kind: Content, scale: float) -> tuple[NDArray[np.int16], int]:
    """Numbers to store, (Z, Y, X), with the outside value off the mask, and the number of clipped voxels."""
    hu = volume.to_hu().data.detach().cpu().numpy()
    mask = volume.mask.cpu().numpy()
    broken = int((~np.isfinite(hu) & mask).sum())
    if broken:
        raise OutputError(
            f"{broken} voxels are not finite numbers; the reconstruction diverged and cannot be written"
        )
    steps = np.rint(np.where(mask, hu, kind.outside_hu) / scale)
    clipped = int(((steps < _LIMITS.min) | (steps > _LIMITS.max)).sum())
    return steps.clip(_LIMITS.min, _LIMITS.max).astype(np.int16), clipped


def _uids(
    seed: str | None,
    stored: NDArray[np.int16],
    source: Source | None,
    volume: Volume,
    settings: list[str],
) -> Callable[[str], UID]:
    """New UIDs by role: random, or derived from the seed and everything that the series holds."""
    if seed is None:
        seed = uuid.uuid4().hex
    origin = "".join(str(header.SOPInstanceUID) for header in source.headers) if source is not None else ""
    pixels = hashlib.sha256(stored.tobytes()).hexdigest()
    content = [seed, origin, repr(volume.geometry), *settings, pixels]
    return lambda role: generate_uid(entropy_srcs=[*content, role])
