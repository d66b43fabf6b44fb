"""A volume: voxels with their grid, unit and mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from ctflow.errors import UnitError
from ctflow.geometry import VolumeGeometry
from ctflow.system.notebook import spaced, thumbnails
from ctflow.units import AIR_HU, MU_WATER, SOFT_TISSUE_HU, attenuation_to_hu, hu_to_attenuation


class Origin(Protocol):
    """What a volume was read from: `ctflow.dicom` and `ctflow.nifti` have one each."""

    @property
    def sha256(self) -> str:
        """Digest that tells one series from another."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What a reader of figures must know of it."""
        ...

    def __getitem__(self, part: slice, /) -> Self:
        """That of some of the slices."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """CT voxels with geometry, unit and mask.

    Shapes: data (Z, Y, X), in `unit`; mask (Z, Y, X), True where the scanner reconstructed something.

    Args:
        data: voxels.
        geometry: grid of the voxels, mm.
        unit: "HU" or "1/mm".
        mask: voxels inside the field of view that are not padding; all by default.
        mu_water: attenuation of water, 1/mm, that relates the two units.
        source: the series that the volume came from, for `write_series`; never printed.

    Raises:
        UnitError: the unit is unknown, or the shapes disagree.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> hu = torch.zeros(2, 4, 4)
        >>> water = ct.Volume(hu, ct.VolumeGeometry((2, 4, 4), (3.0, 1.5, 1.5)), "HU")
        >>> water.to_attenuation()
        <Volume of 2 × 4 × 4 voxels of 3 × 1.5 × 1.5 mm (z, y, x), 0.0192 to 0.0192 1/mm (0 to 0 HU)>
    """

    data: Tensor
    geometry: VolumeGeometry
    unit: str
    mask: Tensor = field(default=None)  # type: ignore[assignment]
    mu_water: float = MU_WATER
    source: Origin | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.unit not in ("HU", "1/mm"):
            raise UnitError(f"unit '{self.unit}' is unknown; give 'HU' or '1/mm'")
        if self.mask is None:
            object.__setattr__(self, "mask", torch.ones_like(self.data, dtype=torch.bool))
        if tuple(self.data.shape) != self.geometry.shape or self.mask.shape != self.data.shape:
            raise UnitError(
                f"data {tuple(self.data.shape)}, mask {tuple(self.mask.shape)} and geometry "
                f"{self.geometry.shape} must be one shape (Z, Y, X)"
            )

    def __repr__(self) -> str:
        low, high = (f"{float(end):.4g}" for end in self.data.aminmax())
        z, y, x = self.geometry.shape
        spacing = " × ".join(f"{side:.4g}" for side in self.geometry.spacing)
        values = f"{low} to {high} {self.unit}"
        if self.unit == "1/mm":
            values += " ({:.0f} to {:.0f} HU)".format(*self._hu().aminmax())
        return f"<Volume of {z} × {y} × {x} voxels of {spacing} mm (z, y, x), {values}>"

    def _repr_html_(self) -> str:
        pictures = [(f"slice {k} of {len(self.data)}", self._hu()[k]) for k in spaced(len(self.data))]
        return thumbnails(repr(self), pictures, SOFT_TISSUE_HU, "HU")

    def _hu(self) -> Tensor:
        return self.data if self.unit == "HU" else attenuation_to_hu(self.data.float(), self.mu_water)

    def to_attenuation(self, mu_water: float | None = None) -> Volume:
        """Convert this volume to 1/mm: not negative, and zero (air) outside the mask.

        Args:
            mu_water: attenuation of water, 1/mm; that of the volume by default.
        """
        if self.unit == "1/mm":
            return self
        mu_water = mu_water or self.mu_water
        mu = hu_to_attenuation(self.data.float(), mu_water).clamp_min(0) * self.mask
        return replace(self, data=mu, unit="1/mm", mu_water=mu_water)

    def to_hu(self) -> Volume:
        """Convert this volume to HU, with air (-1000 HU) outside the mask."""
        if self.unit == "HU":
            return self
        hu = attenuation_to_hu(self.data.float(), self.mu_water)
        return replace(self, data=torch.where(self.mask, hu, AIR_HU), unit="HU")

    def with_data(self, data: Tensor) -> Volume:
        """Replace the voxels, (Z, Y, X), in the same unit and on the same grid."""
        return replace(self, data=data.detach().to("cpu", torch.float32))

    def slices(self, start: int, stop: int) -> Volume:
        """Return the slices start to stop - 1.

        Raises:
            GeometryError: the range is empty or leaves the volume.
        """
        geometry = self.geometry.slices(start, stop)
        source = self.source[start:stop] if self.source is not None else None
        return replace(
            self, data=self.data[start:stop], mask=self.mask[start:stop], geometry=geometry, source=source
        )
