"""A small valid CT series of the thorax phantom, for examples and tests without patients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ctflow.datasets.phantoms import thorax
from ctflow.dicom import write_series
from ctflow.geometry import VolumeGeometry
from ctflow.operators.blur import Blur
from ctflow.system.randomness import normal, seeded
from ctflow.units import AIR_HU
from ctflow.volume import Volume

__all__ = ["write_toy_series", "example", "toy_volume", "synthetic_slices"]  # noqa: RUF022 (a protocol names the first)

_FOV_MM = 384.0  # field of view of the in-plane grid: 1.5 mm at 256 pixels
_KERNEL_PIXELS = 0.7  # correlation of the noise, as with a soft reconstruction kernel


def toy_volume(slices: int = 5, size: int = 256, seed: int = 0, noise_hu: float = 12.0) -> Volume:
    """The thorax phantom as a scanner would show it: slices 3 mm apart, correlated noise, rounded HU.

    Args:
        slices: number of slices.
        size: rows and columns; the field of view stays 384 mm.
        seed: seed of the anatomy and of the noise.
        noise_hu: standard deviation of the noise, HU; about that of a routine chest scan by default.

    Returns:
        Volume in HU, (slices, size, size), not below -1000.
    """
    geometry = VolumeGeometry((slices, size, size), (3.0, _FOV_MM / size, _FOV_MM / size))
    clean = thorax(seed).rasterise(geometry).to_hu()
    white = normal(geometry.shape, seeded(seed))
    texture = Blur(geometry.shape, sigma=_KERNEL_PIXELS)(white)
    noisy = clean.data + noise_hu * texture / texture.std()
    return clean.with_data(noisy.round().clamp_min(AIR_HU))


def synthetic_slices(number: int, size: int = 256, seed: int = 0) -> tuple[list[Tensor], float]:
    """Single slices for training, each from another synthetic chest.

    Args:
        number: number of slices, at several heights, with noise from 0 to 20 HU.
        size: rows and columns of 384 mm.
        seed: seed of the first chest.

    Returns:
        Slices in HU, (size, size) each, and their pixel spacing, mm.
    """
    chests = (toy_volume(5, size, seed + k, 20.0 * k / max(1, number - 1)) for k in range(number))
    return [chest.data[k % 5].clone() for k, chest in enumerate(chests)], _FOV_MM / size


def write_toy_series(path: str | Path, slices: int = 5, size: int = 256, seed: int = 0) -> Path:
    """Write the thorax phantom as a new synthetic examination, one file for each slice.

    Args:
        path: folder to create.
        slices: number of slices, 3 mm apart.
        size: rows and columns of 384 mm.
        seed: seed of the anatomy and of the noise.

    Returns:
        The folder.

    Raises:
        OutputError: the folder exists already.
    """
    write_series(toy_volume(slices, size, seed), path, like=None, description="Synthetic thorax")
    return Path(path)


def example(folder: Path) -> Iterator[Volume]:
    """Two small chests in HU; nothing is written to the folder."""
    yield from (toy_volume(2, 32, seed) for seed in (0, 1))
