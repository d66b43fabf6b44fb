"""Hounsfield units and linear attenuation, degrees and radians."""

from __future__ import annotations

import math
from typing import TypeVar

from ctflow.errors import UnitError

MU_WATER = 0.0192
"""Linear attenuation of water, 1/mm, at about 72 keV, as in the Mayo low-dose CT data."""

AIR_HU = -1000.0

SOFT_TISSUE_HU = (-160.0, 240.0)
"""Values that are black and white where soft tissue is looked at."""

# Mass attenuation of water, cm²/g at keV (NIST XCOM, J. H. Hubbell and S. M. Seltzer); density 1 g/cm³.
_WATER = {30: 0.3756, 40: 0.2683, 50: 0.2269, 60: 0.2059, 80: 0.1837, 100: 0.1707, 150: 0.1505}

T = TypeVar("T")


def mu_water_at(energy_kev: float) -> float:
    """Linear attenuation of water at a photon energy, interpolated log-log between NIST's nodes.

    Args:
        energy_kev: effective energy, 30 to 150 keV.

    Returns:
        Attenuation in 1/mm.

    Raises:
        UnitError: the energy lies outside the table.

    References:
        Hubbell and Seltzer, NIST XCOM, table for liquid water.

    Examples:
        >>> import ctflow as ct
        >>> round(ct.units.mu_water_at(70), 5)
        0.01937
    """
    nodes = sorted(_WATER)
    if not nodes[0] <= energy_kev <= nodes[-1]:
        raise UnitError(
            f"energy {energy_kev} keV is outside {nodes[0]} to {nodes[-1]} keV; "
            "give an effective energy in keV, or mu_water in 1/mm"
        )
    high = next(node for node in nodes if node >= energy_kev)
    low = max((node for node in nodes if node <= energy_kev), default=high)
    if low == high:
        return _WATER[low] / 10
    share = math.log(energy_kev / low) / math.log(high / low)
    return math.exp((1 - share) * math.log(_WATER[low]) + share * math.log(_WATER[high])) / 10


def hu_to_attenuation(hu: T, mu_water: float = MU_WATER) -> T:
    """Convert HU to attenuation in 1/mm, mu = mu_water (1 + HU / 1000); tensors, arrays, numbers.

    Examples:
        >>> import ctflow as ct
        >>> ct.units.hu_to_attenuation(0.0)  # water, 1/mm
        0.0192
    """
    return mu_water * (1 + hu / 1000)  # type: ignore[operator,return-value]


def attenuation_to_hu(mu: T, mu_water: float = MU_WATER) -> T:
    """Convert attenuation in 1/mm to HU, HU = 1000 (mu / mu_water - 1); tensors, arrays, numbers.

    Examples:
        >>> import ctflow as ct
        >>> ct.units.attenuation_to_hu(0.0)
        -1000.0
    """
    return 1000 * (mu / mu_water - 1)  # type: ignore[operator,return-value]
