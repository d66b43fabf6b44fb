"""The Helsinki Tomography Challenge 2022: reconstruct limited arcs, segment, and score by its own rules."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.benchmarks.bars import Bar, Findings
from ctflow.errors import UsageError
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.problem import InverseProblem
from ctflow.rawdata.htc2022 import read_htc2022
from ctflow.rawdata.loading import load_mat
from ctflow.recon import SIRT, TV
from ctflow.scan import Scan
from ctflow.solving import Method, solve
from ctflow.system.progress import Progress

ARCS = {1: 90, 2: 80, 3: 70, 4: 60, 5: 50, 6: 40, 7: 30}
"""Degrees of the challenge's levels."""

METHODS: dict[str, Method] = {
    "sirt": SIRT(100),
    "tv": TV(10.0, iterations=600, gap=0),
    "tv of at most one": TV(3.0, iterations=600, gap=0, maximum=1.0),
}
"""What reconstructs: the share of acrylic in every pixel, from data in mm of acrylic."""

PUBLISHED: dict[str, dict[int, tuple[float, ...]]] = {
    "TV of CIL, ta alone (TomographicImaging/CIL-HTC2022-Algo2, README)": {60: (0.963,)},
    "learned primal-dual, tuned on these scans (alexdenker/htc2022_LPD)": {
        90: (0.9921,),
        80: (0.9916,),
        70: (0.9897,),
        60: (0.9911,),
        50: (0.9898,),
        40: (0.9883,),
        30: (0.9893,),
    },
}
"""Scores that entries state of themselves in their READMEs, by arc; Bremen's are means of 50 random arcs."""

_BOUNDS = {90: 0.97, 80: 0.97, 70: 0.97, 60: 0.97, 30: 0.90}
_NOISE_MM = 0.3  # of acrylic: what a polynomial leaves of the solid disc


@dataclass
class Score:
    """Matthews' correlation of a method's segmentation with the challenge's, for every scan.

    Args:
        arc: degrees.
        method: key of `METHODS`, or who published it.
        scores: 1 is all pixels right, 0 is chance.
    """

    arc: int
    method: str
    scores: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        each = " ".join(f"{score:.3f}" for score in self.scores)
        return f"{self.arc:>3}°  {self.method:<66}{statistics.fmean(self.scores):6.3f}  ({each})"


def measure(quick: bool, progress: Progress, data: Path | None = None) -> Findings:
    """Score every method on the full scans of a folder, of which arcs are kept.

    Args:
        quick: arcs of 90, 60 and 30 degrees alone.
        progress: told the fraction that is done and what comes next.
        data: folder with the challenge's `htc2022_*_full.mat`, its segmentations `..._full_recon_fbp_seg.mat`
            beside them, and both of `htc2022_solid_disc`, which show how acrylic hardens the beam.

    Raises:
        UsageError: there is no such folder, or it lacks the disc or any other scan.

    References:
        Meaney, Silva de Moura and Siltanen, Zenodo 6984868 (2022); rules and score: Meaney, Silva de Moura,
        Juvonen and Siltanen, Appl. Math. Mod. Chall. 1 (2023).
    """
    files = (
        {} if data is None else {file.name[8:-9]: file for file in sorted(data.glob("htc2022_*_full.mat"))}
    )
    disc = files.pop("solid_disc", None)
    if disc is None or not files:
        raise UsageError(
            "this bench needs scans of the Helsinki challenge, htc2022_*_full.mat with their segmentations, "
            "the solid disc's too, from zenodo.org/records/6984868; give their folder as --data"
        )
    curve = hardening(disc)
    arcs = [arc for arc in ARCS.values() if not quick or arc in (90, 60, 30)]
    scores = {(arc, name): Score(arc, name) for arc in arcs for name in METHODS}
    for number, (name, file) in enumerate(files.items()):
        scan, truth = read_htc2022(file), segmentation(file)
        for done, arc in enumerate(arcs):
            progress((number + done / len(arcs)) / len(files), f"{name}, {arc} degrees")
            problem = limited(scan, arc, 37 * number + 101 * done, curve)
            for method in METHODS:
                image = solve(problem, METHODS[method]).mean[0].numpy()
                scores[arc, method].scores.append(matthews(image > 0.5, truth))
    published = [
        Score(arc, name, list(stated[arc]))
        for name, stated in PUBLISHED.items()
        for arc in arcs
        if arc in stated
    ]
    found = Findings(rows=[*scores.values(), *published])
    found.bars += list(_bars(scores))
    return found


def hardening(file: Path) -> NDArray[np.float64]:
    """Coefficients of y, y² and y³ in the length of acrylic, mm, from the scan of a solid disc."""
    scan = read_htc2022(file)
    views = slice(0, None, 24)
    assert scan.grid is not None  # the reader gives the challenge's
    mask = torch.from_numpy(segmentation(file).astype(np.float32))[None]
    length = Radon(scan.grid, scan.beam.subset(views))(mask).flatten().double().numpy()
    y = scan.y[:, views].flatten().double().numpy()
    found: NDArray[np.float64] = np.linalg.lstsq(np.stack([y, y**2, y**3], 1), length)[0]
    return found


def limited(scan: Scan, arc: int, start: int, curve: NDArray[np.float64]) -> InverseProblem:
    """Share of acrylic from an arc of the views.

    Args:
        scan: full turn in steps of half a degree.
        arc: degrees.
        start: first view; the arc begins earlier where it would pass the last one.
        curve: as of `hardening`.
    """
    number = 2 * arc + 1
    first = start % (len(scan.beam.views) - number)
    views = slice(first, first + number)
    assert scan.grid is not None  # the reader gives the challenge's
    y = scan.y[:, views]
    length = sum(c * y ** (k + 1) for k, c in enumerate(curve.tolist()))
    assert isinstance(length, Tensor)
    return InverseProblem(Radon(scan.grid, scan.beam.subset(views)), length, Gaussian(_NOISE_MM))


def segmentation(file: Path) -> NDArray[np.bool_]:
    """Where the challenge sees acrylic in a scan, (512, 512)."""
    name = file.name.replace("_full.mat", "_full_recon_fbp_seg.mat")
    return np.asarray(load_mat(file.with_name(name), "reconFullFbpSeg")) > 0


def matthews(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Matthews' correlation coefficient of two masks; 0 where one of them is all alike."""
    if found.all() or not found.any() or truth.all() or not truth.any():
        return 0.0
    return float(np.corrcoef(found.ravel(), truth.ravel())[0, 1])


def _bars(scores: dict[tuple[int, str], Score]) -> Iterator[Bar]:
    for arc in dict.fromkeys(arc for arc, _ in scores):
        if arc in _BOUNDS:
            best = max(
                (one for one in scores.values() if one.arc == arc),
                key=lambda one: statistics.fmean(one.scores),
            )
            yield Bar(f"{arc}°: mean score of {best.method}", statistics.fmean(best.scores), _BOUNDS[arc])
