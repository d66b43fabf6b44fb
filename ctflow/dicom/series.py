"""A folder of DICOM files to a CT volume in HU; anything but one regular volume is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ctflow.dicom import grid
from ctflow.dicom.files import PathLike, Scan, decode, listing, quiet, scan
from ctflow.dicom.grouping import Group, differences, files, sort_out
from ctflow.dicom.judging import judge, patients
from ctflow.dicom.padding import corners_filled, radius_map, unpadded
from ctflow.dicom.source import Source
from ctflow.errors import NoDicomError, SeriesError, UnreadableError
from ctflow.units import MU_WATER

if TYPE_CHECKING:
    from ctflow.volume import Volume

_ADVICE = "Nothing is repaired silently: choose another series or repair this one"
_CHOOSE = "Choose one with series= (command line: --series), by series number or by the name in brackets"


@quiet()
def read_series(
    path: PathLike | Sequence[PathLike], *, series: str | None = None, mu_water: float = MU_WATER
) -> Volume:
    """The one CT volume among the DICOM files of a folder, in HU.

    Slices are ordered by their place in the patient, never by name or number; rescale is applied slice by
    slice; padding and filled corners are masked and keep their values.

    Args:
        path: folder (read recursively), file, or list of files; classic CT images, one per file.
        series: SeriesNumber or hashed name of the series, where there are several.
        mu_water: attenuation of water of the volume, 1/mm.

    Returns:
        Volume in HU with data and mask (Z, Y, X), the grid in patient coordinates (LPS, mm) and its source.

    Raises:
        NoDicomError: there is no DICOM file.
        SeriesError: the files do not form exactly one regular axial CT volume; `reasons` lists why.
        UnreadableError: a file is damaged; it is named by its place in the sorted listing.
        DecoderError: no installed package reads the transfer syntax.
    """
    import torch

    from ctflow.volume import Volume

    found = _scanned(path)
    groups, skipped, _ = sort_out(found.slices)
    if found.others:
        skipped.append(f"{files(found.others)} skipped: not DICOM images")
    for group in groups:
        judge(group)
    chosen = _chosen(groups, skipped, series)
    skipped += [
        f"{group} skipped: {'; '.join(group.reasons) or 'not chosen'}"
        for group in groups
        if group is not chosen
    ]
    hu, mask, digests = _decoded(chosen)
    source = Source(
        tuple(item.header for item in chosen.slices),
        digests,
        tuple(item.path for item in chosen.slices),
        chosen.warnings,
        skipped,
    )
    geometry = grid.geometry(chosen.slices)
    return Volume(torch.from_numpy(hu), geometry, "HU", torch.from_numpy(mask), mu_water, source)


def _scanned(path: PathLike | Sequence[PathLike]) -> Scan:
    found = scan(listing(path))
    if found.damaged:
        numbers = ", ".join(f"file #{number}" for number in found.damaged[:5])
        raise UnreadableError(
            f"{numbers}: expected DICOM but the content is not, or its header is cut short; "
            f"{len(found.damaged)} such, counted in the sorted listing; copy them again or take them out"
        )
    if not found.slices:
        raise NoDicomError(
            f"expected a CT series but none of the files here ({found.others}) is a DICOM image; "
            "give the folder of a series"
        )
    return found


def _chosen(groups: list[Group], skipped: list[str], series: str | None) -> Group:
    if not groups:
        raise SeriesError([*skipped, "fewer than 1 usable CT slice"], "Give a folder with an axial CT series")
    wanted = [group for group in groups if series is None or series in (str(group.number), group.uid)]
    if not wanted:
        raise SeriesError([f"no series {series} here, only {_names(groups)}"], _CHOOSE)
    by_name = len(wanted) == 1 and series == wanted[0].uid
    usable = [group for group in wanted if not group.reasons]
    reasons = [] if by_name else _mixture(wanted, usable)
    if len(wanted) == 1:
        reasons = wanted[0].reasons + reasons
    elif len(usable) != 1 or reasons:
        reasons += [f"{group}: {'; '.join(group.reasons) or 'usable'}" for group in wanted]
    if reasons:
        raise SeriesError(reasons, _CHOOSE if usable else _ADVICE)
    return usable[0]


def _names(groups: list[Group]) -> str:
    return "; ".join(str(group) for group in groups)


def _mixture(groups: list[Group], usable: list[Group]) -> list[str]:
    """Why candidates must not be reduced to one silently: patients, volumes, or parts of one series."""
    reasons = []
    people = patients(group.first for group in groups)
    if people > 1:
        reasons.append(f"{people} patients in one place")
    if len(usable) > 1:
        reasons.append(f"{len(usable)} usable volumes, expected one")
    for group in groups:
        parts = [other for other in groups if other.first.SeriesInstanceUID == group.first.SeriesInstanceUID]
        if parts[0] is group and len(parts) > 1:
            varying = sorted({name for part in parts[1:] for name in differences(group.first, part.first)})
            reasons.append(f"{' and '.join(varying)} varies within one series")
    return reasons


def _decoded(group: Group) -> tuple[NDArray[np.float32], NDArray[np.bool_], tuple[str, ...]]:
    """CT numbers and mask, (Z, Y, X), and a digest per slice; every slice is decoded once, into place."""
    first = group.first
    hu = np.empty((len(group.slices), int(first.Rows), int(first.Columns)), np.float32)
    mask = np.empty(hu.shape, np.bool_)
    digests = []
    for k, item in enumerate(group.slices):
        stored = decode(item)
        slope, intercept = float(item.header.RescaleSlope), float(item.header.RescaleIntercept)
        hu[k] = stored
        hu[k] = hu[k] * np.float32(slope) + np.float32(intercept)
        mask[k] = unpadded(stored, hu[k], item.header)
        place = [
            *item.header.ImagePositionPatient,
            *item.header.ImageOrientationPatient,
            *item.header.PixelSpacing,
        ]
        digests.append(hashlib.sha256(hu[k].tobytes() + repr([float(v) for v in place]).encode()).hexdigest())
    radius = radius_map(first)
    if corners_filled(hu, radius):
        mask &= radius <= 1
    return hu, mask, tuple(digests)
