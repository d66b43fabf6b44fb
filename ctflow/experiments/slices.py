"""One slice of each of several patients, for the benches that reconstruct and for tuning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch

from ctflow.experiments.patients import patients
from ctflow.geometry import VolumeGeometry
from ctflow.volume import Volume

_SPACING_MM = 1.5
"""Pixel spacing of 256² slices whose own is not known: that of a field of view of 384 mm."""


def cases(split: str, number: int, data: Path | None = None) -> list[Volume]:
    """The volumes of `numbered`."""
    return [volume for _, volume in numbered(split, number, data)]


def numbered(split: str, number: int, data: Path | None = None) -> list[tuple[int, Volume]]:
    """The middle slice of a patient's series, or the only one, of several patients.

    Args:
        split: "train" or "validation".
        number: at most so many patients, spread over the split.
        data: folder of slices; see `patients`.

    Returns:
        The patient's number within the split, and a volume (1, 256, 256) in HU, with 1.5 mm pixels where the
        index does not know better.
    """
    folder = patients(data)
    found = []
    for entry in json.loads((folder / "index.json").read_text(encoding="utf-8")):
        if entry["split"] == split and entry["kind"] == "256":
            with np.load(folder / entry["file"]) as archive:
                stack = archive["hu"]
            spacing = entry["pixel_spacing_mm"]
            single = math.isnan(spacing)  # a file of several spacings holds one slice of each patient
            chosen = range(len(stack)) if single else [len(stack) // 2]
            found += [(stack[k].astype(np.float32), _SPACING_MM if single else spacing) for k in chosen]
    places = np.linspace(0, len(found) - 1, min(number, len(found))).round().astype(int)
    return [
        (place, _volume(torch.from_numpy(found[place][0])[None], found[place][1]))
        for place in places.tolist()
    ]


def _volume(hu: torch.Tensor, spacing: float) -> Volume:
    return Volume(hu, VolumeGeometry((1, hu.shape[1], hu.shape[2]), (spacing, spacing, spacing)), "HU")
