"""Read a CT volume in HU from DICOM files; anything but one regular volume is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ctflow.dicom.options import AS_IT_IS, ReadOptions
from ctflow.dicom.reading.checks import checked
from ctflow.dicom.reading.choosing import Candidates, choose_series
from ctflow.dicom.reading.decoding import decode
from ctflow.dicom.reading.files import PathLike, Slice, quiet, read_headers
from ctflow.dicom.reading.grouping import Group, files
from ctflow.dicom.reading.inputs import open_input
from ctflow.dicom.reading.stack import read_stack
from ctflow.dicom.source import Source
from ctflow.errors import SeriesError, UnreadableError
from ctflow.plausibility import converted, require_hu
from ctflow.system.progress import FractionProgress
from ctflow.units import MU_WATER

if TYPE_CHECKING:
    from ctflow.volume import Volume

_HEADERS = 0.15  # share of the time that headers take


@quiet()
def read_series(
    path: PathLike | Sequence[PathLike],
    *,
    series: str | None = None,
    mu_water: float = MU_WATER,
    options: ReadOptions = AS_IT_IS,
    progress: FractionProgress = lambda fraction: None,
) -> Volume:
    """Read the one CT volume among DICOM files, in HU.

    Slices are ordered by their position in the patient, never by name or number; rescale is applied slice by
    slice; padding and filled corners are masked and keep their values. Every image is decoded once.

    Args:
        path: folder (read recursively), file, zip archive, DICOMDIR, or list of these; classic CT images, or
            Enhanced and Legacy Converted Enhanced CT.
        series: SeriesNumber or hashed name of the series, where there are several.
        mu_water: attenuation of water of the volume, 1/mm.
        options: repairs that are allowed; none by default.
        progress: called with the fraction that has been read, from 0 to 1.

    Returns:
        Volume in HU with data and mask (Z, Y, X), the grid in patient coordinates (LPS, mm) and its source.

    Raises:
        NoDicomError: there is no DICOM file.
        SeriesError: the files do not form exactly one regular axial CT volume in HU; `reasons` lists why.
        UnreadableError: a file is damaged; it is named by its number in the sorted listing.
        DecoderError: no installed package reads the transfer syntax.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((2, 16, 16), (3.0, 1.5, 1.5))  # (Z, Y, X), mm
        >>> volume = ct.Volume(torch.arange(512.0).reshape(grid.shape), grid, "HU")
        >>> _ = ct.write_series(volume, "ramp", like=None, description="A ramp")
        >>> ct.read_series("ramp")
        <Volume of 2 × 16 × 16 voxels of 3 × 1.5 × 1.5 mm (z, y, x), 0 to 511 HU>
    """
    import torch

    from ctflow.volume import Volume

    with open_input(path) as (paths, lost):
        place = Candidates(read_headers(paths, lost, lambda fraction: progress(_HEADERS * fraction)))
        choice = choose_series(place, options, series)
        chosen = choice.chosen
        assert chosen is not None  # nothing was refused
        if options.on_bad_file == "skip":
            chosen = _without_damaged(chosen, options)
        stack = read_stack(chosen, options, lambda fraction: progress(_HEADERS + (1 - _HEADERS) * fraction))
    source = Source(
        tuple(item.header for item in stack.sources),
        tuple(options.unit + digest for digest in stack.digests),  # other numbers, other UIDs
        tuple(item.path for item in stack.sources),
        [*choice.warnings, *chosen.beside, *chosen.warnings],
        choice.skipped,
    )
    volume = converted(
        Volume(
            torch.from_numpy(stack.hu), stack.geometry, "HU", torch.from_numpy(stack.mask), mu_water, source
        ),
        options.unit,
    )
    source.warnings.extend(require_hu(volume, options.unit))
    return volume


def _without_damaged(group: Group, options: ReadOptions) -> Group:
    """The group without slices whose pixels cannot be read; the rest must still be one volume."""
    kept = [item for item in group.slices if _readable(item)]
    dropped = len(group.slices) - len(kept)
    if not dropped:
        return group
    if not kept:
        raise UnreadableError(f"the pixels of all {dropped} slices are damaged; copy the series again")
    words = f"{files(dropped)} skipped: damaged pixels"
    rest = replace(group, slices=kept, beside=[*group.beside, words])
    whole = checked(rest, options)
    if whole.reasons:
        filled = checked(rest, replace(options, fill="linear"))
        way = "allow it by --fill linear too" if not filled.reasons else "copy or export the series again"
        raise SeriesError([words, *whole.reasons], f"nothing is repaired silently: {way}")
    return whole


def _readable(item: Slice) -> bool:
    try:
        decode(item)
    except UnreadableError:
        return False
    return True
