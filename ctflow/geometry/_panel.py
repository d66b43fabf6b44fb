"""Detectors of several rows: their shape, and their coverage of the height of the volume."""

from __future__ import annotations

import math

from ctflow.errors import GeometryError
from ctflow.geometry._beam import Beam


def panel_shape(rows: int | None, beam: Beam) -> tuple[int, int, int]:
    """(rows, views, bins) of a fitted beam with a panel."""
    assert rows is not None  # the beam is fitted
    assert beam.bins is not None
    return rows, len(beam.views), beam.bins


def require_rows(rows: int, row_pitch: float, shadow: float) -> None:
    """Refuse a panel that is lower than the shadow of the volume.

    Args:
        rows: detector rows.
        row_pitch: distance between row centres, mm.
        shadow: height on the detector that must be seen, mm.

    Raises:
        GeometryError: the panel truncates the volume; the message says what suffices.
    """
    if rows * row_pitch < shadow * (1 - 1e-6):
        raise GeometryError(
            f"the detector rows cover {rows * row_pitch:.1f} mm and the volume casts {shadow:.1f} mm at the "
            f"axis: {100 * (1 - rows * row_pitch / shadow):.2g} % is truncated; give rows >= "
            f"{math.ceil(shadow / row_pitch - 1e-6)} at row_pitch {row_pitch:.4g} mm, "
            "fewer slices, or leave rows out"
        )
