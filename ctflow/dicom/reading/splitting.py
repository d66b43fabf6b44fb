"""Split a series into several volumes by thickness, phase and gaps, where a caller asks for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
from pydicom.dataset import Dataset

from ctflow.dicom.reading import grid
from ctflow.dicom.reading.files import Slice
from ctflow.dicom.reading.grouping import Group, image_type, number, position

Key = Callable[[Dataset], Hashable]

# What distinguishes images at one position, the most explicit first; an acquisition number alone would also
# split step-and-shoot series, so it counts only where positions repeat.
_PHASES = (
    "StackID",
    "TemporalPositionIndex",
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ContentTime",
    "TriggerTime",
)


def split_series(group: Group) -> list[Group]:
    """Split a sorted series into parts that could each be a regular volume; one part if it is one already."""
    parts = [
        piece for part in _by(group.slices, _make) for phase in _phases(part) for piece in _gapless(phase)
    ]
    return [Group(part) for part in parts]


def _make(header: Dataset) -> Hashable:
    thickness = number(header, "SliceThickness")
    return None if thickness is None else round(thickness, 3), tuple(image_type(header))


def _by(slices: list[Slice], key: Key) -> list[list[Slice]]:
    parts: dict[Hashable, list[Slice]] = {}
    for item in slices:
        parts.setdefault(key(item.header), []).append(item)
    return list(parts.values())


def _phases(slices: list[Slice]) -> list[list[Slice]]:
    """Split slices by the first attribute that leaves one image at every position, if there is one."""
    if len(grid.grouped_by_position(slices)) == len(slices):
        return [slices]
    for name in _PHASES:
        parts = _by(slices, lambda header, name=name: str(header.get(name)))  # type: ignore[misc]
        if all(len(grid.grouped_by_position(part)) == len(part) for part in parts):
            return parts
    return [slices]


def _gapless(slices: list[Slice]) -> list[list[Slice]]:
    """Split slices where the distance is larger than the median one."""
    if len(slices) < 3 or len(grid.grouped_by_position(slices)) < len(slices):
        return [slices]
    axis = grid.slice_normal(slices[0])
    steps = np.diff([position(item.header) @ axis for item in slices])
    cuts = np.flatnonzero(steps > (1 + grid.SPACING_REFUSED) * np.median(steps)) + 1
    return [slices[a:b] for a, b in zip([0, *cuts], [*cuts, len(slices)], strict=True)]
