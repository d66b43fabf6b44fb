"""Made-up discs of acrylic with holes, of the kind that the Helsinki challenge scans."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from ctflow.errors import UsageError
from ctflow.geometry import VolumeGeometry
from ctflow.system.files import whole_folder
from ctflow.volume import Volume

__all__ = ["write_punched_discs", "example", "punched_disc", "ACRYLIC_HU", "AIR_HU"]  # noqa: RUF022 (a protocol names the first)

ACRYLIC_HU, AIR_HU = 500.0, -1000.0
"""What stands for acrylic and for air, so that both lie as far from a prior's middle as in a body."""

_SIDE, _PIXEL_MM = 256, 0.29664  # two of the challenge's pixels
_FINE = 2  # pixels a side of which a pixel is the mean
_HELD_OUT = 0.1  # share of the discs for validation
Mask = NDArray[np.bool_]
Picture = NDArray[np.floating[Any]]


def punched_disc(random: np.random.Generator) -> Picture:
    """The share of acrylic in every pixel of a disc, (256, 256).

    The disc is nine tenths as wide as the picture. Its holes, none to twenty, are ellipses, polygons of three
    to six corners, or cells between walls; on most discs all are of one kind. Their corners are round.

    Args:
        random: what decides.
    """
    side = _SIDE * _FINE
    rows, columns = np.mgrid[:side, :side] + 0.5
    radius = side * random.uniform(0.43, 0.475)
    centre = side / 2 + random.uniform(-0.02, 0.02, 2) * side
    disc = np.hypot(rows - centre[0], columns - centre[1]) < radius
    holes = (_cells if random.random() < 0.35 else _scattered)(random, rows, columns, centre, radius)
    inside = np.hypot(rows - centre[0], columns - centre[1]) < radius * random.uniform(0.8, 0.93)
    share = (disc & ~(holes & inside)).astype(np.float32)
    pooled: Picture = share.reshape(_SIDE, _FINE, _SIDE, _FINE).mean((1, 3))
    return pooled


def _rounded(mask: Mask, corner: float) -> Mask:
    """The mask without what is finer than a corner, pixels."""
    smooth: Mask = gaussian_filter(mask.astype(np.float32), corner) > 0.5
    return smooth


def _scattered(
    random: np.random.Generator, rows: Picture, columns: Picture, centre: Picture, radius: float
) -> Mask:
    """Ellipses and polygons that do not touch."""
    number, corners = int(random.integers(0, 21)), int(random.integers(2, 7))  # 2 is an ellipse
    alike, largest = random.random() < 0.7, radius * random.uniform(0.1, 0.3)
    ratio, angle = min(1.0, random.uniform(0.4, 1.2)), random.uniform(0, math.pi)
    holes = np.zeros(rows.shape, bool)
    taken: list[tuple[Picture, float]] = []  # where, and how large
    for _ in range(number):
        if not alike:
            corners, ratio = int(random.integers(2, 7)), min(1.0, random.uniform(0.4, 1.2))
            angle = random.uniform(0, math.pi)
        size = largest * random.uniform(0.7 if alike else 0.4, 1)
        way, far = random.uniform(0, 2 * math.pi), radius * math.sqrt(random.random()) * 0.9
        place = centre + far * np.array([math.sin(way), math.cos(way)])
        gap = radius * 0.03
        if far + size > radius - gap or any(math.dist(place, at) < size + room + gap for at, room in taken):
            continue
        taken.append((place, size))
        y, x = rows - place[0], columns - place[1]
        turned = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        holes |= _shape(random, turned[0] / size, turned[1] / (ratio * size), corners)
    return _rounded(holes, random.uniform(1, 5) * _FINE / 2)


def _shape(random: np.random.Generator, x: Picture, y: Picture, corners: int) -> Mask:
    """An ellipse of radius 1, or a convex polygon in it."""
    if corners == 2:
        return np.hypot(x, y) < 1
    ways = np.sort((np.arange(corners) + random.uniform(-0.3, 0.3, corners)) * 2 * math.pi / corners)
    ends = np.stack([np.cos(ways), np.sin(ways)], 1)
    inside = np.ones(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(ends, np.roll(ends, -1, 0), strict=True):
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0
    return inside


def _cells(
    random: np.random.Generator, rows: Picture, columns: Picture, centre: Picture, radius: float
) -> Mask:
    """Cells around points, with walls between them, of which some are filled."""
    number = int(random.integers(5, 21))
    ways, far = random.uniform(0, 2 * math.pi, number), radius * np.sqrt(random.random(number))
    points = centre + np.stack([far * np.sin(ways), far * np.cos(ways)], 1)
    away, nearest = cKDTree(points).query(np.stack([rows, columns], -1), 2)
    # Half the difference of the squared distances over the distance of the points: how far the wall is.
    between = np.linalg.norm(points[nearest[..., 0]] - points[nearest[..., 1]], axis=-1)
    wall = (away[..., 1] ** 2 - away[..., 0] ** 2) / (2 * between)
    open_ = random.random(number) < random.uniform(0.5, 1.2)
    holes = (wall > radius * random.uniform(0.015, 0.06)) & open_[nearest[..., 0]]
    return _rounded(holes, random.uniform(1, 6) * _FINE / 2)


def write_punched_discs(path: str | Path, number: int = 2000, seed: int = 0) -> Path:
    """Write discs with holes as a data folder for `ctflow train`: what a prior of acrylic discs learns.

    None is a scan of the Helsinki challenge. One in ten is for validation. Acrylic is written as 500 HU and
    air as -1000 HU, with pixels of 0.297 mm.

    Args:
        path: folder to create.
        number: number of discs, ten or more.
        seed: seed of the discs.

    Returns:
        The folder.

    Raises:
        UsageError: too few discs.
        OutputError: the folder exists already.

    References:
        Meaney, Silva de Moura and Siltanen, Zenodo 6984868 (2022): the scans.

    Examples:
        >>> import tempfile
        >>> from ctflow.datasets.punched_discs import write_punched_discs
        >>> from ctflow.training.slices import Slices
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = write_punched_discs(folder + "/discs", number=10)
        ...     len(Slices(data, "train").by_kind["256"])
        9
    """
    if number < 10:
        raise UsageError(f"{number} discs are too few for training and validation; ask for ten or more")
    random = np.random.default_rng(seed)
    held_out = max(1, round(_HELD_OUT * number))
    index = []
    with whole_folder(Path(path)) as folder:
        for split, amount in (("train", number - held_out), ("validation", held_out)):
            share = np.stack([punched_disc(random) for _ in range(amount)])
            hu = np.round(AIR_HU + (ACRYLIC_HU - AIR_HU) * share).astype(np.int16)
            np.savez_compressed(folder / f"{split}.npz", hu=hu)
            entry = {"file": f"{split}.npz", "split": split, "kind": "256", "collection": "synthetic"}
            index.append(entry | {"pixel_spacing_mm": _PIXEL_MM})
        (folder / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return Path(path)


def example(folder: Path) -> Iterator[Volume]:
    """The first of ten discs, HU, as a data folder keeps it, written into the folder given."""
    with np.load(write_punched_discs(folder / "discs", number=10) / "train.npz") as stored:
        hu = torch.from_numpy(stored["hu"][:1].astype(np.float32))
    grid = VolumeGeometry((1, _SIDE, _SIDE), (_PIXEL_MM, _PIXEL_MM, _PIXEL_MM))
    yield Volume(hu, grid, "HU")
