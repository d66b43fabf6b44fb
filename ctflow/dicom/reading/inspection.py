"""Summarise the series in a folder without naming a patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from ctflow.dicom.options import AS_IT_IS, ReadOptions
from ctflow.dicom.reading.choosing import Candidates, causes
from ctflow.dicom.reading.files import PathLike, quiet, read_headers
from ctflow.dicom.reading.grouping import Group, modality, number
from ctflow.dicom.reading.inputs import open_input
from ctflow.dicom.reading.stack import plan


@dataclass(frozen=True)
class SeriesSummary:
    """One series (or part of one) in a folder; every field can be written as JSON.

    Args:
        series_number: SeriesNumber, if any.
        uid: first 8 hexadecimal digits of the SHA-256 of SeriesInstanceUID, for `read_series(series=)`.
        modality: "CT", "MR", …; "" for files that could not be read.
        slices: number of slices.
        rows: pixels along y.
        columns: pixels along x.
        spacing_mm: distances (z, y, x), mm; None where the slices are not a volume.
        thickness_mm: SliceThickness, mm.
        kernel: ConvolutionKernel.
        kvp: tube voltage, kV.
        usable: whether `read_series` would accept it.
        reasons: why not.
        warnings: what it would warn about.
    """

    series_number: int | None
    uid: str
    modality: str
    slices: int
    rows: int | None = None
    columns: int | None = None
    spacing_mm: tuple[float, float, float] | None = None
    thickness_mm: float | None = None
    kernel: str | None = None
    kvp: float | None = None
    usable: bool = False
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@quiet()
def inspect_folder(
    path: PathLike | Sequence[PathLike], options: ReadOptions = AS_IT_IS
) -> list[SeriesSummary]:
    """List the series in a folder; unusable ones are listed with their reasons instead of being raised.

    Args:
        path: folder (read recursively), file, zip archive, DICOMDIR, or list of these.
        options: repairs that `read_series` would be allowed.

    Returns:
        CT volumes first, then other series; a last entry with an empty uid counts damaged files. Spacing in
        mm.

    Raises:
        NoDicomError: the path does not exist.
        UnreadableError: an archive or a DICOMDIR cannot be opened.
    """
    with open_input(path) as (paths, lost):
        place = Candidates(read_headers(paths, lost))
        groups, left = place.groups(options), place.sorted(options.force)[1]
        summaries = [_summary(group, options) for group in [*groups, *left]]
    if bad := place.lost(options):
        count = sum(map(len, bad.values()))
        summaries.append(SeriesSummary(None, "", "", count, reasons=tuple(causes(bad))))
    return summaries


def _summary(group: Group, options: ReadOptions) -> SeriesSummary:
    header = group.first
    kernel = header.get("ConvolutionKernel")
    return SeriesSummary(
        group.number,
        group.uid,
        modality(header),
        len(group.slices),
        rows=_whole(header, "Rows"),
        columns=_whole(header, "Columns"),
        spacing_mm=None if group.reasons else plan(group.slices, options).geometry.spacing,
        thickness_mm=number(header, "SliceThickness"),
        kernel=kernel if kernel is None or isinstance(kernel, str) else "/".join(map(str, kernel)),
        kvp=number(header, "KVP"),
        usable=not group.reasons,
        reasons=tuple(group.reasons),
        warnings=(*group.beside, *group.warnings),
    )


def _whole(header: Dataset, name: str) -> int | None:
    value = number(header, name)
    return None if value is None else int(value)
