"""DICOM files to a CT volume in HU; anything but one regular volume is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ctflow.dicom.decoding import decode
from ctflow.dicom.files import PathLike, Scan, Slice, quiet, scan
from ctflow.dicom.grouping import Group, baptise, differences, files, sort_out
from ctflow.dicom.judging import judge, patients
from ctflow.dicom.opening import opened
from ctflow.dicom.options import AS_IT_IS, ReadOptions
from ctflow.dicom.source import Source
from ctflow.dicom.splitting import split
from ctflow.dicom.stack import stacked
from ctflow.errors import NoDicomError, SeriesError, UnreadableError
from ctflow.plausibility import declared, require_hu
from ctflow.units import MU_WATER

if TYPE_CHECKING:
    from pathlib import Path

    from ctflow.volume import Volume

_ADVICE = (
    "Nothing is repaired silently: choose another series, or allow what is needed "
    "(--fill linear, --split, --tilt resample, --tilt in-plane)"
)
_CHOOSE = "Choose one with series= (command line: --series), by series number or by the name in brackets"
_HEADERS = 0.15  # share of the time that headers take


@quiet()
def read_series(
    path: PathLike | Sequence[PathLike],
    *,
    series: str | None = None,
    mu_water: float = MU_WATER,
    options: ReadOptions = AS_IT_IS,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Volume:
    """The one CT volume among DICOM files, in HU.

    Slices are ordered by their place in the patient, never by name or number; rescale is applied slice by
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
        UnreadableError: a file is damaged; it is named by its place in the sorted listing.
        DecoderError: no installed package reads the transfer syntax.
    """
    import torch

    from ctflow.volume import Volume

    with opened(path, options) as (paths, warnings):
        found = _scanned(paths, options, lambda fraction: progress(_HEADERS * fraction))
        groups, skipped = _candidates(found, options)
        chosen = _chosen(groups, skipped, series)
        if options.on_bad_file == "skip":
            _drop_damaged(chosen, options)
        skipped += [
            f"{group} skipped: {'; '.join(group.reasons) or 'not chosen'}"
            for group in groups
            if group is not chosen
        ]
        stack = stacked(chosen, options, lambda fraction: progress(_HEADERS + (1 - _HEADERS) * fraction))
    source = Source(
        tuple(item.header for item in stack.sources),
        tuple(options.unit + digest for digest in stack.digests),  # other numbers, other UIDs
        tuple(item.path for item in stack.sources),
        [*warnings, *_damage(found), *chosen.warnings],
        skipped,
    )
    volume = declared(
        Volume(
            torch.from_numpy(stack.hu), stack.geometry, "HU", torch.from_numpy(stack.mask), mu_water, source
        ),
        options.unit,
    )
    source.warnings.extend(require_hu(volume, options.unit))
    return volume


def _scanned(paths: list[Path], options: ReadOptions, progress: Callable[[float], None]) -> Scan:
    found = scan(paths, options, progress)
    if found.damaged and options.on_bad_file == "error":
        numbers = ", ".join(f"file #{number}" for number in found.damaged[:5])
        raise UnreadableError(
            f"{numbers}: expected DICOM but the content is not, or its header is cut short or wrong; "
            f"{len(found.damaged)} such, counted in the sorted listing; copy them again, take them out, "
            "or --on-bad-file skip"
        )
    if not found.slices:
        raise NoDicomError(
            f"expected a CT series but none of the files here ({found.others + len(found.damaged)}) is a "
            "DICOM image; give the folder of a series"
        )
    return found


def _damage(found: Scan) -> list[str]:
    count = len(found.damaged)
    return [f"{files(count)} skipped: damaged"] if count else []


def _candidates(found: Scan, options: ReadOptions) -> tuple[list[Group], list[str]]:
    groups, skipped, _ = sort_out(found.slices)
    if found.others:
        skipped.append(f"{files(found.others)} skipped: not DICOM images")
    return judged(groups, options), skipped


def judged(groups: list[Group], options: ReadOptions) -> list[Group]:
    """Groups with their reasons and warnings, parted where the options allow it and it is needed."""
    parted: list[Group] = []
    for group in groups:
        judge(group, options)
        pieces = split(group) if options.split and group.reasons else [group]
        if len(pieces) > 1:
            for piece in pieces:
                judge(piece, options)
                piece.warnings.append(f"one of {len(pieces)} parts of its series")
        parted += pieces if len(pieces) > 1 else [group]
    baptise(parted)
    return parted


def _drop_damaged(group: Group, options: ReadOptions) -> None:
    """Take out slices whose pixels cannot be read; what is left must still be one volume."""
    kept = [item for item in group.slices if _readable(item)]
    dropped = len(group.slices) - len(kept)
    if not dropped:
        return
    if not kept:
        raise UnreadableError(f"the pixels of all {dropped} slices are damaged; copy the series again")
    group.slices = kept
    group.warnings[:] = [f"{files(dropped)} skipped: damaged pixels"]
    judge(group, options)
    if group.reasons:
        raise SeriesError([f"{files(dropped)} skipped: damaged pixels", *group.reasons], _ADVICE)


def _readable(item: Slice) -> bool:
    try:
        decode(item)
    except UnreadableError:
        return False
    return True


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
            words = f"{' and '.join(varying)} varies" if varying else f"{len(parts)} parts"
            reasons.append(f"{words} within one series")
    return reasons
