"""Position, unit of length and meaning from a NIfTI header, which is refused where it contradicts itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.errors import SeriesError

_ADVICE = "Correct the header (nibabel: set_sform, set_qform, set_xyzt_units), or give the DICOM series"
_MILLIMETRES = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
_VOXEL_MM = (0.005, 50.0)  # from microscopy to the coarsest grid that still shows a body
# Of a voxel's side: float32 and quaternions err by 1e-6, resampling without a new header by more.
_AGREE = 0.01
_NO_NUMBERS = {"c": "complex numbers", "V": "colours (RGB)"}


def read_affine(header: Any, stored: Any) -> tuple[NDArray[np.float64], list[str]]:
    """Read the affine from voxel indices to RAS, mm, with warnings about the header.

    Args:
        header: nibabel's header of a NIfTI-1 or NIfTI-2 file.
        stored: the same header as stored in the file, without repairs.

    Raises:
        SeriesError: voxels are not real numbers, lengths are absurd, or sform, qform and pixdim disagree.
    """
    kind = header.get_data_dtype().kind
    if kind in _NO_NUMBERS:
        raise SeriesError(
            [f"the voxels are {_NO_NUMBERS[kind]}, expected CT numbers in HU"], "Give the CT volume itself"
        )
    _require_values(stored)
    affine, said = _affine(header, np.abs(np.asarray(stored["pixdim"][1:4], np.float64)))
    unit = str(header.get_xyzt_units()[0]) if int(header["xyzt_units"]) & 7 in (0, 1, 2, 3) else "?"
    if unit not in _MILLIMETRES:
        raise SeriesError(
            [f"the unit of length has code {int(header['xyzt_units']) & 7}, expected mm"], _ADVICE
        )
    affine[:3] *= _MILLIMETRES[unit]
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not (_VOXEL_MM[0] <= sides.min() and sides.max() <= _VOXEL_MM[1]):
        raise SeriesError(
            [
                f"voxels of {_by(sides)} mm in a header whose unit of length is '{unit}', "
                f"expected {_VOXEL_MM[0]:g} to {_VOXEL_MM[1]:g} mm"
            ],
            _ADVICE,
        )
    if unit != "mm":
        said.append(f"the header's unit of length is '{unit}': its voxels were taken as {_by(sides)} mm")
    intent = int(header["intent_code"])
    if intent:
        said.append(f"the header's intent ({header.get_intent()[0] or intent}) is not that of an image")
    return affine, said


def _require_values(stored: Any) -> None:
    """Refuse a type and a scale that contradict themselves; slope 0 alone means "not scaled"."""
    bits, expected = int(stored["bitpix"]), 8 * stored.get_data_dtype().itemsize
    if bits != expected:
        raise SeriesError([f"bitpix is {bits} and the type of the voxels has {expected} bits"], _ADVICE)
    slope, intercept = float(stored["scl_slope"]), float(stored["scl_inter"])
    unscaled = slope == 0 or math.isnan(slope)
    if math.isinf(slope) or (
        intercept and not math.isnan(intercept) if unscaled else not math.isfinite(intercept)
    ):
        raise SeriesError(
            [f"scl_slope {slope:g} and scl_inter {intercept:g} are no scale of the values"], _ADVICE
        )


def _affine(header: Any, stated: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[str]]:
    """Affine in the header's unit, from whichever of sform and qform is set; pixdim is `stated`."""
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if not sform and not qform:
        raise SeriesError(
            ["neither sform nor qform is set, so left, right and position of the voxels are unknown"], _ADVICE
        )
    affines = [(header.get_sform() if sform else header.get_qform()).astype(np.float64)]
    if sform and qform:
        affines.append(header.get_qform().astype(np.float64))
    first = affines[0]
    if not all(np.isfinite(a).all() for a in affines) or abs(np.linalg.det(first[:3, :3])) < 1e-12:
        raise SeriesError(["the affine places no voxel (its columns are not independent numbers)"], _ADVICE)
    sides = np.linalg.norm(first[:3, :3], axis=0)
    if (stated > 0).all() and (np.abs(stated / sides - 1) > _AGREE).any():
        raise SeriesError([f"pixdim says voxels of {_by(stated)} and the affine of {_by(sides)}"], _ADVICE)
    return first, _apart(affines, sides)


def _apart(affines: list[NDArray[np.float64]], sides: NDArray[np.float64]) -> list[str]:
    """Refuse an sform and qform that rotate, mirror or scale differently; warn if they differ by a shift."""
    first, last = affines[0], affines[-1]
    turned = float(np.abs((first - last)[:3, :3] / sides).max())
    if turned > _AGREE:
        raise SeriesError(
            [f"sform and qform place the next voxel {turned:.2g} voxels apart, so one of them is wrong"],
            _ADVICE,
        )
    shifted = float(np.linalg.norm((first - last)[:3, 3]))
    if shifted > sides.min() / 2:
        return [f"sform and qform place the volume {shifted:.4g} apart; sform was taken"]
    return []


def _by(sides: NDArray[np.float64]) -> str:
    return " × ".join(f"{side:.4g}" for side in sides)
