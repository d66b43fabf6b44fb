"""Test whether numbers can be HU, for every source of images, and convert units that a user declares."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ctflow.errors import SeriesError, UsageError
from ctflow.units import AIR_HU

if TYPE_CHECKING:
    from ctflow.volume import Volume

EXPECTED = "expected HU: air near -1000, water near 0"
"""The expectation that every message of this test states."""

_ADVICE = (
    "Say what the values are with --unit 1/mm, --unit 1/cm, --unit HU+1024 or --unit SLOPE,INTERCEPT (HU = "
    "slope × value + intercept), or take them as they are with --unit HU (unit= in Python)"
)
_PER_MM = {"1/mm": 1.0, "1/cm": 10.0, "1/m": 1000.0}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FEW_TISSUE = "only {:.1%} of what is denser than lung lie within 250 of water"
_SAMPLE = 2**18  # voxels that are examined
_FEW = 2**14  # below it, a slice of 128², most reasons only raise doubts
_LARGEST = 1e6
# The limits were measured on 2,004 slices of patients, on crops of 48 and 96 pixels of them and on the same
# slices spoilt in forty ways; the comment at every limit says what real CT reached.
_GAS = -850.0  # half a percent of the values lie below it wherever air or a lung is in view
_NARROW = 20.0  # 54 HU in the most uniform crop
_SPIKE = 0.02  # of the values at the lowest; 0.001 where that is not air
_RAISED = 0.25  # 0.03 in slices, 0.17 in crops
_BELOW_AIR = 0.1  # noise of 240 HU in air reaches it
_BESIDE_FILLING = 0.3  # times as much is air, and a tenth tissue
_DEEPEST = -3300.0  # beyond -3024 and -3072, with which scanners fill corners
_TISSUE = 0.2  # of what is denser than lung; 0.76 of volumes, 0.3 of slices and crops of 96 pixels
_LONE_PEAK = 0.2  # of what is denser than air within 50 HU, half-way from air to water; 0.15 in crops
_ONE_VALUE = 0.25  # of the values where no air is in view; 0.15, 0.20 in tiny crops
_WIDEST_BODY_MM = 350.0  # from front to back, and no field of view is filled by one both ways


def scale(unit: str, mu_water: float) -> tuple[float, float]:
    """Slope and intercept of HU = slope × value + intercept.

    Args:
        unit: "HU", "HU+1024" (values are 1024 above HU), "1/mm", "1/cm", "1/m" or "SLOPE,INTERCEPT".
        mu_water: attenuation of water, 1/mm.

    Raises:
        UsageError: the text is none of these.
    """
    if unit in _PER_MM:
        return 1000.0 / (mu_water * _PER_MM[unit]), AIR_HU
    if found := re.fullmatch(rf"HU([-+]{_NUMBER.removeprefix('[-+]?')})?", unit):
        return 1.0, -float(found[1] or 0.0)
    if found := re.fullmatch(rf"({_NUMBER}), ?({_NUMBER})", unit):
        slope, intercept = float(found[1]), float(found[2])
        if slope and math.isfinite(slope) and math.isfinite(intercept):
            return slope, intercept
    raise UsageError(
        f"unit '{unit[:40]}' is unknown; expected HU, HU+1024, 1/mm, 1/cm, 1/m or SLOPE,INTERCEPT as in "
        "1000,-1000"
    )


def converted(volume: Volume, unit: str) -> Volume:
    """Convert a volume from the unit that the user declares to HU; "" and "HU" change nothing."""
    slope, intercept = scale(unit or "HU", volume.mu_water)
    if volume.unit != "HU" or (slope, intercept) == (1.0, 0.0):
        return volume
    return replace(volume, data=volume.data * slope + intercept)


def require_hu(volume: Volume, unit: str = "") -> list[str]:
    """Refuse a volume whose values cannot be HU; a unit that the user declared is accepted, with a warning.

    Args:
        volume: voxels in HU, after `converted`; those outside its mask are ignored.
        unit: unit that the user declares for the numbers of the file; "" where none was declared.

    Returns:
        Warnings: what is unusual but possible, and what was declared.

    Raises:
        SeriesError: the values are not HU; the message gives the figures.
    """
    reasons, doubts = _examined(volume)
    if reasons and not unit:
        raise SeriesError([f"the values are not HU: {'; '.join(reasons)} ({EXPECTED})"], _ADVICE)
    said = [f"the values were declared by the user as {unit} and not derived from the file"] if unit else []
    return [*said, *_worded([*reasons, *doubts])]


def unusual_hu(volume: Volume) -> list[str]:
    """Warnings about unusual values of a volume in HU; nothing is refused."""
    reasons, doubts = _examined(volume)
    return _worded([*reasons, *doubts])


def _worded(doubts: list[str]) -> list[str]:
    return [f"these may not be HU: {'; '.join(doubts)} ({EXPECTED})"] if doubts else []


def _examined(volume: Volume) -> tuple[list[str], list[str]]:
    """Reasons why the values cannot be HU, and reasons why they might not be."""
    values = _measured(volume)
    if not len(values):
        return ["no voxel holds a measured value"], []
    broken = int((~np.isfinite(values)).sum())
    if broken:
        return [f"{broken} of {len(values)} voxels are NaN or infinite"], []
    found = _Values(values)
    wide = min(n * d for n, d in zip(volume.geometry.shape[1:], volume.geometry.spacing[1:], strict=True))
    likely = [*_cut_reasons(found), *_place_reasons(found)]
    doubts = _doubts(found)
    if not found.gas:
        text = f"no air or lung in view ({wide:.0f} mm), half a percent lies below {found.at(0.005):.4g}"
        (likely if wide >= _WIDEST_BODY_MM else doubts).append(text)
    if volume.data.numel() < _FEW:
        return _sure_reasons(found), [*likely, *doubts]
    return [*_sure_reasons(found), *likely], doubts


def _measured(volume: Volume) -> NDArray[np.float32]:
    """Values inside the mask: all of them, or a sample at fixed positions."""
    data = volume.to_hu().data.detach().cpu().numpy().ravel()
    mask = volume.mask.cpu().numpy().ravel()
    if len(data) > _SAMPLE:
        places = np.random.default_rng(0).integers(0, len(data), _SAMPLE)
        data, mask = data[places], mask[places]
    values: NDArray[np.float32] = data[mask].astype(np.float32)
    return values


class _Values:
    """Sorted values, and the statistics that the test needs."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = np.sort(values)
        self.gas = self.at(0.005) <= _GAS
        dense = self.share(-650.0, np.inf)
        # Of what is denser than lung; a hundredth of the values says nothing.
        self.tissue = self.share(-250.0, 250.0) / dense if dense > 0.01 else 1.0

    def at(self, quantile: float) -> float:
        return float(self.values[int(quantile * (len(self.values) - 1))])

    def share(self, low: float, high: float) -> float:
        """Share of the values from `low` to below `high`."""
        first, last = np.searchsorted(self.values, (low, high))
        return float(last - first) / len(self.values)

    def peak(self, low: float, high: float, width: float) -> tuple[float, float]:
        """Centre of the fullest interval of this width, in HU, and the share of the values in it."""
        edges = np.arange(low, high + 1, width / 2)
        counts = np.histogram(self.values, edges)[0]
        pairs = counts[1:] + counts[:-1]
        fullest = int(pairs.argmax())
        return float(edges[fullest + 1]), float(pairs[fullest]) / len(self.values)

    def commonest(self) -> tuple[float, float]:
        """Most frequent value and its share."""
        values, counts = np.unique(self.values, return_counts=True)
        return float(values[counts.argmax()]), float(counts.max()) / len(self.values)


def _sure_reasons(found: _Values) -> list[str]:
    """Reasons that hold however few values there are: they are on another scale."""
    low, high, reasons = found.at(0.0), found.at(1.0), []
    if found.at(0.999) - found.at(0.001) < _NARROW and abs(found.at(0.5)) < _NARROW:
        reasons.append(f"they span only {low:.4g} to {high:.4g}, as attenuation, labels or scaled values do")
    if max(-low, high) > _LARGEST:
        reasons.append(f"they run from {low:.4g} to {high:.4g}")
    return reasons


def _cut_reasons(found: _Values) -> list[str]:
    """Reasons from values that are shifted, cut off or filled in."""
    low, high, reasons = found.at(0.0), found.at(1.0), []
    at_lowest = found.share(low, np.nextafter(np.float32(low), np.float32(np.inf)))
    if at_lowest >= _SPIKE and low > _GAS:
        reasons.append(
            f"{at_lowest:.1%} hold the lowest value, {low:.4g}, so they are cut off, filled or shifted"
        )
    if low >= 0 and found.at(0.99) - found.at(0.01) > 100:
        reasons.append(f"they run from {low:.4g} to {high:.4g} and none lies below 0")
    value, share = found.commonest()
    if not found.gas and share > _ONE_VALUE:
        reasons.append(f"{share:.1%} hold the one value {value:.4g} and none is air")
    if (share := found.share(8000.0, np.inf)) > _SPIKE:
        reasons.append(f"{share:.1%} lie above 8000, up to {high:.4g}")
    return reasons


def _place_reasons(found: _Values) -> list[str]:
    """Reasons from air and tissue at impossible values."""
    reasons = []
    below = found.share(-np.inf, -1300.0)
    # A filling of the corners, blurred by a lossy coder, leaves air and tissue where they belong.
    beside = min(found.share(-1150.0, -850.0), 3 * found.share(-250.0, 250.0))
    deepest = found.share(-np.inf, _DEEPEST)
    if (below > _BELOW_AIR and beside < _BESIDE_FILLING * below) or deepest > _SPIKE:
        reasons.append(f"{below:.1%} lie below -1300, down to {found.at(0.0):.4g}")
    centre, share = found.peak(-750.0, -250.0, 50.0)
    denser = found.share(_GAS, np.inf)
    if denser > 0.05 and share / denser > _LONE_PEAK:
        reasons.append(f"{share:.1%} lie within 25 of {centre:.0f}, where neither air nor tissue is")
    if found.tissue < _TISSUE and not found.gas:
        reasons.append(_FEW_TISSUE.format(found.tissue))
    raised, between = found.share(850.0, 1200.0), found.share(500.0, 850.0)
    air = found.share(-1150.0, -850.0)  # where it is as well, something dense lies in it: acrylic at 45 kV
    if (raised > _RAISED and raised > 3 * air) or (not found.gas and raised > max(0.01, 4 * between)):
        reasons.append(
            f"{raised:.1%} lie from 850 to 1200, as in values raised by 1000 or 1024, or turned over"
        )
    return reasons


def _doubts(found: _Values) -> list[str]:
    doubts = []
    high = found.at(1.0)
    cut = found.share(high, np.inf)
    if cut >= 0.01 and 0 < high < 2000:
        doubts.append(f"{cut:.1%} hold the highest value, {high:.4g}, as in a window that was cut out")
    if (share := found.share(-np.inf, -1300.0)) > _SPIKE:
        doubts.append(f"{share:.1%} lie below -1300")
    if found.tissue < _TISSUE and found.gas:  # acrylic at 40 kV, wood, a bone by itself
        doubts.append(_FEW_TISSUE.format(found.tissue))
    elif found.share(-250.0, 250.0) < 0.001:
        doubts.append("nothing lies within 250 of water")
    elif (
        found.share(-400.0, 600.0) > 0.01
        and not -150 <= (centre := found.peak(-400.0, 600.0, 100.0)[0]) <= 150
    ):
        doubts.append(f"most tissue lies near {centre:.0f}")
    return doubts
