"""Group slices into candidate volumes; one SeriesInstanceUID may hold several."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage

from ctflow.dicom.reading.files import Slice
from ctflow.dicom.reading.frames import MULTI_FRAME

# Values of Modality (PS3.3 C.7.3.1.1.1, those found with CT); another text might be anything.
_MODALITIES = set("CR CT DX MG MR NM OT PT RF RTDOSE RTPLAN RTSTRUCT SC SEG SR US XA".split())  # noqa: SIM905
_FARTHEST_MM = 1e5
_PIXEL_MM = (1e-4, 100.0)

# How many numbers each attribute holds.
_PLACES = {"PixelSpacing": 2, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}
_NUMBERS = {"Rows": 1, "Columns": 1, "BitsAllocated": 1, "PixelRepresentation": 1, "BitsStored": 1, **_PLACES}


@dataclass(repr=False)
class Group:
    """Slices that may form one volume, with reasons to refuse them and warnings.

    `beside` says which slices of the series are not included.
    """

    slices: list[Slice]
    uid: str = ""
    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)

    @property
    def first(self) -> Dataset:
        """Header of the first slice."""
        return self.slices[0].header

    @property
    def number(self) -> int | None:
        """SeriesNumber."""
        value = number(self.first, "SeriesNumber")
        return None if value is None else int(value)

    @property
    def frames(self) -> int:
        """Number of frames of reference that the slices name, including an empty one."""
        return len({_frame(item.header) for item in self.slices})

    def is_called(self, name: str | None) -> bool:
        """Whether `name` is the series number or the name of this group; None fits any."""
        return name is None or name in (str(self.number), self.uid)

    def belongs_to(self, other: Group) -> bool:
        """Whether both are parts of one series."""
        return bool(self.first.SeriesInstanceUID == other.first.SeriesInstanceUID)

    def __str__(self) -> str:
        dy, dx = spacing(self.first)
        name = "without number" if self.number is None else self.number
        return (
            f"series {name} [{self.uid}]: {len(self.slices)} slices of "
            f"{self.first.Rows} × {self.first.Columns}, {dy:.4g} × {dx:.4g} mm"
        )


def number(header: Dataset, name: str) -> float | None:
    """A number from the header; None where it is absent, empty, multi-valued or not finite."""
    try:
        value = float(header[name].value)
    except Exception:  # damaged elements fail to convert in many ways
        return None
    return value if np.isfinite(value) else None


def position(header: Dataset) -> NDArray[np.float64]:
    """ImagePositionPatient: centre of the first pixel in patient coordinates (LPS), mm."""
    return np.array([float(value) for value in header.ImagePositionPatient])


def orientation(header: Dataset) -> NDArray[np.float64]:
    """ImageOrientationPatient, (2, 3): direction along a row (columns grow), direction along a column."""
    return np.array([float(value) for value in header.ImageOrientationPatient]).reshape(2, 3)


def spacing(header: Dataset) -> tuple[float, float]:
    """PixelSpacing: distance between rows, distance between columns, mm."""
    dy, dx = header.PixelSpacing
    return float(dy), float(dx)


def modality(header: Dataset) -> str:
    """Modality if the standard defines it, "another" for other texts, "" where it is missing."""
    text = str(header.get("Modality") or "").strip()
    return text if text in _MODALITIES else "another" * bool(text)


def image_type(header: Dataset) -> list[str]:
    """ImageType without the spaces that some writers leave in it."""
    value = header.get("ImageType") or []
    return [str(item).strip() for item in ([value] if isinstance(value, str) else value)]


def why_unusable(header: Dataset) -> str | None:
    """Why a file is not a slice of a CT volume; None if it is one."""
    kind = modality(header)
    image = UID(header.SOPClassUID).name or "SOPClassUID missing"
    image = "an unknown kind of image" if image == header.SOPClassUID else image  # not a text of the header
    multi_frame = header.SOPClassUID in MULTI_FRAME
    missing = [name for name in _NUMBERS if header.get(name) in (None, "")]
    found = {
        f"Modality {kind or 'missing'}, expected CT": kind != "CT",
        f"{image}, expected CT Image Storage": header.SOPClassUID != CTImageStorage and not multi_frame,
        "several frames in one CT Image, expected one": not multi_frame
        and int(header.get("NumberOfFrames") or 1) != 1,
        "RGB page (SamplesPerPixel is not 1), expected CT numbers": (header.get("SamplesPerPixel") or 1) != 1,
        "localizer, expected axial slices": image_type(header)[2:3] == ["LOCALIZER"],
        f"{', '.join(missing)} missing": bool(missing),
    }
    first = next((reason for reason, holds in found.items() if holds), None)
    return first or _malformed(header)


def _malformed(header: Dataset) -> str | None:
    wrong = [name for name, count in _NUMBERS.items() if not _numbers(header, name, count)]
    if wrong:
        return f"{', '.join(wrong)} without sensible numbers"
    sizes = [int(header[name].value) for name in _NUMBERS if name not in _PLACES][:4]
    if not all(_PIXEL_MM[0] <= step <= _PIXEL_MM[1] for step in spacing(header)):
        return f"PixelSpacing is not between {_PIXEL_MM[0]:g} and {_PIXEL_MM[1]:g} mm"
    if min(sizes[:2]) < 1 or sizes[2] not in (8, 16, 32) or sizes[3] not in (0, 1):
        return f"Rows, Columns, BitsAllocated, PixelRepresentation {sizes} are not those of a CT image"
    row, column = orientation(header)
    lengths = np.linalg.norm([row, column], axis=1)
    if abs(row @ column) > 1e-3 or np.abs(lengths - 1).max() > 1e-3:
        return "row and column directions are not two perpendicular unit vectors"
    return None


def _numbers(header: Dataset, name: str, count: int) -> bool:
    """Whether an attribute holds `count` finite numbers."""
    value = header[name].value
    try:
        values = [float(item) for item in ([value] if count == 1 else value)]
    except (TypeError, ValueError):
        return False
    return len(values) == count and bool(np.isfinite(values).all()) and np.abs(values).max() <= _FARTHEST_MM


def is_slice(header: Dataset) -> bool:
    """Whether an image should be a slice of a CT volume, usable or not: no localizer or other object."""
    kind = UID(str(header.SOPClassUID))
    known = kind.name != kind or kind.is_private  # a damaged UID is neither
    other = kind.is_valid and known and kind not in (CTImageStorage, *MULTI_FRAME)
    try:
        placed = modality(header) == "CT" and bool(header.get("ImagePositionPatient"))
        return (not other or placed) and image_type(header)[2:3] != ["LOCALIZER"]
    except Exception:  # a damaged value surfaces when it is first converted, as any of several types
        return True


def group_slices(slices: Sequence[Slice]) -> tuple[list[Group], list[Group]]:
    """Group slices into candidate CT volumes, and images that are not slices of one by series and reason."""
    candidates: list[Slice] = []
    left: dict[tuple[str, str], Group] = {}
    for item in slices:
        reason = _reason(item.header)
        if reason is None:
            candidates.append(item)
        else:
            key = (str(item.header.SeriesInstanceUID), reason)
            left.setdefault(key, Group([], short_hash(key[0]), [reason])).slices.append(item)
    return _grouped(candidates), [*left.values()]


def _reason(header: Dataset) -> str | None:
    try:
        return why_unusable(header)
    except Exception:  # a damaged value surfaces when it is first converted, as any of several types
        return "the header holds values that cannot be converted"


def _grouped(slices: list[Slice]) -> list[Group]:
    """Group slices, regardless of order and file names."""
    loose = _without_frame(slices)
    groups: list[Group] = []
    for item in sorted(slices, key=lambda item: item.uid):
        ignored = {"frame of reference"} if str(item.header.SeriesInstanceUID) in loose else set()
        home = next((g for g in groups if {*differences(g.first, item.header)} <= ignored), None)
        if home is None:
            groups.append(home := Group([]))
        home.slices.append(item)
    groups.sort(key=lambda group: (-len(group.slices), group.slices[0].uid))
    name_groups(groups)
    return groups


def _without_frame(slices: list[Slice]) -> set[str]:
    """Series whose frames of reference distinguish nothing: at most one, or one for nearly every slice."""
    frames: dict[str, Counter[str]] = {}
    for item in slices:
        frames.setdefault(str(item.header.SeriesInstanceUID), Counter())[_frame(item.header)] += 1
    return {
        series
        for series, found in frames.items()
        if len({*found} - {""}) <= 1 or 2 * len(found) > found.total()
    }


def _frame(header: Dataset) -> str:
    return str(header.get("FrameOfReferenceUID") or "")


def name_groups(groups: list[Group]) -> None:
    """Name groups after their series; a series that holds several volumes gives each its own name."""
    seen: Counter[str] = Counter()
    for group in groups:
        series = str(group.first.SeriesInstanceUID)
        group.uid = short_hash(f"{series}/{seen[series]}" if seen[series] else series)
        seen[series] += 1


def files(count: int) -> str:
    """A number of files in words."""
    return f"{count} file{'s' * (count != 1)}"


def listed(items: Sequence[object], most: int = 5) -> str:
    """The first of many items as text: "1, 2, 3 and 272 more"."""
    more = len(items) - most
    return ", ".join(map(str, items[:most])) + (f" and {more} more" if more > 0 else "")


def short_hash(text: str) -> str:
    """First 8 hexadecimal digits of the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(one: Dataset, other: Dataset) -> list[str]:
    """Properties that differ between two slices and that one volume must share."""
    return [
        name
        for name, differs in (
            ("series", one.SeriesInstanceUID != other.SeriesInstanceUID),
            ("frame of reference", _frame(one) != _frame(other)),
            ("orientation", np.abs(orientation(one) - orientation(other)).max() > 1e-3),
            ("matrix size", (one.Rows, one.Columns) != (other.Rows, other.Columns)),
            ("pixel spacing", not np.allclose(spacing(one), spacing(other), rtol=1e-4, atol=0)),
            ("image type", image_type(one)[2:3] != image_type(other)[2:3]),
        )
        if differs
    ]
