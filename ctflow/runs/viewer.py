"""What the report's page needs to show every volume: slices of three planes as PNG, exact to 1 HU."""

from __future__ import annotations

import base64
import io
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from ctflow.evidence.conformal import nominal
from ctflow.geometry import VolumeGeometry
from ctflow.runs.figures import Figures
from ctflow.units import AIR_HU
from ctflow.volume import Volume

OFFSET = 32768 + 128
"""A PNG holds HU + OFFSET, high bytes left, low ones right; 128 keeps water and air off a byte border."""

_MAX_SLICES = 12
_UPRIGHT = 5  # coronal planes, and as many sagittal ones
_FEWEST = 8  # slices of a volume whose upright planes show something
_MAX_BYTES = 8_500_000  # of PNG data: with base64 and the page itself, below 12 MB
_PNG_HU = (-OFFSET, 65535 - OFFSET)

Stack = NDArray[np.floating]


class Plane(TypedDict):
    """Pictures of one orientation: what a place is called, where the pictures lie, and they, by volume."""

    name: str
    unit: str
    places: list[int]
    of: int
    rows: int
    columns: int
    aspect: str
    images: list[list[str]]
    spreads: list[list[str]]


class Viewer(TypedDict):
    """What the page needs to show every volume."""

    names: list[str]
    main: int
    offset: int
    planes: list[Plane]
    half_widths: list[float]


def viewer_of(volumes: dict[str, Volume], spreads: dict[str, Volume], figures: Figures) -> Viewer:
    """Axial slices spread over the volume, and coronal and sagittal ones where it is high enough.

    Args:
        volumes: what is compared with, and the reconstruction of every method, HU.
        spreads: standard deviation over the samples, of the methods that drew several, HU.
        figures: content of report.json.
    """
    grid = next(iter(volumes.values())).geometry
    images = [torch.where(volume.mask, volume.data, AIR_HU).numpy() for volume in volumes.values()]
    known = {name: torch.where(sd.mask, sd.data, 0.0).numpy() for name, sd in spreads.items()}
    drawn = [known.get(name) for name in volumes]
    everything = [*images, *known.values()]

    def half_width(name: str) -> float:
        # Where the truth is not known, no interval can be seen to fail.
        seen = name in known and not figures["measured"]
        return nominal(figures["samples"][name]["number"]) if seen else 0.0

    depth = grid.shape[0]
    upright = [_upright(grid, axis, images, drawn) for axis in (1, 2)] if depth >= _FEWEST else []
    spent = sum(
        len(one) for plane in upright for stack in plane["images"] + plane["spreads"] for one in stack
    )
    each = sum(len(hu_png(stack[depth // 2])) for stack in everything)
    number = max(1, min(_MAX_SLICES, depth, (_MAX_BYTES - spent * 3 // 4) // each))
    first = int(figures["provenance"]["slices"].split(":")[0])
    return {
        "names": list(volumes),
        "main": list(volumes).index(figures["method"]),
        "offset": OFFSET,
        "planes": [
            _plane("Axial", "slice", grid, _spread_over(depth, number), first, images, drawn),
            *upright,
        ],
        "half_widths": [half_width(name) for name in volumes],
    }


def _spread_over(length: int, number: int) -> list[int]:
    return [int((k + 0.5) * length / number) for k in range(number)]


def _upright(grid: VolumeGeometry, axis: int, images: list[Stack], drawn: list[Stack | None]) -> Plane:
    """Coronal (axis 1) or sagittal (axis 2) planes, head up."""
    kept = (0, 3 - axis)
    turned = (axis, *kept)
    rising = grid.affine[2][0] > 0  # the last slice lies nearest the head

    def upright(stack: Stack) -> Stack:
        return (stack[::-1] if rising else stack).transpose(turned)

    shape, spacing = (tuple(values[a] for a in turned) for values in (grid.shape, grid.spacing))
    name, unit = (("Coronal", "row"), ("Sagittal", "column"))[axis - 1]
    return _plane(
        name,
        unit,
        VolumeGeometry((int(shape[0]), int(shape[1]), int(shape[2])), (spacing[0], spacing[1], spacing[2])),
        _spread_over(grid.shape[axis], _UPRIGHT),
        0,
        [upright(stack) for stack in images],
        [None if stack is None else upright(stack) for stack in drawn],
    )


def _plane(
    name: str,
    unit: str,
    grid: VolumeGeometry,
    shown: list[int],
    first: int,
    images: list[Stack],
    drawn: list[Stack | None],
) -> Plane:
    (depth, rows, columns), (_, high, wide) = grid.shape, grid.spacing

    def pictures(stack: Stack | None) -> list[str]:
        return [] if stack is None else [base64.b64encode(hu_png(stack[k])).decode() for k in shown]

    return {
        "name": name,
        "unit": unit,
        "places": [first + k for k in shown],
        "of": depth,
        "rows": rows,
        "columns": columns,
        "aspect": f"{columns * wide:.6g} / {rows * high:.6g}",
        "images": [pictures(stack) for stack in images],
        "spreads": [pictures(stack) for stack in drawn],
    }


def hu_png(hu: Stack) -> bytes:
    """A slice as a PNG that holds its CT numbers exactly, rounded to 1 HU.

    Args:
        hu: CT numbers (Y, X).

    Returns:
        A grey PNG (Y, 2 X); left half · 256 + right half = HU + OFFSET. Halves compress better than colours.
    """
    from PIL import Image

    value = (np.clip(np.rint(hu), *_PNG_HU) + OFFSET).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([value >> 8, value & 255], -1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
