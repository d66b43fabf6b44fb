"""Support of a measurement: the share of every voxel that its data determine, smoothed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from ctflow.evidence.support import support_map
from ctflow.problem import InverseProblem
from ctflow.runs.measurement import Measurement

Floats = NDArray[np.float64]

PRIOR_SD_HU = 100.0
"""How far a voxel is taken to be from its expectation before the data, HU."""

SMOOTHED = 9
"""Width of the square over which a map is averaged, pixels: neighbours are supported alike."""

_PROBES = 2  # over 81 pixels the scatter of 0.7 / √2 falls to about 0.05


@dataclass(frozen=True)
class Support:
    """What the data determine of one slice.

    Args:
        place: index of the slice among the chosen ones.
        share: 0 (the prior alone) to 1 (the data alone), dimensionless, (Y, X).
    """

    place: int
    share: Floats


def smoothed_support(problem: InverseProblem, mu_water: float, seed: int) -> Floats:
    """Support map for a prior of `PRIOR_SD_HU`, averaged over squares of every slice, 0 to 1.

    Args:
        problem: operator and weights of one measurement, images in 1/mm.
        mu_water: attenuation of water, 1/mm.
        seed: of the map's probes.

    Returns:
        (Z, Y, X), dimensionless.
    """
    found = support_map(problem, PRIOR_SD_HU / 1000 * mu_water, _PROBES, seed)
    return np.asarray(uniform_filter(found.double().cpu().numpy(), (1, SMOOTHED, SMOOTHED)).clip(0, 1))


def middle_support(measurement: Measurement, problem: InverseProblem, seed: int) -> Support:
    """Support of the middle one of the chosen slices.

    Args:
        measurement: what was measured.
        problem: its data, as of `Measurement.problem`.
        seed: of the map's probes.
    """
    middle = measurement.grid.shape[0] // 2
    whole = measurement.unknown.grid.shape[0] > 1
    solve, place = (0, measurement.unknown.beyond + middle) if whole else (middle, 0)
    part = problem.part(slice(solve, solve + 1))
    return Support(middle, smoothed_support(part, measurement.protocol.mu_water, seed)[place])
