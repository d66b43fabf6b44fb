"""A volume to a derived CT series that validators and viewers accept."""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid

from ctflow.dicom import header as headers
from ctflow.dicom.files import PathLike, quiet
from ctflow.dicom.grouping import number
from ctflow.dicom.source import Source
from ctflow.errors import GeometryError, OutputError, UsageError

if TYPE_CHECKING:
    from ctflow.volume import Volume

_OUTSIDE_HU = -1024
_LIMITS = np.iinfo(np.int16)
_LONGEST = {"description": 64, "derivation": 900}  # LO; ST holds 1024 and ctflow adds its own words


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
    seed_uid: str | None = None,
    overwrite: bool = False,
) -> WrittenSeries:
    """Write a volume as a new CT series of its source's study: IM0001.dcm, IM0002.dcm, …

    CT numbers are rounded to whole HU in signed 16 bits; outside the mask stands -1024. Patient, study and
    acquisition are copied by whitelist; everything else says that ctflow made it, for research.

    Args:
        volume: voxels (Z, Y, X) in HU or 1/mm.
        path: folder to make; it appears when it is whole.
        like: the volume that was read, whose patient, study and frame of reference are kept slice by slice;
            None starts a new study of a phantom.
        description: SeriesDescription, at most 64 characters.
        derivation: how it was made, for DerivationDescription.
        seed_uid: makes the new UIDs a function of this text, the pixels and the source; random by default.
        overwrite: replace a folder that holds nothing but a series written earlier.

    Returns:
        The files in slice order, with the number of voxels that 16 bits could not hold in `.clipped`.

    Raises:
        OutputError: the folder exists or cannot be written, or a voxel is not a number.
        GeometryError: `like` has another number of slices.
        UsageError: `like` has no source; a text is too long for its attribute or holds a backslash.

    References:
        DICOM PS3.3 A.3 (CT Image), C.12.1.1.5 (contributing equipment), C.7.6.1.1.4 (source images).
    """
    target = Path(path)
    texts = {"description": description, "derivation": derivation}
    source = _checked(volume, like, texts)
    _check_target(target, source, overwrite)
    stored, clipped = _stored(volume)
    uid = _uids(seed_uid, stored, source, volume, texts)
    now = datetime.now()
    note = f"{clipped} voxels clipped to 16 bits" if clipped else ""
    words = "; ".join(filter(None, [derivation, note, headers.PURPOSE]))
    written = WrittenSeries(target / f"IM{k + 1:04d}.dcm" for k in range(len(stored)))
    written.clipped = clipped
    with _whole_folder(target, overwrite) as folder:
        for k, slab in enumerate(stored):
            dataset = _started(source.headers[k], uid) if source is not None else _phantom(uid, now)
            headers.describe(dataset, description, words, now)
            dataset.SeriesInstanceUID = uid("series")
            dataset.InstanceNumber, dataset.SOPInstanceUID = k + 1, uid(f"slice {k}")
            headers.place(dataset, volume.geometry.affine, k)
            headers.pixels(dataset, slab)
            dataset.save_as(folder / written[k].name, enforce_file_format=True)
    return written


def _checked(volume: Volume, like: Volume | None, texts: dict[str, str]) -> Source | None:
    for name, text in texts.items():
        if len(text) > _LONGEST[name] or "\\" in text:
            raise UsageError(
                f"{name} holds {len(text)} characters; expected at most {_LONGEST[name]} "
                "and no backslash; shorten it"
            )
    if like is None:
        return None
    if not isinstance(like.source, Source):
        raise UsageError("like= has no DICOM source; give the volume that read_series returned, or like=None")
    if len(like.source) != volume.data.shape[0]:
        raise GeometryError(
            f"the volume has {volume.data.shape[0]} slices and like= has {len(like.source)}; "
            "take the same slices of both: like.slices(start, stop)"
        )
    return like.source


def _check_target(target: Path, source: Source | None, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise OutputError(
            "expected a new output folder but it exists; give another, or overwrite=True (--overwrite)"
        )
    inputs = {file.resolve().parent for file in source.files} if source is not None else set()
    earlier = target.is_dir() and all(re.fullmatch(r"IM\d{4,}\.dcm", file.name) for file in target.iterdir())
    if not earlier or target.resolve() in inputs:
        raise OutputError(
            "expected to replace a series that ctflow wrote, but the output folder holds other files or "
            "the input; give another folder"
        )


def _stored(volume: Volume) -> tuple[NDArray[np.int16], int]:
    """Whole HU in 16 bits, (Z, Y, X), -1024 outside the mask; and how many voxels were clipped."""
    hu = np.rint(volume.to_hu().data.detach().cpu().numpy())
    mask = volume.mask.cpu().numpy()
    broken = int((~np.isfinite(hu) & mask).sum())
    if broken:
        raise OutputError(
            f"{broken} voxels are not finite numbers; a reconstruction diverged, write nothing of it"
        )
    hu = np.where(mask, hu, _OUTSIDE_HU)
    clipped = int(((hu < _LIMITS.min) | (hu > _LIMITS.max)).sum())
    return hu.clip(_LIMITS.min, _LIMITS.max).astype(np.int16), clipped


def _uids(
    seed: str | None, stored: NDArray[np.int16], source: Source | None, volume: Volume, texts: dict[str, str]
) -> Callable[[str], UID]:
    """New UIDs by role: random, or a function of the seed and of everything that the series holds."""
    if seed is None:
        seed = uuid.uuid4().hex
    origin = "".join(str(header.SOPInstanceUID) for header in source.headers) if source is not None else ""
    content = [
        seed,
        origin,
        repr(volume.geometry),
        *texts.values(),
        hashlib.sha256(stored.tobytes()).hexdigest(),
    ]
    return lambda role: generate_uid(entropy_srcs=[*content, role])


def _started(source: Dataset, uid: Callable[[str], UID]) -> Dataset:
    """What a derived slice takes from its source slice, and the links back to it."""
    dataset = headers.copied(source)
    dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    dataset.StudyInstanceUID = source.StudyInstanceUID
    dataset.FrameOfReferenceUID = source.get("FrameOfReferenceUID") or uid("frame of reference")
    dataset.SeriesNumber = int(number(source, "SeriesNumber") or 0) + 1000
    headers.note_lossy(dataset, source)
    dataset.SourceImageSequence = [headers.reference(source)]
    dataset.ContributingEquipmentSequence = headers.equipment(source)
    return dataset


def _phantom(uid: Callable[[str], UID], now: datetime) -> Dataset:
    """A slice of a study of its own: an object that exists in the computer alone."""
    dataset = headers.copied(Dataset())
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName, dataset.PatientID, dataset.PatientSex = "CTFLOW^PHANTOM", "PHANTOM", "O"
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = uid("study")
    dataset.FrameOfReferenceUID = uid("frame of reference")
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = (
        now.strftime("%Y%m%d"),
        now.strftime("%H%M%S"),
        "1",
    )
    dataset.SeriesNumber = 1
    dataset.LossyImageCompression = "00"
    dataset.ContributingEquipmentSequence = headers.equipment(None)
    return dataset


@contextmanager
def _whole_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `target` that takes its name when the block succeeds and vanishes when it does not."""
    folder = target.absolute().parent / f".ctflow-{uuid.uuid4().hex}"
    old = folder.with_suffix(".old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        yield folder
        if overwrite and target.exists():
            target.rename(old)
        folder.rename(target)
    except OSError as error:
        # `from None`: the system's text quotes paths, and paths name patients.
        raise OutputError(
            f"the output folder cannot be written: {error.strerror}; free space or choose another"
        ) from None
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
