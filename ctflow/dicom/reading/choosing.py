"""Choose the CT volume that is meant among the files found; a refusal names options that would read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from ctflow.dicom.options import ReadOptions
from ctflow.dicom.reading.checks import checked, count_patients, tidy
from ctflow.dicom.reading.files import NO_SERIES, FoundFiles
from ctflow.dicom.reading.grouping import (
    Group,
    differences,
    files,
    group_slices,
    is_slice,
    listed,
    name_groups,
)
from ctflow.dicom.reading.kinds import advice_for
from ctflow.dicom.reading.splitting import split_series
from ctflow.errors import CTFlowError, NoDicomError, SeriesError, UnreadableError

_UNMARKED = "no DICM marker"
_REPAIRS: dict[str, dict[str, Any]] = {
    "--on-bad-file skip": {"on_bad_file": "skip"},
    "--force-read": {"force": True},
    "--fill linear": {"fill": "linear"},
    "--tilt resample": {"tilt": "resample"},
    "--tilt in-plane": {"tilt": "in-plane"},
    "--split": {"split": True},
}


@dataclass(frozen=True)
class Choice:
    """The volume that was chosen, or the reasons why none was.

    Args:
        reasons: why nothing can be chosen.
        groups: CT volumes to choose from.
        chosen: the volume.
        skipped: what else was found and why it is left out.
        warnings: what the user of the volume must know about that.
        damaged: whether damaged files are the reason.
    """

    reasons: list[str]
    groups: list[Group] = field(default_factory=list)
    chosen: Group | None = None
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    damaged: bool = False

    @property
    def usable(self) -> list[Group]:
        """Volumes that a caller could choose by name."""
        return [group for group in self.groups if not group.reasons]


class Candidates:
    """Candidate volumes among the files found, grouped once and checked under any options.

    Args:
        found: the files.
    """

    def __init__(self, found: FoundFiles) -> None:
        self.found = found
        self._sorted: dict[bool, tuple[list[Group], list[Group]]] = {}

    def sorted(self, force: bool) -> tuple[list[Group], list[Group]]:
        """Candidate volumes, and images that are not slices of any."""
        if force not in self._sorted:
            unmarked = self.found.unmarked if force else []
            groups, left = group_slices([*self.found.slices, *unmarked])
            for group in groups:
                tidy(group)
            self._sorted[force] = groups, left
        return self._sorted[force]

    def lost(self, options: ReadOptions) -> dict[str, list[int]]:
        """Files that should hold an image but yield none, by cause."""
        unmarked = [] if options.force else [item.number for item in self.found.unmarked]
        return {cause: numbers for cause, numbers in self._lost(unmarked) if numbers}

    def _lost(self, unmarked: list[int]) -> Iterator[tuple[str, list[int]]]:
        yield from self.found.lost.items()
        yield _UNMARKED, sorted(set(unmarked))

    def groups(self, options: ReadOptions) -> list[Group]:
        """Volumes with their reasons and warnings, split where that is needed and the options allow it."""
        groups, left = self.sorted(options.force)
        parted: list[Group] = []
        for group in groups:
            whole = checked(group, options)
            pieces = split_series(group) if options.split and whole.reasons else []
            if len(pieces) > 1:
                parted += [checked(piece, options) for piece in pieces]
                for piece in parted[-len(pieces) :]:
                    piece.beside.append(f"one of {len(pieces)} parts of its series")
            else:
                parted.append(whole)
        name_groups(parted)
        for group in parted:
            _account(group, left, options)
        return parted


def _account(group: Group, left: list[Group], options: ReadOptions) -> None:
    """Note slices of its series, or of any, that are not in the group; unplaceable ones are an error."""
    for other in left:
        slices = any(is_slice(item.header) for item in other.slices)
        if group.belongs_to(other):
            of = "of the series"
        elif slices and _is_nameless(other) and not _is_nameless(group):
            of = "without SeriesInstanceUID"
        else:
            continue
        words = f"{files(len(other.slices))} {of} left out: {other.reasons[0]}"
        (group.reasons if slices and options.on_bad_file == "error" else group.beside).append(words)


def _is_nameless(group: Group) -> bool:
    return NO_SERIES in group.slices[0].notes


def choose_series(place: Candidates, options: ReadOptions, series: str | None) -> Choice:
    """Choose the one volume that is meant.

    Args:
        place: candidate volumes.
        options: repairs that are allowed.
        series: SeriesNumber or name of the series.

    Raises:
        NoDicomError: there is no DICOM image.
        UnreadableError: files that should hold images cannot be read.
        SeriesError: there is not exactly one CT volume.
    """
    choice = _choice(place, options, series)
    if choice.damaged:
        raise UnreadableError(f"{choice.reasons[0]}; {advice(place, options, series)}")
    if choice.reasons:
        raise SeriesError(choice.reasons, advice(place, options, series))
    return choice


def causes(lost: dict[str, list[int]]) -> Iterator[str]:
    """Why files could not be read, each with the first of their numbers in the sorted listing."""
    for cause, numbers in lost.items():
        known = [f"file #{number}" for number in numbers if number]
        yield f"{cause} ({listed(known) if known else len(numbers)})"


def advice(place: Candidates, options: ReadOptions, series: str | None) -> str:
    """The fewest options that would read the images, each tried on them; other advice where none does."""
    for number in range(4):
        working = [
            way
            for repairs in combinations(_open_to(place, options), number)
            if (way := _way(place, options, series, repairs)) is not None
        ]
        if working and not number:
            return f"choose one by {working[0]}"
        if working:
            return f"nothing is repaired silently: allow it by {' or by '.join(working)}"
    special = advice_for({*place.lost(options)})
    return f"no option makes one volume of these files; {special or 'copy or export the series again'}"


def _open_to(place: Candidates, options: ReadOptions) -> list[str]:
    """Repairs that are not allowed yet and would change something."""
    repairs = [
        words
        for words, values in _REPAIRS.items()
        if all(getattr(options, name) in (False, "", "error", "refuse") for name in values)
    ]
    return [words for words in repairs if words != "--force-read" or place.found.unmarked]


def _way(place: Candidates, options: ReadOptions, series: str | None, repairs: Sequence[str]) -> str | None:
    """These repairs as command line options if they lead to one volume, else None."""
    values = {name: value for words in repairs for name, value in _REPAIRS[words].items()}
    if len(values) < len(repairs):
        return None  # two ways to treat a tilt
    try:
        choice = _choice(place, replace(options, **values), series)
    except CTFlowError:
        return None
    if not choice.reasons:
        return " ".join(repairs)
    if choice.usable:
        first, *rest = [group.uid for group in choice.usable]
        return " ".join([*repairs, f"--series {first}"]) + (f" (or {listed(rest, 3)})" if rest else "")
    return None


def _choice(place: Candidates, options: ReadOptions, series: str | None) -> Choice:
    found, lost = place.found, place.lost(options)
    if lost and options.on_bad_file == "error":
        count = sum(map(len, lost.values()))
        return Choice([f"{files(count)} cannot be read: {', '.join(causes(lost))}"], damaged=True)
    groups, left = place.groups(options), place.sorted(options.force)[1]
    if not groups and not left:
        raise _no_image(found, lost)
    skipped = [f"{files(len(group.slices))} skipped: {group.reasons[0]}" for group in left]
    if others := found.others.total():
        skipped.append(f"{files(others)} skipped: not DICOM images")
    warnings = [f"{files(len(numbers))} skipped: {cause}" for cause, numbers in lost.items()]
    wanted = [group for group in groups if group.is_called(series)]
    if not wanted:
        unplaced = [f"{files(len(g.slices))}: {g.reasons[0]}" for g in left if g.is_called(series)]
        none = unplaced or [f"no series {series} here" if groups or left else "no CT image here"]
        only = [f"there is {listed([*map(str, groups)])}"] if groups else []
        return Choice([*none, *only], groups)
    reasons = _reasons(wanted, by_name=series == wanted[0].uid)
    if reasons:
        return Choice(reasons, wanted)
    chosen = next(group for group in wanted if not group.reasons)
    rest = [group for group in groups if group is not chosen]
    skipped += [f"{group} skipped: {'; '.join(group.reasons) or 'not chosen'}" for group in rest]
    warnings += _beside(chosen, rest, left, series)
    return Choice([], wanted, chosen, skipped, warnings)


def _no_image(found: FoundFiles, lost: dict[str, list[int]]) -> NoDicomError:
    count = found.others.total() + sum(map(len, lost.values()))
    kinds = ", ".join(f"{kind}: {number}" for kind, number in found.others.most_common(3) if number)
    what = f" ({kinds})" if kinds else ""
    return NoDicomError(
        f"expected a CT series but of {files(count)} here none is a DICOM image{what}; "
        f"{advice_for({*found.others}) or 'give the folder of a series'}"
    )


def _beside(chosen: Group, rest: list[Group], left: list[Group], series: str | None) -> list[str]:
    """Slices of the same series, or of CT series that no caller excluded, that are not in the volume."""
    parts = [group for group in rest if group.belongs_to(chosen)]
    found = [
        f"{files(len(group.slices))} of the same series left out: {' and '.join(varying)} differs"
        for group in parts
        if (varying := differences(chosen.first, group.first))
    ]
    others = [group for group in rest if group not in parts]
    if series is None:
        unplaced = [
            group
            for group in left
            if is_slice(group.first) and not group.belongs_to(chosen) and not _is_nameless(group)
        ]
        if count := len(others) + len({group.uid for group in unplaced}):
            found.append(f"{count} other CT series here cannot be used; ctflow inspect says why")
    nameless = sum(len(group.slices) for group in others if _is_nameless(group))
    if nameless and not _is_nameless(chosen):
        found.append(f"{files(nameless)} here without SeriesInstanceUID; none was taken as a slice of it")
    return found


def _reasons(wanted: list[Group], by_name: bool) -> list[str]:
    if len(wanted) == 1:
        return wanted[0].reasons + ([] if by_name else _mixture(wanted))
    usable = [group for group in wanted if not group.reasons]
    reasons = [] if by_name else _mixture(wanted)
    if len(usable) != 1 or reasons:
        reasons += [f"{group}: {'; '.join(group.reasons) or 'usable'}" for group in wanted]
    return reasons


def _mixture(groups: list[Group]) -> list[str]:
    """Why candidates must not be reduced to one silently: several patients, volumes or parts of a series."""
    reasons = []
    people = count_patients(group.first for group in groups)
    if people > 1:
        reasons.append(f"{people} patients in one place")
    usable = sum(not group.reasons for group in groups)
    if usable > 1:
        reasons.append(f"{usable} usable volumes, expected one")
    for group in groups:
        parts = [other for other in groups if group.belongs_to(other)]
        if parts[0] is group and len(parts) > 1:
            varying = sorted({name for part in parts[1:] for name in differences(group.first, part.first)})
            words = f"{' and '.join(varying)} varies" if varying else f"{len(parts)} parts"
            reasons.append(f"{words} within one series")
    return reasons
