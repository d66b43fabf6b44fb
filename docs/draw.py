"""The pictures of these pages: geometries as the code has them, and images beside each other.

python docs/draw.py  writes docs/_static/methods.png, the picture of the README
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

import ctflow as ct

SOFT_TISSUE_HU = ct.units.SOFT_TISSUE_HU


def beam(one: ct.geometry.Beam, grid: ct.VolumeGeometry, shown: tuple[int, ...] = (0, 2)) -> Figure:
    """Sources, detectors and outer rays of some views, along z and, for a beam of rows, across it.

    Args:
        one: a beam, which is fitted to the grid.
        grid: the volume, drawn as its outline.
        shown: views whose detector and rays are drawn; the sources of all are dots, bin 0 is a square.
    """
    rays = one.fitted(grid).rays()
    planes = [(0, 1)] if one.flat else [(0, 1), (1, 2)]
    figure, axes = plt.subplots(
        1, len(planes), figsize=(4.2 * len(planes), 4), squeeze=False, layout="constrained"
    )
    sides = grid.extent[::-1]
    for ax, plane in zip(axes.flat, planes, strict=True):
        corner, size = [-sides[axis] / 2 for axis in plane], [sides[axis] for axis in plane]
        ax.add_patch(Rectangle((corner[0], corner[1]), *size, fill=False, edgecolor="0.6"))
        for view in shown:
            _view(ax, rays, view, list(plane))
        if not rays.parallel:
            ax.plot(*rays.source[:, plane].T, "k.", markersize=2)
        ax.set(xlabel=f"{'xyz'[plane[0]]} / mm", ylabel=f"{'xyz'[plane[1]]} / mm", aspect="equal")
    axes[0, 0].legend(loc="upper right", fontsize="small")
    figure.suptitle(type(one).__name__)
    return figure


def _view(ax: Axes, rays: ct.geometry.Rays, view: int, plane: list[int]) -> None:
    points = rays.points(view)
    (line,) = ax.plot(*_outline(points)[:, plane].T, linewidth=2, label=f"view {view}")
    ax.plot(*points[0, 0, plane], "s", color=line.get_color(), markersize=6)
    for end in points[[0, 0, -1, -1], [0, -1, 0, -1]]:
        along = 250 * rays.source[view]
        ray = [end - along, end + along] if rays.parallel else [rays.source[view], end]
        ax.plot(*np.stack(ray)[:, plane].T, color=line.get_color(), linewidth=0.6)


def _outline(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([points[0], points[-1, ::-1], points[:1, 0]])


def images(
    shown: Mapping[str, Tensor], window: tuple[float, float] = SOFT_TISSUE_HU, columns: int = 5
) -> Figure:
    """Images (Y, X) in HU beside each other, each under its title."""
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 2.8 * rows), squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (title, image) in zip(axes.flat, shown.items(), strict=False):
        _image(ax, title, image, window)
    return figure


def _image(ax: Axes, title: str, image: Tensor, window: tuple[float, float]) -> None:
    ax.imshow(image.cpu(), cmap="gray", vmin=window[0], vmax=window[1], interpolation="nearest")
    ax.set_title(title, fontsize="medium")


def chest(size: int = 128, seed: int = 3) -> ct.Volume:
    """One slice of the toy chest, HU, of 400 mm."""
    from ctflow.datasets.synthetic import toy_volume

    return toy_volume(slices=1, size=size, seed=seed)


def twenty_views(size: int = 256) -> dict[str, Tensor]:
    """The toy chest and what three methods make of 20 views of it, HU."""
    truth = chest(size)
    report = ct.run(ct.Protocol.load("sparse-view-20").only_methods(["fbp", "tv", "ms-flow"]), truth)
    named = {"fbp": "FBP", "tv": "TV", "ms-flow": "MS-Flow"}
    found = {
        f"{named[name]}: {report.figures['methods'][name]['rmse_hu']:.0f} HU": volume.data[0]
        for name, volume in report.methods()
    }
    return {"truth": truth.data[0], **found}


if __name__ == "__main__":
    place = Path(__file__).parent / "_static" / "methods.png"
    place.parent.mkdir(exist_ok=True)
    images(twenty_views()).savefig(place, dpi=80)
