"""What the report's page shows: every slice as PNG, exact to 1 HU; as many in the page as mail takes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from ctflow.evidence.conformal import FLOOR_HU, nominal
from ctflow.geometry import VolumeGeometry
from ctflow.runs.figures import Figures
from ctflow.runs.support import PRIOR_SD_HU, SMOOTHED, Support
from ctflow.units import AIR_HU
from ctflow.volume import Volume

OFFSET = 32768 + 128
"""A PNG holds numbers + OFFSET, high bytes left, low ones right; 128 keeps air and water off byte borders."""

SD_STEP_HU = 0.1
"""HU per unit of the standard deviations."""

SUPPORT_STEP = 0.001
"""Share per unit of the support."""

FOLDER = "viewer"
"""Name of the folder beside the page that holds all slices."""

_UPRIGHT = 5  # coronal planes in the page, and as many sagittal ones
_FEWEST = 8  # slices of a volume whose upright planes show something
_IN_PAGE = 11_300_000  # characters of pictures in the page, in base64: with the rest of it below 12 MB
_STORED = (-32768, 32767 - 128)

Stack = NDArray[np.floating]


class Plane(TypedDict):
    """Pictures of one orientation that the page holds, by volume and place; a voxel's size is in mm."""

    name: str
    unit: str
    first: int
    of: int
    rows: int
    columns: int
    high: float
    wide: float
    places: list[int]
    images: list[list[str]]
    spreads: list[list[str]]


class SupportPicture(TypedDict):
    """The support of one axial slice, and what it was computed for."""

    place: int
    picture: str
    prior_sd_hu: float
    smoothed: int


class Viewer(TypedDict):
    """What the page holds; `run` names the pictures, so that it takes no others from beside it."""

    run: str
    names: list[str]
    main: int
    offset: int
    steps: dict[str, float]
    rising: bool
    planes: list[Plane]
    half_widths: list[float]
    meanings: list[str]
    floor: float
    support: SupportPicture | None


@dataclass(frozen=True)
class Pictures:
    """All pictures of a run.

    Args:
        viewer: what the page holds.
        images: every axial slice of every volume, PNG in base64.
        spreads: every axial slice of every standard deviation, as `images`; empty for volumes without.
    """

    viewer: Viewer
    images: list[list[str]]
    spreads: list[list[str]]

    def write(self, folder: Path) -> None:
        """Write all slices beside the page, where it finds them.

        As scripts, since a page that is opened from a disk may read neither files nor the pixels of pictures.

        Args:
            folder: of the page.
        """
        place = folder / FOLDER
        place.mkdir()
        index = f"window.ctflowRun = {json.dumps(self.viewer['run'])};\n"
        (place / "index.js").write_text(index, encoding="ascii")
        for kind, stacks in (("images", self.images), ("spreads", self.spreads)):
            for number, stack in enumerate(stacks):
                for k, picture in enumerate(stack):
                    text = f'ctflowPicture("{kind}-{number}-{k}", "{picture}");\n'
                    (place / f"{kind}-{number}-{k}.js").write_text(text, encoding="ascii")


def pictures_of(
    volumes: dict[str, Volume], spreads: dict[str, Volume], support: Support | None, figures: Figures
) -> Pictures:
    """All axial slices, and what of them the page holds, with coronal and sagittal planes of a high volume.

    Args:
        volumes: what is compared with, and the reconstruction of every method, HU.
        spreads: standard deviation over the samples, of the methods that drew several, HU.
        support: what the data determine of one slice; None where it is not known.
        figures: content of report.json.
    """
    grid = next(iter(volumes.values())).geometry
    images: list[Stack] = [torch.where(v.mask, v.data, AIR_HU).numpy() for v in volumes.values()]
    known = {name: torch.where(sd.mask, sd.data, 0.0).numpy() / SD_STEP_HU for name, sd in spreads.items()}
    drawn = [known.get(name) for name in volumes]

    def half_width(name: str) -> float:
        # Where the truth is not known, no interval can be seen to fail.
        seen = name in known and not figures["measured"]
        return nominal(figures["samples"][name]["number"]) if seen else 0.0

    depth = grid.shape[0]
    upright = _uprights(grid, images, drawn) if depth >= _FEWEST else []
    whole_images, whole_spreads = (
        [_encoded(stack, range(depth)) for stack in kind] for kind in (images, drawn)
    )
    every = whole_images + whole_spreads
    sizes = [sum(len(stack[k]) for stack in every if stack) for k in range(depth)]
    shown = _fitting(sizes, _IN_PAGE - sum(map(_size, upright)))
    first = int(figures["provenance"]["slices"].split(":")[0])
    digest = hashlib.sha256("".join(one for stack in every for one in stack).encode()).hexdigest()
    axial = _plane("Axial", "slice", first, grid, shown)
    axial["images"] = [[stack[k] for k in shown] for stack in whole_images]
    axial["spreads"] = [[stack[k] for k in shown if stack] for stack in whole_spreads]
    viewer: Viewer = {
        "run": digest[:32],
        "names": list(volumes),
        "main": list(volumes).index(figures["method"]),
        "offset": OFFSET,
        "steps": {"images": 1.0, "spreads": SD_STEP_HU, "support": SUPPORT_STEP},
        "rising": _rising(grid),
        "planes": [axial, *upright],
        "half_widths": [half_width(name) for name in volumes],
        "meanings": [figures["samples"][name]["meaning"] if name in known else "" for name in volumes],
        "floor": FLOOR_HU,
        "support": _support(support),
    }
    return Pictures(viewer, whole_images, whole_spreads)


def _fitting(sizes: Sequence[int], most: int) -> list[int]:
    """As many places, spread over all, as fit; one at least."""
    for number in range(len(sizes), 1, -1):
        shown = _spread_over(len(sizes), number)
        if sum(sizes[k] for k in shown) <= most:
            return shown
    return _spread_over(len(sizes), 1)


def _spread_over(length: int, number: int) -> list[int]:
    return [int((k + 0.5) * length / number) for k in range(number)]


def _rising(grid: VolumeGeometry) -> bool:
    """Whether the last slice lies nearest the head."""
    return grid.affine[2][0] > 0


def _uprights(grid: VolumeGeometry, images: Sequence[Stack], drawn: Sequence[Stack | None]) -> list[Plane]:
    """Coronal and sagittal planes, fewer of a volume so high that they take over half of the page."""

    def planes(number: int) -> list[Plane]:
        return [_upright(grid, axis, number, images, drawn) for axis in (1, 2)]

    found, most = planes(_UPRIGHT), _IN_PAGE // 2
    size = sum(map(_size, found))
    return found if size <= most else planes(max(1, _UPRIGHT * most // size))


def _size(plane: Plane) -> int:
    return sum(len(picture) for stack in plane["images"] + plane["spreads"] for picture in stack)


def _upright(
    grid: VolumeGeometry, axis: int, number: int, images: Sequence[Stack], drawn: Sequence[Stack | None]
) -> Plane:
    """Some coronal (axis 1) or sagittal (axis 2) planes, head up."""
    turned = (axis, 0, 3 - axis)

    def upright(stack: Stack | None) -> Stack | None:
        return None if stack is None else (stack[::-1] if _rising(grid) else stack).transpose(turned)

    shape, spacing = (tuple(values[a] for a in turned) for values in (grid.shape, grid.spacing))
    name, unit = (("Coronal", "row"), ("Sagittal", "column"))[axis - 1]
    across = VolumeGeometry(
        (int(shape[0]), int(shape[1]), int(shape[2])), (spacing[0], spacing[1], spacing[2])
    )
    plane = _plane(name, unit, 0, across, _spread_over(grid.shape[axis], number))
    plane["images"] = [_encoded(upright(stack), plane["places"]) for stack in images]
    plane["spreads"] = [_encoded(upright(stack), plane["places"]) for stack in drawn]
    return plane


def _plane(name: str, unit: str, first: int, grid: VolumeGeometry, shown: list[int]) -> Plane:
    """One without pictures yet."""
    (depth, rows, columns), (_, high, wide) = grid.shape, grid.spacing
    return {
        "name": name,
        "unit": unit,
        "first": first,
        "of": depth,
        "rows": rows,
        "columns": columns,
        "high": high,
        "wide": wide,
        "places": shown,
        "images": [],
        "spreads": [],
    }


def _support(support: Support | None) -> SupportPicture | None:
    if support is None:
        return None
    picture = base64.b64encode(number_png(support.share / SUPPORT_STEP)).decode()
    return {
        "place": support.place,
        "picture": picture,
        "prior_sd_hu": PRIOR_SD_HU,
        "smoothed": SMOOTHED,
    }


def _encoded(stack: Stack | None, places: Sequence[int]) -> list[str]:
    return [] if stack is None else [base64.b64encode(number_png(stack[k])).decode() for k in places]


def number_png(numbers: Stack) -> bytes:
    """An image as a PNG that holds its numbers, such as HU, rounded to whole ones.

    Args:
        numbers: (Y, X), -32768 to 32639; what lies beyond is clipped.

    Returns:
        A grey PNG (Y, 2 X); left half · 256 + right half = number + OFFSET. Halves compress better
        than colours.
    """
    from PIL import Image

    value = (np.clip(np.rint(numbers), *_STORED) + OFFSET).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([value >> 8, value & 255], -1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
