"""Pictures of a study's cases for its page: fixed windows, lossy, as many slices as the page may hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ctflow.experiments.findings import Findings
from ctflow.experiments.records import Description, Finding
from ctflow.experiments.support import support

Floats = NDArray[np.float64]

WINDOWS = {"Soft tissue": (40, 400), "Lung": (-600, 1500)}
"""Level and width of the pictures, HU."""

DIFFERENCE_HU = 100
"""Differences are shown from minus to plus so much."""

SD_HU = 60
"""Standard deviations are shown from 0 to so much."""

TRUTH = "truth"
"""Name of the reference image among a case's pictures."""

_BYTES = 6_600_000  # of pictures: a third more as base64, and the page itself, stay below 10 MB
_SLICES = 8
_QUALITY = 80


def viewer(findings: Findings, groups: Sequence[Sequence[Finding]]) -> dict[str, object]:
    """Everything that the page's viewer shows.

    Args:
        findings: of the study.
        groups: units that are done, those of one case, protocol and seed together; worst first.

    Returns:
        Constants, and a case for every group until the page is full; the rest have figures alone.
    """
    cases: list[dict[str, object]] = []
    slices, shrink = _fit(findings, groups)
    used = 0
    for group in groups:
        case = _case(findings, group, slices, shrink)
        used += sum(len(text) for text in _texts(case)) * 3 // 4
        if used > _BYTES:
            break
        cases.append(case)
    windows = [f"{name} {level}/{width}" for name, (level, width) in WINDOWS.items()]
    return {
        "windows": windows,
        "difference": DIFFERENCE_HU,
        "sd": SD_HU,
        "meanings": {label: drawn["meaning"] for label, drawn in findings.samples.items()},
        "shrink": shrink,
        "cases": cases,
    }


def _fit(findings: Findings, groups: Sequence[Sequence[Finding]]) -> tuple[int, int]:
    """Slices of each case, and by how much they are made smaller where not one would fit otherwise."""
    if not groups:
        return 1, 1
    for shrink in (1, 2, 4):
        one = _case(findings, groups[0], 1, shrink)
        size = sum(len(text) for text in _texts(one)) * 3 // 4
        # Slices differ in what they hold: 15 % of room.
        fitting = int(_BYTES / 1.15 / (size * len(groups)))
        if fitting:
            break
    return max(1, min(_SLICES, fitting)), shrink


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in inner for text in _texts(part)]


def _case(findings: Findings, group: Sequence[Finding], slices: int, shrink: int) -> dict[str, object]:
    volume = findings.truth(group[0])
    truth = volume.data.numpy().astype(np.float64)
    images = {unit["method"]: findings.image(unit) for unit in group}
    stacks = {TRUTH: truth, **{name: image["hu"] for name, image in images.items()}}
    depth, number = len(truth), min(slices, len(truth))
    shown = [int((k + 0.5) * depth / number) for k in range(number)]
    rows = [_telling_row(truth[k], [stack[k] for stack in stacks.values()]) for k in shown]
    supported = support(findings, group[0])
    _, dy, dx = volume.geometry.spacing
    return {
        "title": title(group[0]),
        "names": list(stacks),
        "slices": [k + 1 for k in shown],
        "of": depth,
        "aspect": f"{truth.shape[2] * dx:.6g} / {truth.shape[1] * dy:.6g}",
        "images": {
            name: [[_grey(stack[k], window, shrink) for k in shown] for window in WINDOWS.values()]
            for name, stack in stacks.items()
        },
        "difference": {
            name: [
                _colour((image["hu"][k] - truth[k]) / DIFFERENCE_HU / 2 + 0.5, "RdBu_r", shrink)
                for k in shown
            ]
            for name, image in images.items()
        },
        "spread": {
            name: [_colour(image["sd"][k] / SD_HU, "magma", shrink) for k in shown]
            for name, image in images.items()
            if "sd" in image
        },
        "support": None if supported is None else _colour(supported, "viridis", shrink),
        "rows": [(row + 0.5) / truth.shape[1] for row in rows],
        "profiles": [
            {name: [round(v) for v in stack[k, row, ::shrink]] for name, stack in stacks.items()}
            for k, row in zip(shown, rows, strict=True)
        ],
    }


def title(unit: Description) -> str:
    """Case, protocol and seed of a unit in words."""
    return f"{unit['case']} · {unit['protocol']} · seed {unit['seed']}"


def _telling_row(truth: Floats, images: Sequence[Floats]) -> int:
    """The row where the images differ most from the truth, not far from the middle."""
    inner = slice(len(truth) // 4, len(truth) - len(truth) // 4)
    errors = sum(((image - truth)[inner] ** 2).sum(1) for image in images)
    return inner.start + int(np.argmax(errors))


def _grey(hu: Floats, window: tuple[int, int], shrink: int) -> str:
    level, width = window
    return _picture(_smaller(np.clip((hu - level) / width + 0.5, 0, 1), shrink))


def _colour(share: Floats, name: str, shrink: int) -> str:
    from matplotlib import colormaps

    return _picture(colormaps[name](_smaller(np.clip(share, 0, 1), shrink))[..., :3])


def _smaller(plane: Floats, shrink: int) -> Floats:
    rows, columns = (n // shrink * shrink for n in plane.shape)
    cut = plane[:rows, :columns].reshape(rows // shrink, shrink, columns // shrink, shrink)
    return np.asarray(cut.mean((1, 3)))


def _picture(values: Floats) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.rint(255 * values).astype(np.uint8)).save(file, "WEBP", quality=_QUALITY, method=2)
    return base64.b64encode(file.getvalue()).decode()
