"""Lesions that are put into slices of patients: of which kinds, and where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctflow.errors import GeometryError
from ctflow.evidence.discs import (
    LUNG,
    SOFT_TISSUE,
    Disc,
    Places,
    Tissue,
    distance,
    draw_discs,
    fits,
    on_grid,
    whole_discs,
)
from ctflow.volume import Volume

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PLACES = 4
"""Lesions of each diameter in a slice, where so many fit."""


@dataclass(frozen=True)
class Insertion:
    """Lesions that are put into one image together.

    Args:
        tissue: where they lie.
        contrast_hu: what they add to the truth, HU.
        diameters_mm: their diameters, `PLACES` of each.
    """

    tissue: Tissue
    contrast_hu: float
    diameters_mm: tuple[float, ...]


INSERTIONS = (
    *(Insertion(SOFT_TISSUE, contrast, (4.0, 6.0, 8.0, 12.0)) for contrast in (30.0, 60.0, -50.0)),
    Insertion(LUNG, 700.0, (6.0,)),
)
"""One image each, beside the twin without lesions."""

Size = tuple[str, float]  # tissue and diameter, mm
Kind = tuple[float, float]  # diameter, mm, and contrast, HU


@dataclass(frozen=True)
class Site:
    """Where lesions of one diameter are in a slice, and where they could be.

    Args:
        places: their centres, (number, 2), pixels.
        profiles: share of the contrast in every pixel for each of them, (number, Y, X).
        fits: pixels around which such a lesion fits, (Y, X).
        empty: centres apart from all lesions at which one would fit, (number, 2), pixels.
    """

    places: Places
    profiles: Floats
    fits: Bools
    empty: Places


@dataclass(frozen=True)
class Patient:
    """A slice with the places of its lesions.

    Args:
        volume: one slice, HU.
        sites: by tissue and diameter; without those that fit nowhere.
        refusals: what is said of those.
    """

    volume: Volume
    sites: dict[Size, Site]
    refusals: list[str]

    def added(self, insertion: Insertion) -> Floats:
        """What the lesions add to the slice, (Y, X), HU."""
        sites = [site for (tissue, _), site in self.sites.items() if tissue == insertion.tissue.name]
        shares = np.sum([site.profiles.sum(0) for site in sites], axis=0)
        return np.asarray(insertion.contrast_hu * shares)

    @property
    def insertions(self) -> list[Insertion]:
        """Those that this slice has room for."""
        tissues = {tissue for tissue, _ in self.sites}
        return [insertion for insertion in INSERTIONS if insertion.tissue.name in tissues]


def place_lesions(volume: Volume, seed: int) -> Patient:
    """Draw the places of all lesions of a slice, the largest first.

    Args:
        volume: one slice, HU.
        seed: seed of the places.
    """
    sizes = dict.fromkeys((kind.tissue, d) for kind in INSERTIONS for d in kind.diameters_mm)
    drawn: dict[tuple[Tissue, float], list[Disc]] = {}
    refusals = []
    for tissue, diameter in sorted(sizes, key=lambda size: -size[1]):
        taken = [disc for discs in drawn.values() for disc in discs]
        try:
            drawn[tissue, diameter] = draw_discs(volume, diameter, tissue, PLACES, seed, taken)
        except GeometryError as refusal:
            refusals.append(str(refusal))
    apart = np.ones(volume.geometry.shape[1:], bool)
    for disc in (disc for discs in drawn.values() for disc in discs):
        apart &= distance(volume.geometry, (disc.row, disc.column)) > disc.diameter_mm
    sites = {(tissue.name, d): _site(volume, tissue, d, discs, apart) for (tissue, d), discs in drawn.items()}
    return Patient(volume, sites, refusals)


def _site(volume: Volume, tissue: Tissue, diameter: float, discs: list[Disc], apart: Bools) -> Site:
    grid, room = volume.geometry, fits(volume, diameter, tissue)
    profiles = np.stack([disc.profile(grid) for disc in discs])
    places = np.array([(disc.row, disc.column) for disc in discs])
    return Site(places, profiles, room, on_grid(room & whole_discs(apart, grid, diameter), grid, diameter))
