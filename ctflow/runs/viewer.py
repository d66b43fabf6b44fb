"""What a report's viewer shows: every slice as PNG, exact to 1 HU; as many in the page as mail takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ctflow.evidence.conformal import FLOOR_HU, nominal
from ctflow.geometry import VolumeGeometry
from ctflow.runs.figures import Figures, Samples
from ctflow.runs.pictures import (
    OFFSET,
    SD_STEP_HU,
    SUPPORT_STEP,
    Stack,
    encoded,
    index,
    script,
    sd_steps,
    shown_hu,
)
from ctflow.runs.support import PRIOR_SD_HU, SMOOTHED, Support
from ctflow.volume import Volume

FOLDER = "viewer"
"""Name of the folder beside the page that holds all slices."""

_UPRIGHT = 5  # coronal planes in the page, and as many sagittal ones
_FEWEST = 8  # slices of a volume whose upright planes show something
_IN_PAGE = 11_300_000  # characters of pictures in the page, in base64: with the rest of it below 12 MB


class Plane(TypedDict):
    """Pictures of one orientation, and the places that the page itself holds; a voxel's size is in mm.

    The picture of a file at a place is named "file-place", in an upright plane "file-row-place" and alike.
    """

    unit: str
    infix: str
    first: int
    of: int
    rows: int
    columns: int
    high: float
    wide: float
    places: list[int]


class SupportPlace(TypedDict):
    """The slice whose support is known, and the share per unit of its picture."""

    place: int
    step: float


class Viewer(TypedDict):
    """One case of a page: images of one volume.

    `run` names the folder of all slices, so that a page takes no others from beside it; slices are numbered
    in `whole`; `files` names those of images, of spreads, and of the support, "" where there is none; `held`
    are the page's own pictures by name, PNG in base64; `holds` says which these are, and what there is beside
    the folder.
    """

    run: str
    whole: str
    names: list[str]
    main: int
    offset: int
    sd_step: float
    rising: bool
    planes: list[Plane]
    half_widths: list[float]
    meanings: list[str]
    floor: float
    files: dict[str, list[str]]
    held: dict[str, str]
    holds: list[str]
    support: SupportPlace | None


@dataclass(frozen=True)
class Pictures:
    """All pictures of a run.

    Args:
        viewer: what the page holds.
        slices: every axial slice of every image and standard deviation by name, PNG in base64.
    """

    viewer: Viewer
    slices: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write all slices beside the page, where it finds them.

        Args:
            folder: of the page.
        """
        place = folder / FOLDER
        place.mkdir()
        (place / "index.js").write_text(index(self.viewer["run"]), encoding="ascii")
        for name, picture in self.slices.items():
            (place / f"{name}.js").write_text(script(picture), encoding="ascii")


def parts(cases: Sequence[Viewer], compared_with: str) -> dict[str, object]:
    """What the template viewer.html.j2 needs.

    Args:
        cases: what the page shows, of the same images all.
        compared_with: name of the first of them.
    """
    drawn = any(any(case["files"]["spreads"]) for case in cases)
    maps = {
        "input": (f"A − {compared_with}", True),
        "other": ("A − B", True),
        "sd": ("SD", drawn),
        "outside": ("Outside 90 %", any(any(case["half_widths"]) for case in cases)),
        "support": ("Support", any(case["support"] for case in cases)),
    }
    return {
        "shown": cases,
        "compared_with": compared_with,
        "images": list(enumerate(cases[0]["names"])),
        "planes": max(len(case["planes"]) for case in cases),
        "maps": [(key, label) for key, (label, there) in maps.items() if there],
        "drawn": drawn,
        "sd_step": SD_STEP_HU,
        "prior_sd_hu": PRIOR_SD_HU,
        "smoothed": SMOOTHED,
    }


def pictures_of(
    volumes: dict[str, Volume], spreads: dict[str, Volume], support: Support | None, figures: Figures
) -> Pictures:
    """All axial slices, and what of them the page holds, with coronal and sagittal planes of a high volume.

    Args:
        volumes: what is compared with, and the reconstruction of every method, HU.
        spreads: standard deviation over the samples, of the methods that drew several, HU.
        support: what the data determine of one slice; None where it is not known.
        figures: content of report.json.
    """
    grid, names = next(iter(volumes.values())).geometry, list(volumes)
    images = {f"images-{k}": shown_hu(volume) for k, volume in enumerate(volumes.values())}
    drawn = {f"spreads-{k}": sd_steps(spreads[name]) for k, name in enumerate(names) if name in spreads}
    files = {
        "images": list(images),
        "spreads": [f"spreads-{k}" if name in spreads else "" for k, name in enumerate(names)],
        "support": ["support"],
    }
    stacks, depth = images | drawn, grid.shape[0]
    slices = {f"{file}-{k}": encoded(stack[k]) for file, stack in stacks.items() for k in range(depth)}
    viewer = described(
        grid,
        names,
        files,
        {name: samples for name, samples in figures["samples"].items() if name in spreads},
        run=hashlib.sha256("".join(slices.values()).encode()).hexdigest()[:32],
        first=int(figures["provenance"]["slices"].split(":")[0]),
        main=figures["method"],
        support=None if support is None else support.place,
    )
    if figures["measured"]:  # where the truth is not known, no interval can be seen to fail
        viewer["half_widths"] = [0.0 for _ in names]
    axial, *upright = viewer["planes"]
    held = _uprights(upright, stacks, viewer["rising"])
    sizes = [sum(len(slices[f"{file}-{k}"]) for file in stacks) for k in range(depth)]
    axial["places"] = _fitting(sizes, _IN_PAGE - sum(map(len, held.values())))
    held |= {f"{file}-{k}": slices[f"{file}-{k}"] for k in axial["places"] for file in stacks}
    if support is not None:
        held[f"support-{support.place}"] = encoded(support.share / SUPPORT_STEP)
    return Pictures({**viewer, "held": held, "holds": holds(viewer["planes"], viewer["whole"])}, slices)


def described(
    grid: VolumeGeometry,
    names: Sequence[str],
    files: dict[str, list[str]],
    samples: Mapping[str, Samples],
    *,
    run: str,
    first: int,
    main: str,
    support: int | None,
    whole: str = "the series",
) -> Viewer:
    """A case of which the page holds no picture yet.

    Args:
        grid: of its volumes.
        names: of its images, the first of which the others are compared with.
        files: those of images, of spreads and of the support; see `Viewer`.
        samples: of the methods whose spread is known.
        run: name of the folder of all slices.
        first: number of the first slice in the series.
        main: image that is shown first.
        support: place of the slice whose support is known.
        whole: what slices are numbered in.
    """
    drawn = [samples.get(name) for name in names]
    planes = _planes(grid, first)
    return {
        "run": run,
        "whole": whole,
        "names": list(names),
        "main": list(names).index(main),
        "offset": OFFSET,
        "sd_step": SD_STEP_HU,
        "rising": grid.affine[2][0] > 0,
        "planes": planes,
        "half_widths": [0.0 if found is None else nominal(found["number"]) for found in drawn],
        "meanings": ["" if found is None else found["meaning"] for found in drawn],
        "floor": FLOOR_HU,
        "files": files,
        "held": {},
        "holds": holds(planes, whole),
        "support": None if support is None else {"place": support, "step": SUPPORT_STEP},
    }


def holds(planes: Sequence[Plane], whole: str) -> list[str]:
    """Which slices the page holds, and what it shows beside the folder of all, in words.

    Args:
        planes: axial, and upright ones.
        whole: what slices are numbered in.
    """
    axial, *upright = planes
    numbers = ", ".join(str(axial["first"] + k) for k in axial["places"])
    some = f", numbers {numbers} of {whole}" if 0 < len(axial["places"]) < axial["of"] else ""
    others = [
        f"; {len(plane['places'])} of {plane['of']} {name} planes"
        for name, plane in zip(("coronal", "sagittal"), upright, strict=False)
        if plane["places"]
    ]
    return [
        f"In this file: {len(axial['places'])} of {axial['of']} slices{some}{''.join(others)}. Beside the "
        f"folder {FOLDER}/ that was written with it, this page shows all of them.",
        f"Every slice ({axial['of']}), from {FOLDER}/ beside this page.",
    ]


def spread_over(length: int, number: int) -> list[int]:
    """So many places, evenly over all."""
    return [int((k + 0.5) * length / number) for k in range(number)]


def _fitting(sizes: Sequence[int], most: int) -> list[int]:
    """As many places, spread over all, as fit; one at least."""
    for number in range(len(sizes), 1, -1):
        shown = spread_over(len(sizes), number)
        if sum(sizes[k] for k in shown) <= most:
            return shown
    return spread_over(len(sizes), 1)


def _planes(grid: VolumeGeometry, first: int) -> list[Plane]:
    """The axial slices, and coronal and sagittal planes, head up, of a volume of some height."""

    def plane(unit: str, infix: str, first: int, across: tuple[int, int, int]) -> Plane:
        (of, rows, columns), (_, high, wide) = (
            [values[axis] for axis in across] for values in (grid.shape, grid.spacing)
        )
        return {
            "unit": unit,
            "infix": infix,
            "first": first,
            "of": int(of),
            "rows": int(rows),
            "columns": int(columns),
            "high": high,
            "wide": wide,
            "places": [],
        }

    upright = [plane("row", "row-", 0, (1, 0, 2)), plane("column", "column-", 0, (2, 0, 1))]
    return [plane("slice", "", first, (0, 1, 2)), *(upright if grid.shape[0] >= _FEWEST else [])]


def _uprights(planes: Sequence[Plane], stacks: Mapping[str, Stack], rising: bool) -> dict[str, str]:
    """Some coronal and sagittal pictures; fewer of a volume so high that they take over half of the page."""

    def found(number: int) -> dict[str, str]:
        pictures = {}
        for axis, plane in enumerate(planes, start=1):
            plane["places"] = spread_over(plane["of"], number)
            for file, stack in stacks.items():
                turned = (stack[::-1] if rising else stack).transpose(axis, 0, 3 - axis)
                for at in plane["places"]:
                    pictures[f"{file}-{plane['infix']}{at}"] = encoded(turned[at])
        return pictures

    pictures, most = found(_UPRIGHT), _IN_PAGE // 2
    size = sum(map(len, pictures.values()))
    return pictures if size <= most else found(max(1, _UPRIGHT * most // size))
