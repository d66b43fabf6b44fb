"""A scanner that measures an object, and not the pixels that will show it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ctflow.errors import ProtocolError
from ctflow.geometry import Beam, VolumeGeometry
from ctflow.noise import Noise
from ctflow.operators import LinearOperator, Radon
from ctflow.problem import InverseProblem
from ctflow.scanner import _xray
from ctflow.scanner._sampling import centred, pooled, refined, refined_grid, within
from ctflow.scanner.scatter import REFERENCE_MM, scatter_of
from ctflow.system.randomness import normal, seeded
from ctflow.tables import Listed, Real, Text, Whole, kinds_of, require_kind
from ctflow.units import hu_to_attenuation

__all__ = ["Scanner"]

_PLACES = 3  # of the source, and of the gantry, that stand for a spot and an exposure
_LEAST = 1e-30  # share of the signal: what is less is nothing
_MOST_VOXELS = 2**29  # of the object, 2 GiB in single precision
_PARTS = 8  # of a pixel's side, where a rod's edge crosses it
_SOFT_HU = 100.0  # what is denser holds bone, or iodine
_PLACE = Listed(Real(-1000, 1000), 2, 2)  # (x, y), mm


@dataclass(frozen=True)
class Scanner:
    """How a scanner's data differ from line integrals through the pixels of images; by default not at all.

    The object is the series on a finer grid; a bin's signal is the mean over rays within it, over the place
    of the source and over the turn of the gantry during a view, all of them intensities. A spectrum hardens
    in water and in what is denser than soft tissue; the scanner corrects for water, as scanners do. Then come
    cross-talk, scatter, the detector's gains, and the photons of each bin.

    Shapes: images (Z, Y, X) in HU -> data (rows, views, bins), dimensionless.

    Args:
        fine: pixels of the object along a side of an image's pixel (and along z where rays cross slices).
        rays: rays across a bin (and across a row of a panel).
        exposure_degrees: angle by which the gantry turns during a view.
        focal_spot_mm: width of the source along the detector row, mm; none of a parallel beam.
        crosstalk: share of a bin's signal that each of its two neighbours receives.
        scatter: share of scattered photons in the signal behind 200 mm of water over the whole detector, past
            the scanner's own grid and correction. T ln(1 / T) scatters of what passes, T, and it spreads over
            a quarter of the detector.
        gain_error: standard deviation of the bins' gains after calibration, relative: rings.
        bowtie_mm: diameter of a cylinder of water that the filter before the patient makes as dark at the
            rim as in the middle, mm; 0 for none. It takes photons, and does not harden them.
        kvp: peak voltage of the tube, 80, 100, 120 or 140 kV; 0 for photons of one energy.
        dense: what hardens in tissue above 100 HU, "bone" or "iodine".
        metal: diameter of a rod along z, mm; 0 for none.
        metal_at: its place (x, y) from the middle of the images, y against the row, mm.
        metal_of: "titanium" or "steel".
        movement: by how much the object moves from the first view to the last, (x, y), mm.

    Raises:
        ProtocolError: a number lies outside its range, or a material is unknown.

    References:
        Ohnesorge et al., Eur. Radiol. 9 (1999) (scatter); Herman, Phys. Med. Biol. 24 (1979) (correction for
        water); De Man et al., Med. Phys. 26 (1999) (rays within a bin, spectrum, scatter: what makes the
        artefacts of metal).

    Examples:
        >>> import ctflow as ct
        >>> print(ct.Scanner(rays=3, kvp=120, scatter=0.05))
        Simulated scanner: 3 rays across a bin, 120 kV, bone above 100 HU, corrected for water, scatter 0.05.
    """

    fine: Annotated[int, Whole(1, 8)] = 1
    rays: Annotated[int, Whole(1, 16)] = 1
    exposure_degrees: Annotated[float, Real(0, 30)] = 0.0
    focal_spot_mm: Annotated[float, Real(0, 20)] = 0.0
    crosstalk: Annotated[float, Real(0, 0.3)] = 0.0
    scatter: Annotated[float, Real(0, 0.9)] = 0.0
    gain_error: Annotated[float, Real(0, 0.2)] = 0.0
    bowtie_mm: Annotated[float, Real(0, 1000)] = 0.0
    kvp: Annotated[int, Whole(0)] = 0
    dense: Annotated[str, Text("bone|iodine", "'bone' or 'iodine'")] = "bone"
    metal: Annotated[float, Real(0, 200)] = 0.0
    metal_at: Annotated[tuple[float, float], _PLACE] = (0.0, 0.0)
    metal_of: Annotated[str, Text("titanium|steel", "'titanium' or 'steel'")] = "titanium"
    movement: Annotated[tuple[float, float], _PLACE] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name, kind in kinds_of(type(self)).items():
            require_kind(getattr(self, name), kind, f"scanner: {name}", depth=1)
        for name in ("metal_at", "movement"):  # files have lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.kvp:
            _xray.signal(self.kvp)
        if not self.metal and (self.metal_at != (0, 0) or self.metal_of != "titanium"):
            raise ProtocolError("scanner: metal_at and metal_of tell of a rod, and there is none; give metal")
        if not self.kvp and self.dense != "bone":
            raise ProtocolError(f"scanner: {self.dense} hardens a spectrum, and there is none; give kvp")

    def __str__(self) -> str:
        said = [
            f"pixels of the object 1/{self.fine} of the images'" if self.fine > 1 else "",
            f"{self.rays} rays across a bin" if self.rays > 1 else "",
            f"{self.exposure_degrees:.3g}° a view" if self.exposure_degrees else "",
            f"a focal spot of {self.focal_spot_mm:.3g} mm" if self.focal_spot_mm else "",
            f"{self.kvp} kV, {self.dense} above {_SOFT_HU:.0f} HU, corrected for water" if self.kvp else "",
            f"cross-talk {self.crosstalk:.3g}" if self.crosstalk else "",
            f"scatter {self.scatter:.3g}" if self.scatter else "",
            f"gain errors {self.gain_error:.3g}" if self.gain_error else "",
            f"a bowtie for {self.bowtie_mm:.0f} mm" if self.bowtie_mm else "",
            f"a rod of {self.metal_of}, {self.metal:.3g} mm" if self.metal else "",
            f"a movement by {math.hypot(*self.movement):.3g} mm" if any(self.movement) else "",
        ]
        return f"Simulated scanner: {', '.join(filter(None, said)) or 'ideal'}."

    def require_fit(self, A: LinearOperator, mu_water: float) -> Radon:
        """The operator, if the scanner can measure by its beam.

        Args:
            A: Radon operator of the images.
            mu_water: attenuation of water, 1/mm.

        Raises:
            ProtocolError: the operator does more than project, a parallel beam is given a focal spot, the
                rod lies outside the images, water attenuates so at no energy, or the object is too large.
        """
        if not isinstance(A, Radon):
            raise ProtocolError(
                f"a scanner measures projections, and {type(A).__name__} gives others; leave out the "
                "protocol's scanner, or its operator"
            )
        if self.focal_spot_mm and A.beam.rays().parallel:
            raise ProtocolError(
                "parallel rays have no source of finite size; leave focal_spot_mm out of the scanner, or "
                "take a fan beam"
            )
        voxels = math.prod(A.volume.shape) * self.fine ** (2 if A.beam.flat else 3)
        if voxels > _MOST_VOXELS:
            raise ProtocolError(
                f"an object with fine = {self.fine} has {voxels:.2g} voxels, and {_MOST_VOXELS:.2g} are the "
                "most; give a smaller fine, or fewer slices"
            )
        if self.kvp or self.metal:
            _xray.energy_of(mu_water)
        if self.metal:
            self.rod(A.volume)
        return A

    def measure(
        self, A: LinearOperator, hu: Tensor, noise: Noise, mu_water: float, seed: int = 0
    ) -> InverseProblem:
        """The data of an object, corrected as a scanner does it, and their weights.

        Args:
            A: Radon operator of the images, whose beam measures.
            hu: images (Z, Y, X), HU.
            noise: noise model, of intensities behind the object.
            mu_water: attenuation of water, 1/mm.
            seed: of noise and gains.

        Raises:
            ProtocolError: the measurement cannot be made so, see `require_fit`.
        """
        A = self.require_fit(A, mu_water)
        beam, generator = A.beam, seeded(seed)
        with torch.no_grad():
            passed = self._crossed(self.transmission(hu, A.volume, beam, mu_water))
            passed = self._scattered(passed, beam.flat, mu_water)
            gains = self.gain_error * normal((passed.shape[0], 1, passed.shape[2]), generator)  # logarithms
            filtered = self._bowtie(beam, mu_water)
            behind = filtered - torch.log(passed) - gains.to(passed)
            sampled = noise.sample(behind, generator)
            W, y = noise.precision(sampled).expand_as(sampled), sampled - filtered
            if self.kvp:
                y, slope = _xray.water_correction(y, self.kvp, mu_water)
                W = W / slope.square()
        return InverseProblem(A, y, noise, W)

    def transmission(self, hu: Tensor, grid: VolumeGeometry, beam: Beam, mu_water: float) -> Tensor:
        """Share of the signal that passes the object, as means over each bin, before cross-talk and scatter.

        Args:
            hu: images (Z, Y, X), HU.
            grid: their geometry.
            beam: fitted to it.
            mu_water: attenuation of water, 1/mm.

        Returns:
            (rows, views, bins), above 0 and up to 1.
        """
        along_z = not beam.flat
        mu = refined(hu_to_attenuation(hu, mu_water).clamp_min(0), self.fine, along_z)
        fine = refined_grid(grid, self.fine, along_z)
        parts = self._parts(mu, fine, mu_water)
        turns = centred(math.radians(self.exposure_degrees), _PLACES if self.exposure_degrees else 1)
        spots = centred(self.focal_spot_mm, _PLACES if self.focal_spot_mm else 1)
        passed = []
        for rays in within(beam, self.rays, turns, spots, self.movement):
            A = Radon(fine, rays, backend="joseph")
            lengths = {name: A(part) for name, part in parts.items()}
            share = _xray.transmitted(lengths, self.kvp) if self.kvp else torch.exp(-lengths["all"])
            passed.append(pooled(share, self.rays, beam.flat))
        return torch.stack(passed).mean(0).clamp_min(_LEAST)

    def _parts(self, mu: Tensor, grid: VolumeGeometry, mu_water: float) -> dict[str, Tensor]:
        """Density of each material, g/cm³; without a spectrum the attenuation of "all", 1/mm; (Z, Y, X)."""
        rod = self.rod(grid) if self.metal else torch.zeros(())
        metal = rod * _xray.density(self.metal_of)
        tissue = (1 - rod) * mu
        kev = _xray.energy_of(mu_water) if self.kvp or self.metal else math.nan
        if not self.kvp:
            return {"all": tissue + metal * _xray.attenuation_at(self.metal_of, kev) if self.metal else mu}
        excess = (tissue - hu_to_attenuation(_SOFT_HU, mu_water)).clamp_min(0)
        parts = {
            "water": (tissue - excess) / mu_water,
            self.dense: excess / _xray.attenuation_at(self.dense, kev),
        }
        return parts | ({self.metal_of: metal} if self.metal else {})

    def rod(self, grid: VolumeGeometry, around: float = 0.0) -> Tensor:
        """Share of every voxel of a grid that is metal, or less than `around` mm from it, (Z, Y, X).

        Raises:
            ProtocolError: the rod lies outside, or is too thin for the grid.
        """
        z, rows, columns = grid.shape
        _, dy, dx = grid.spacing
        (x, y), parts = self.metal_at, _PARTS
        across = (torch.arange(columns * parts) - (columns * parts - 1) / 2) * dx / parts - x
        against = ((rows * parts - 1) / 2 - torch.arange(rows * parts)) * dy / parts - y
        inside = (torch.hypot(against[:, None], across) < self.metal / 2 + around).float()
        if math.hypot(x, y) + self.metal / 2 > grid.fov / 2 or self.metal < min(dx, dy):
            raise ProtocolError(
                f"a rod of {self.metal} mm at ({x}, {y}) mm must lie inside images of {grid.fov:.0f} mm and "
                f"be no thinner than a pixel of {min(dx, dy):.2g} mm; move it, or give it another size"
            )
        return avg_pool2d(inside[None], parts).expand(z, rows, columns)

    def _crossed(self, passed: Tensor) -> Tensor:
        """The signal (rows, views, bins) after each bin has given a share to its neighbours."""
        if not self.crosstalk:
            return passed
        padded = torch.nn.functional.pad(passed, (1, 1), mode="replicate")
        beside = padded[..., :-2] + padded[..., 2:]
        return (1 - 2 * self.crosstalk) * passed + self.crosstalk * beside

    def _scattered(self, passed: Tensor, flat: bool, mu_water: float) -> Tensor:
        """The signal (rows, views, bins) with what is scattered into each bin of its row, or of the panel."""
        if not self.scatter:
            return passed
        reference = _xray.behind_water(REFERENCE_MM, self.kvp) if self.kvp else REFERENCE_MM * mu_water
        return passed + scatter_of(passed, self.scatter, reference, flat, spread=0.25)

    def _bowtie(self, beam: Beam, mu_water: float) -> Tensor:
        """-ln of the share of photons that the filter lets through, (rows or 1, 1, bins)."""
        rays = beam.rays()
        points = rays.points(0)
        along = np.broadcast_to(rays.source[0], points.shape) if rays.parallel else points - rays.source[0]
        apart = points[..., 0] * along[..., 1] - points[..., 1] * along[..., 0]
        apart /= np.hypot(along[..., 0], along[..., 1])  # mm from the axis
        chord = 2 * np.sqrt(np.maximum((self.bowtie_mm / 2) ** 2 - apart**2, 0))
        return torch.from_numpy(mu_water * (self.bowtie_mm - chord)).float()[:, None]
