"""Read a user's own sinogram: an array file, and a geometry file in TOML that describes its rays."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctflow.errors import ProtocolError, UsageError, suggestion
from ctflow.geometry import Beam, CircularBeam, ConeBeam, ParallelBeam, ParallelBeam3D, VolumeGeometry
from ctflow.geometry._long_object import seen_height
from ctflow.rawdata.loading import Array, is_stack, load_array, load_stack, stack_files
from ctflow.registry import build, find_class
from ctflow.scan import Scan, find_axis, to_line_integrals
from ctflow.tables import ANYTHING, Flag, Real, Table, Text, Whole, read_toml, require_kind

_LENGTH = Real(0, 10_000, above=True)
_IMAGE = {"pixels": Whole(1, 8192), "pixel_mm": _LENGTH}
_KEYS = {
    "units": ANYTHING,
    **dict.fromkeys(("data", "dataset", "axes", "values", "flat", "dark"), Text()),
    "geometry": ANYTHING,
    "image": Table(_IMAGE, {"slice_mm": _LENGTH}),
    "find_axis": Flag(),
    "mu_water": Real(0.001, 1),
    "photons": Real(0, above=True),
}
_UNITS = {"length": "mm", "angle": "degrees"}
_ORDER = ("rows", "views", "bins")
_RADIANS = 6.5  # a list of many angles that spans less than this many degrees is in radians


def read_sinogram(file: Path) -> Scan:
    """Read a sinogram from a geometry file and the array that it names.

    ```toml
    units    = { length = "mm", angle = "degrees" }
    data     = "sinogram.npy"        # .npy, .npz, .tif, .h5 or .mat, beside this file; or a stack, see below
    axes     = "views bins"          # order of the array's axes; "views rows bins" where there are three
    values   = "line integrals"      # or "counts", with flat = and dark = (data sets, or files)
    geometry = { name = "fan-beam", angles = 360, pitch = 0.2, source_axis = 410.7, source_detector = 553.7 }
    image    = { pixels = 512, pixel_mm = 0.15 }                 # optional
    ```

    Further keys: `dataset` names the array in a file with several, `find_axis = true` finds the detector
    shift of a parallel beam, `mu_water` is in 1/mm and `photons` is the number incident on a bin. `angles` is
    a number of views, a list in degrees, or the name of a data set.

    A cone beam has rows of a panel, the first one lowest along z, and `row_pitch`. `data`, `flat` and `dark`
    may each be a stack of images, one view or exposure a file: a folder of TIFF files, or "view*.tif".

    ```toml
    data     = "projections"
    values   = "counts"
    flat     = "flats/*.tif"
    dark     = "dark.tif"
    axes     = "views -rows bins"    # with a minus: the first row is the highest, as in most images
    geometry = { name = "cone-beam", pitch = 0.2, row_pitch = 0.2, source_axis = 410, source_detector = 553 }
    ```

    Returns:
        Line integrals (rows, views, bins), dimensionless, rays in mm and rad.

    Raises:
        UsageError: a key is unknown or missing, or units are not mm and degrees.
        UnreadableError: the array is damaged.
        GeometryError: the array and the geometry disagree.
    """
    table: dict[str, Any] = read_toml(file, "the geometry file", UsageError)
    _require_keys(table)
    counts = _array(table, file, "dataset")
    notes = _gaps(file.parent / table["data"])
    axes = table.get("axes", "views bins" if counts.ndim == 2 else "views rows bins")
    y = _ordered(counts, axes)
    if table.get("values", "line integrals") == "counts":
        flat, dark = (_field(table, file, name, y) for name in ("flat", "dark"))
        notes += _starved(y, dark)
        y = to_line_integrals(y, flat, dark)
    y = y.flip([k for k, name in enumerate(_ORDER) if f"-{name}" in axes.split()])  # as its fields lie
    beam = _beam(table["geometry"], y, table, file)
    if table.get("find_axis", False):
        if not isinstance(beam, ParallelBeam):
            raise UsageError("find_axis = true is for parallel beams; give shift_bins of this one")
        beam = find_axis(y, beam)
    photons = table.get("photons")
    return Scan(
        y,
        beam,
        "a sinogram with its geometry file",
        _grid(table.get("image"), y, beam),
        photons=None if photons is None else torch.full((1, y.shape[-1]), float(photons)),
        mu_water=table.get("mu_water"),
        notes=tuple(notes),
    )


def _starved(counts: Tensor, dark: Tensor) -> list[str]:
    """A note where a ray has no more counts than without X-rays, so that its line integral is a guess."""
    number = int((counts <= dark).sum())
    return (
        [f"{number} counts are not above the dark field; their rays are taken for starved"] if number else []
    )


def _gaps(place: Path) -> list[str]:
    """A note where the numbers of a stack's files leave some out: a view may be missing."""
    if not is_stack(place):
        return []
    found = [int(digits[-1]) for file in stack_files(place) if (digits := re.findall(r"\d+", file.stem))]
    steps = [after - before for before, after in pairwise(sorted(found))]
    if not steps or min(steps) < 1 or max(steps) == min(steps):
        return []
    return [
        f"the numbers of the stack's files go up by {min(steps)} to {max(steps)}, as if files were missing; "
        "give angles as a list where views are left out"
    ]


def _require_keys(table: dict[str, Any]) -> None:
    for key in table:
        _known(key, _KEYS, "the geometry file has an unknown key")
    for key in table["image"] if isinstance(table.get("image"), dict) else ():
        _known(key, [*_IMAGE, "slice_mm"], "image has an unknown key")
    require_kind(table, Table(others=_KEYS), "the geometry file", UsageError)
    missing = [key for key in ("units", "data", "geometry") if key not in table]
    if missing:
        raise UsageError(
            f"the geometry file lacks {', '.join(missing)}; it needs units = {{ length = "
            '"mm", angle = "degrees" }, data = "file" and geometry = { name = ... }'
        )
    if table["units"] != _UNITS:
        raise UsageError(
            f"units are {table['units']!r}; give lengths in mm and angles in degrees, and say so: "
            'units = { length = "mm", angle = "degrees" }'
        )
    if table.get("values", "line integrals") not in ("line integrals", "counts"):
        raise UsageError(f'values is {table["values"]!r}; write "line integrals" or "counts"')


def _known(key: str, known: Collection[str], problem: str) -> None:
    if key not in known:
        raise UsageError(f"{problem} '{key}'; {suggestion(key, known)}")


def _array(table: dict[str, Any], file: Path, key: str) -> Tensor:
    values = _load(file.parent / table["data"], table.get(key))
    if values.dtype.kind not in "fiu":
        raise UsageError(
            f"the array {key} holds {values.dtype} where numbers are expected; save it as float32"
        )
    return torch.from_numpy(np.array(values, np.float32))


def _load(place: Path, name: str | None = None) -> Array:
    return load_stack(place) if is_stack(place) else load_array(place, name)


def _field(table: dict[str, Any], file: Path, key: str, y: Tensor) -> Tensor:
    """Mean of the exposures of a flat or dark field, (rows, 1, bins), from the same or another file."""
    if key not in table:
        raise UsageError(f"counts need {key} =: a data set of the data file, or a file beside it")
    beside = file.parent / table[key]
    inside = not beside.is_file() and not is_stack(beside)
    values = load_array(file.parent / table["data"], table[key]) if inside else _load(beside)
    field = torch.from_numpy(np.array(np.atleast_2d(values), np.float32))
    if len(y) == 1:
        field = field.reshape(-1, field.shape[-1]).mean(0, keepdim=True)
    elif field.ndim == 3:
        field = field.mean(0)
    if tuple(field.shape) not in {(1, y.shape[-1]), (len(y), y.shape[-1])}:
        raise UsageError(
            f"{key} is {tuple(values.shape)} and a view has {len(y)} rows of {y.shape[-1]} bins; give fields "
            "of the same panel, rows by bins"
        )
    return field[:, None]


def _ordered(values: Tensor, axes: str) -> Tensor:
    """Reorder an array whose axes have these names to (rows, views, bins)."""
    names = axes.replace("-", "").split()
    if len(names) != values.ndim or set(names) - set(_ORDER) or not {"views", "bins"} <= set(names):
        raise UsageError(
            f'axes = "{axes}" does not name the {values.ndim} axes of the array {tuple(values.shape)}; '
            'write for example "views bins" or "views rows bins"'
        )
    if "rows" not in names:
        names, values = ["rows", *names], values[None]
    return values.permute([names.index(name) for name in _ORDER]).contiguous()


def _beam(table: Any, y: Tensor, whole: dict[str, Any], file: Path) -> Beam:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise UsageError('geometry must be a table with a name: geometry = { name = "fan-beam", ... }')
    table = dict(table)
    if isinstance(table.get("angles"), str):
        table["angles"] = load_array(file.parent / whole["data"], table["angles"]).tolist()
    if isinstance(table.get("angles"), list):
        table["angles"] = _radians(table["angles"])
    table.setdefault("angles", y.shape[1])
    kind = find_class("geometry", table["name"])
    if isinstance(kind, type) and issubclass(kind, CircularBeam):
        table.setdefault("bins", y.shape[2])
        if "pitch" not in table:
            raise UsageError(
                "the geometry file lacks the detector's pitch in mm; add pitch = ... to geometry"
            )
        if issubclass(kind, ConeBeam | ParallelBeam3D):
            table.setdefault("rows", y.shape[0])
            if "row_pitch" not in table:
                raise UsageError(
                    "the geometry file lacks the distance of the panel's rows in mm; add row_pitch = ... to "
                    "geometry"
                )
    try:
        beam = build("geometry", table)
    except ProtocolError as error:
        raise UsageError(f"geometry file: {error}") from error
    assert isinstance(beam, Beam)
    return beam


def _radians(degrees: list[Any]) -> list[float]:
    try:
        angles = [float(angle) for angle in degrees]
    except (TypeError, ValueError):
        raise UsageError("angles must be numbers of degrees; write angles = [0.0, 0.5, ...]") from None
    if len(angles) > 8 and max(angles) - min(angles) < _RADIANS:
        raise UsageError(
            f"{len(angles)} angles span {max(angles) - min(angles):.2f} degrees, which looks like radians; "
            "give degrees"
        )
    return [math.radians(angle) for angle in angles]


def _grid(image: Any, y: Tensor, beam: Beam) -> VolumeGeometry | None:
    if image is None:
        return None
    n, pixel = image["pixels"], float(image["pixel_mm"])
    if beam.flat:
        return VolumeGeometry((len(y), n, n), (float(image.get("slice_mm", 1.0)), pixel, pixel))
    thickness, height = float(image.get("slice_mm", pixel)), 2 * seen_height(beam, n * pixel / 2)
    if height < thickness:
        raise UsageError(
            f"the panel sees {height:.1f} mm of an image of {n * pixel:.1f} mm in all views, less than one "
            f"slice of {thickness:.3g} mm; give fewer pixels, or leave image out"
        )
    return VolumeGeometry((int(height / thickness + 1e-6), n, n), (thickness, pixel, pixel))
