"""Discs in a slice: where a lesion fits, how it looks, and the mean over one at every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import erfc

from ctflow.errors import GeometryError
from ctflow.geometry import VolumeGeometry
from ctflow.metrics import body_mask, fov_mask
from ctflow.volume import Volume

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = NDArray[np.intp]

FINE = 8
"""Sub-pixels along an axis whose mean is a pixel of a lesion."""

EDGE_MM = 0.5
"""Standard deviation of the Gaussian whose integral is a lesion's edge: 10 to 90 % over 1.3 mm, a pixel."""


@dataclass(frozen=True)
class Tissue:
    """Tissue that takes a lesion: homogeneous over the lesion and a pixel around it.

    Args:
        name: in the user's words.
        low_hu: least mean over the place, HU.
        high_hu: largest mean over the place, HU.
        spread_hu: largest standard deviation over the place, HU.
    """

    name: str
    low_hu: float
    high_hu: float
    spread_hu: float


SOFT_TISSUE = Tissue(
    "soft tissue", 0.0, 120.0, 25.0
)  # organs and muscle; no fat, no bone; noise of a scanner
LUNG = Tissue("lung", -950.0, -700.0, 60.0)  # parenchyma between the larger vessels


@dataclass(frozen=True)
class Disc:
    """A disc, as a sphere that is cut through its centre.

    Args:
        row: pixel of the centre.
        column: pixel of the centre.
        diameter_mm: diameter.
    """

    row: int
    column: int
    diameter_mm: float

    def profile(self, grid: VolumeGeometry) -> Floats:
        """Share of the contrast in every pixel, 0 to 1, (Y, X): one half on the rim, smooth by `EDGE_MM`."""
        beyond = distance(grid, (self.row, self.column), FINE) - self.diameter_mm / 2
        rows, columns = grid.shape[1:]
        share = 0.5 * erfc(beyond / (2**0.5 * EDGE_MM))
        return np.asarray(share.reshape(rows, FINE, columns, FINE).mean((1, 3)))


def distance(grid: VolumeGeometry, centre: Sequence[float] | Floats, fine: int = 1) -> Floats:
    """Distance of every pixel from a centre, mm.

    Args:
        grid: of the slice.
        centre: row and column, pixels.
        fine: sub-pixels along an axis.

    Returns:
        (Y · fine, X · fine).
    """
    _, dy, dx = grid.spacing
    rows, columns = ((np.arange(n * fine) + 0.5) / fine - 0.5 for n in grid.shape[1:])
    return np.asarray(np.hypot((rows[:, None] - centre[0]) * dy, (columns - centre[1]) * dx))


def disc_means(image: Floats | Bools, grid: VolumeGeometry, diameter_mm: float) -> Floats:
    """Mean over the disc around every pixel: over the pixels whose centres lie in it.

    Args:
        image: (Y, X), any unit.
        grid: of the slice.
        diameter_mm: diameter of the disc.

    Returns:
        (Y, X), in the image's unit.
    """
    reach = [int(diameter_mm / 2 / side) for side in grid.spacing[1:]]
    y, x = (np.arange(-n, n + 1) * side for n, side in zip(reach, grid.spacing[1:], strict=True))
    disc = (np.hypot(y[:, None], x) <= diameter_mm / 2).astype(np.float64)
    return np.asarray(ndimage.convolve(np.asarray(image, np.float64), disc / disc.sum(), mode="nearest"))


def whole_discs(inside: Bools, grid: VolumeGeometry, diameter_mm: float) -> Bools:
    """Pixels whose whole disc lies inside a region, (Y, X).

    Args:
        inside: the region, (Y, X).
        grid: of the slice.
        diameter_mm: diameter of the disc.
    """
    return np.asarray(disc_means(~inside, grid, diameter_mm) < 1e-9)


def fits(volume: Volume, diameter_mm: float, tissue: Tissue) -> Bools:
    """Pixels around which a lesion of a diameter lies wholly in homogeneous tissue of the body, (Y, X).

    Args:
        volume: one slice, HU.
        diameter_mm: diameter of the lesion.
        tissue: what must surround it, a pixel beyond its rim too.
    """
    grid, hu = volume.geometry, volume.data[0].double().numpy()
    reach = diameter_mm + 2 * grid.spacing[2]
    mean = disc_means(hu, grid, reach)
    variance = disc_means(hu**2, grid, reach) - mean**2
    body = body_mask(volume.data, fov_mask(volume))[0]
    homogeneous = (mean >= tissue.low_hu) & (mean <= tissue.high_hu) & (variance <= tissue.spread_hu**2)
    return np.asarray(homogeneous & whole_discs(body, grid, reach))


def draw_discs(
    volume: Volume,
    diameter_mm: float,
    tissue: Tissue,
    number: int,
    seed: int,
    taken: Sequence[Disc] = (),
) -> list[Disc]:
    """Draw places at random for lesions that share a slice.

    Centres are as far apart as the two diameters together, so that every lesion has tissue around it.

    Args:
        volume: one slice, HU.
        diameter_mm: diameter of the lesions.
        tissue: where they lie.
        number: lesions; fewer where no more fit.
        seed: seed of the places.
        taken: lesions that the slice has already.

    Returns:
        At least one disc.

    Raises:
        GeometryError: no lesion of this diameter fits.
    """
    grid, room = volume.geometry, fits(volume, diameter_mm, tissue)
    generator, free, found = np.random.default_rng(seed), room.copy(), list[Disc]()

    def clear(disc: Disc) -> None:
        """Take the disc's surroundings out of what is free."""
        np.logical_and(
            free, distance(grid, (disc.row, disc.column)) >= disc.diameter_mm + diameter_mm, out=free
        )

    for disc in taken:
        clear(disc)
    while len(found) < number and free.any():
        row, column = generator.choice(np.argwhere(free))
        found.append(Disc(int(row), int(column), diameter_mm))
        clear(found[-1])
    if not found:
        raise GeometryError(
            f"a lesion of {diameter_mm:g} mm fits nowhere in {tissue.name} of this slice: homogeneous places "
            f"so large are {int(room.sum())} and none is free; take a smaller lesion or another slice"
        )
    return found


def on_grid(allowed: Bools, grid: VolumeGeometry, pitch_mm: float) -> Places:
    """Pixels of a regular grid that lie in a region.

    Args:
        allowed: the region, (Y, X).
        grid: of the slice.
        pitch_mm: distance of neighbours, rounded up to whole pixels.

    Returns:
        Rows and columns, (number, 2), pixels.
    """
    chosen = np.zeros_like(allowed)
    steps = [int(np.ceil(pitch_mm / side - 1e-9)) for side in grid.spacing[1:]]
    chosen[steps[0] // 2 :: steps[0], steps[1] // 2 :: steps[1]] = True
    return np.argwhere(chosen & allowed)


def invented(error_hu: Floats, body: Bools, grid: VolumeGeometry, diameter_mm: float = 8.0) -> Floats:
    """Mean errors over discs on a regular grid in the body: a large one is structure that is not there.

    Args:
        error_hu: image minus truth, (Y, X), HU.
        body: (Y, X).
        grid: of the slice.
        diameter_mm: diameter of the discs, and distance of their centres.

    Returns:
        One mean for each disc that lies wholly in the body, HU, (discs,).
    """
    places = on_grid(whole_discs(body, grid, diameter_mm), grid, diameter_mm)
    return disc_means(error_hu, grid, diameter_mm)[places[:, 0], places[:, 1]]
