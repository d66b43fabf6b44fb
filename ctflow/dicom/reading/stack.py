"""Read the voxels of a checked group; every image is decoded once, directly into its place."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ctflow.dicom.options import ReadOptions
from ctflow.dicom.reading import grid
from ctflow.dicom.reading.decoding import decoded, require_sizes
from ctflow.dicom.reading.files import Slice
from ctflow.dicom.reading.grouping import Group
from ctflow.dicom.reading.padding import blur_hu, corners_filled, radius_map, share_of_one_value, unpadded
from ctflow.dicom.reading.stored_values import require_sign
from ctflow.dicom.reading.tilt import Straightening, straightening
from ctflow.errors import SeriesError
from ctflow.geometry import VolumeGeometry
from ctflow.system.progress import FractionProgress

_BESIDE_HU = -1024.0
_LARGEST_HU = 1e6
_ALIKE_HU = 6.0  # change by a new rescale that is not noticed, HU
_EDGE = 1.02  # pixels cut by the circle hold mixtures; two per cent of the radius skips them

Image = tuple[NDArray[np.float32], NDArray[np.bool_]]


@dataclass(frozen=True)
class Stack:
    """Voxels with their grid and their source images.

    Args:
        hu: CT numbers, (Z, Y, X).
        mask: voxels that are not padding, (Z, Y, X).
        geometry: their grid, mm.
        sources: the image behind every slice; of an interpolated one, the nearer neighbour.
        digests: SHA-256 of pixels and geometry, per slice.
    """

    hu: NDArray[np.float32]
    mask: NDArray[np.bool_]
    geometry: VolumeGeometry
    sources: list[Slice]
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """How the slices of the volume follow from the images.

    Args:
        shares: position of every slice in the list of images, see `grid.source_positions`.
        geometry: grid of the volume, mm.
        straight: how slices move within their planes if the gantry was tilted.
    """

    shares: list[float]
    geometry: VolumeGeometry
    straight: Straightening | None


def plan(slices: list[Slice], options: ReadOptions) -> Plan:
    """Plan the grid of slices that were found usable."""
    shares = grid.source_positions(slices, options.fill) or []
    geometry = grid.geometry(slices, len(shares))
    if options.tilt == "resample" and len(slices) > 1 and grid.is_sheared(slices):
        straight = straightening(geometry)
        return Plan(shares, straight.geometry, straight)
    return Plan(shares, geometry, None)


def read_stack(group: Group, options: ReadOptions, progress: FractionProgress) -> Stack:
    """Decode a group that was found usable.

    Raises:
        DecoderError: no installed package reads the transfer syntax.
        UnreadableError: pixels are missing, truncated or damaged.
        SeriesError: there are values that no CT number can have.
    """
    slices = group.slices
    require_sizes(slices)
    planned = plan(slices, options)
    shares, geometry, straight = planned.shares, planned.geometry, planned.straight
    hu = np.empty(geometry.shape, np.float32)
    mask = np.empty(geometry.shape, np.bool_)
    radius = radius_map(slices[0].header)
    corners: list[float] = []
    with closing(_images(slices, radius, corners)) as images:
        for k, (image, valid) in enumerate(_interpolated(images, shares)):
            progress((k + 1) / len(shares))
            hu[k], mask[k] = (image, valid) if straight is None else _moved(image, valid, straight, k)
    if corners_filled(corners):
        disc = radius <= 1
        for k in range(len(hu)):
            mask[k] &= disc if straight is None else straight.place(disc.astype(np.float32), k) == 1
    sources = [slices[round(share)] for share in shares]
    digests = tuple(_digest(item, slab) for item, slab in zip(sources, hu, strict=True))
    return Stack(hu, mask, geometry, sources, digests)


def _moved(image: NDArray[np.float32], valid: NDArray[np.bool_], straight: Straightening, k: int) -> Image:
    """Slice k on the straightened grid; pixels that padding touches, or that no pixel covers, are masked."""
    moved = straight.place(np.where(valid, image, np.float32(np.nan)), k)
    covered = np.isfinite(moved)
    return np.where(covered, moved, np.float32(_BESIDE_HU)), covered


def _images(slices: list[Slice], radius: NDArray[np.float64], corners: list[float]) -> Generator[Image]:
    """CT numbers and mask of every image; records how uniform its corners are."""
    outside = radius > _EDGE
    before: tuple[Dataset, NDArray[np.float32]] | None = None
    with closing(decoded(slices)) as found:
        for item, stored in zip(slices, found, strict=True):
            if item.syntax.is_encapsulated or item.header.BitsStored == item.header.BitsAllocated:
                require_sign(stored, item.header, item.number)  # no unused bit tells it
            hu = _rescaled(stored, item.header)
            if before is not None and _rescale(before[0]) != _rescale(item.header):
                _require_change(before[1], hu, _rescaled(stored, before[0]))
            before = item.header, hu
            largest = max(float(hu.max()), -float(hu.min()))
            if not largest < _LARGEST_HU:
                raise SeriesError(
                    [f"values of {largest:.3g}, which are not CT numbers"], "Export the series again"
                )
            corners.append(share_of_one_value(hu[outside], blur_hu(item.header)))
            yield hu, unpadded(stored, hu, item.header)


def _rescale(header: Dataset) -> tuple[float, float]:
    return float(header.RescaleSlope), float(header.RescaleIntercept)


def _rescaled(stored: NDArray[np.integer], header: Dataset) -> NDArray[np.float32]:
    slope, intercept = map(np.float32, _rescale(header))
    hu = stored.astype(np.float32)
    hu *= slope
    hu += intercept
    return hu


def _require_change(
    before: NDArray[np.float32], hu: NDArray[np.float32], unchanged: NDArray[np.float32]
) -> None:
    """Refuse a rescale that changes between neighbours, (Y, X) in HU, whose stored values do not.

    Where the stored values change with it, the neighbour is nearer with its own rescale, by the square of the
    change; where they do not, it is nearer by as much with the old one.
    """
    does = float(np.square(hu - unchanged).mean())
    own, other = (float(np.square(one - before).mean()) for one in (hu, unchanged))
    if does > _ALIKE_HU**2 and own - other > does / 2:
        raise SeriesError(
            [
                "RescaleSlope or RescaleIntercept changes within the series and the stored values do not: "
                f"neighbours differ by {own**0.5:.0f} HU, with one rescale by {other**0.5:.0f} HU"
            ],
            "Export the series again",
        )


def _interpolated(images: Iterator[Image], shares: list[float]) -> Iterator[Image]:
    """Interpolate slices at these positions in the list of images, of which two are held at a time."""
    after = next(images)
    before, number = after, 0
    for share in shares:
        while number < share:
            before, after = after, next(images)
            number += 1
        weight = np.float32(number - share)  # of the image before
        if weight == 0:
            yield after
        else:
            hu: NDArray[np.float32] = np.add(weight * before[0], (1 - weight) * after[0])
            yield hu, before[1] & after[1]


def _digest(item: Slice, hu: NDArray[np.float32]) -> str:
    header = item.header
    place = [*header.ImagePositionPatient, *header.ImageOrientationPatient, *header.PixelSpacing]
    content = hu.tobytes() + repr([float(value) for value in place]).encode()
    return hashlib.sha256(content).hexdigest()
