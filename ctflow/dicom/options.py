"""Repairs that a reader may make; without them, anything unusual is refused."""

from __future__ import annotations

from dataclasses import dataclass

from ctflow.errors import UsageError
from ctflow.plausibility import scale
from ctflow.units import MU_WATER

_CHOICES = {
    "fill": ("", "linear"),
    "tilt": ("refuse", "resample", "in-plane"),
    "on_bad_file": ("error", "skip"),
}


@dataclass(frozen=True)
class ReadOptions:
    """Repairs that a caller asks for by name; the warnings of the volume say what was done.

    Args:
        fill: "linear" interpolates missing slices between their neighbours; "" refuses gaps.
        split: divide a series by slice thickness, phase and gaps; each part is a volume to choose from.
        tilt: a stack sheared by a tilted gantry: "refuse" it, "resample" it to a grid with perpendicular
            axes, or keep its slices "in-plane" on their own, sheared, grid.
        on_bad_file: files that cannot be read and slices that cannot be placed: "error", or "skip" where the
            rest still is one volume.
        force: read files that lack the marker of a DICOM file but hold an image.
        unit: unit of the stored numbers where they are not HU, see `ctflow.plausibility.scale`; "HU" accepts
            numbers that do not look like HU as they are.

    Raises:
        UsageError: a value is not one of these.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((6, 16, 16), (3.0, 1.5, 1.5))  # (Z, Y, X), mm
        >>> volume = ct.Volume(torch.arange(1536.0).reshape(grid.shape), grid, "HU")
        >>> files = list(ct.write_series(volume, "ramp", like=None, description="A ramp"))
        >>> files[1].unlink()  # a gap, which is refused
        >>> ct.read_series("ramp", options=ct.ReadOptions(fill="linear")).data.shape
        torch.Size([6, 16, 16])
    """

    fill: str = ""
    split: bool = False
    tilt: str = "refuse"
    on_bad_file: str = "error"
    force: bool = False
    unit: str = ""

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                words = ", ".join(f"'{word}'" for word in known if word)
                raise UsageError(f"{name.replace('_', '-')} '{value}' is unknown; expected {words}")
        scale(self.unit or "HU", MU_WATER)


AS_IT_IS = ReadOptions()
