"""Read slices of 2DeteCT, a folder of TIFF images for every slice and mode."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctflow.errors import UnreadableError
from ctflow.geometry import FanBeam
from ctflow.rawdata.loading import load_tiff
from ctflow.scan import Scan, to_line_integrals

FILES = ("sinogram.tif", "flat1.tif", "flat2.tif", "dark.tif")
_PITCH, _SOURCE_AXIS, _SOURCE_DETECTOR = 0.0748, 431.019989, 529.000488  # mm
# Slices measured with the detector displaced by a bin.
_SHIFTED = (range(1, 2831), range(5521, 5871))


def read_2detect(folder: Path) -> Scan:
    """Read the counts of one slice and convert them to line integrals with its flat and dark fields.

    Returns:
        Line integrals (1, views, bins), dimensionless, of a flat fan in mm.

    Raises:
        UnreadableError: an image is missing, damaged or of another shape.

    References:
        Kiss, Coban, Batenburg, van Leeuwen and Lucka, Sci. Data 10 (2023).
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UnreadableError(f"a slice of 2DeteCT lacks {', '.join(missing)}; copy the whole folder")
    counts, *flats, dark = (_counts(folder / name) for name in FILES)
    if any(field.shape[-1] != counts.shape[-1] for field in (*flats, dark)):
        raise UnreadableError(
            "the flat or dark field and the sinogram have different bins; copy the folder again"
        )
    flat = torch.stack([field.mean(0) for field in flats]).mean(0)
    y = to_line_integrals(counts, flat, dark.mean(0))
    turn = len(y) - 1  # the last view repeats the first
    slice_number = _number(folder)
    shifted = any(slice_number in numbers for numbers in _SHIFTED)
    beam = FanBeam(
        tuple(math.pi - 2 * math.pi * view / turn for view in range(turn)),
        bins=y.shape[1],
        pitch=_PITCH,
        shift_bins=-1.0 if shifted else 0.0,
        source_axis=_SOURCE_AXIS,
        source_detector=_SOURCE_DETECTOR,
    )
    unknown = "the folder's name has no slice number: a detector displaced by a bin is not corrected"
    notes = () if slice_number else (unknown,)
    return Scan(y[None, :turn].contiguous(), beam, "2DeteCT", notes=notes)


def _counts(file: Path) -> Tensor:
    image = load_tiff(file)
    if image.ndim != 2:
        raise UnreadableError(f"expected an image (views, bins) and it is {image.shape}; copy it again")
    return torch.from_numpy(np.asarray(image, np.float32).copy())


def _number(folder: Path) -> int:
    """Slice number from the names of the folders, slice00001/mode2; 0 where they hold none."""
    for name in reversed(folder.absolute().parts):
        if found := re.fullmatch(r"slice0*(\d+)", name):
            return int(found[1])
    return 0
