"""Lesion insertion and removal: a perfect method recovers all, a blind one nothing, a liar is caught."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from ctflow.errors import GeometryError
from ctflow.evidence.lesions import lesion_table, lesion_test
from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.operators.mask import Mask
from ctflow.recon.fbp import FBP
from ctflow.units import MU_WATER
from ctflow.volume import Volume

GRID = VolumeGeometry((1, 96, 96), (3.0, 2.0, 2.0))


@pytest.fixture(scope="module")
def tissue():
    """An ellipse of 40 HU in air."""
    y, x = (torch.arange(96) - 47.5)[:, None], torch.arange(96) - 47.5
    inside = (y / 34) ** 2 + (x / 42) ** 2 < 1
    return Volume(torch.where(inside, 40.0, -1000.0)[None], GRID, "HU")


@dataclass(frozen=True)
class Shown:
    """Shows `share` of the data, and `added` where nothing is."""

    share: float = 1.0
    added: float = 0.0
    needs_prior: bool = False

    def __call__(self, problem, prior, generator, callback):
        y, x = (torch.arange(96) - 47.5)[:, None], torch.arange(96) - 47.5
        wave = torch.cos(x / 6) * torch.cos(y / 6)
        plain = 1.04 * MU_WATER
        return plain + self.share * (problem.y - plain) + self.added * MU_WATER / 1000 * wave


def found_by(tissue, method, **options):
    A = Mask((1, 96, 96), missing=0.0)
    return lesion_test(tissue, A, Gaussian(1e-9), method, diameters_mm=[10.0], places=12, **options)


def test_what_is_shown_whole_is_recovered_whole(tissue):
    for row in found_by(tissue, Shown()):
        assert row.recovery == pytest.approx(100, abs=0.1)  # float32 attenuation: 1e-4 HU per pixel
        assert row.false_signal_hu == pytest.approx(0, abs=1e-2)
        assert (row.false_rate, row.auc) == (0, 1)


def test_a_method_that_shows_40_percent_recovers_40_percent(tissue):
    for row in found_by(tissue, Shown(share=0.4)):
        assert row.recovery == pytest.approx(40, abs=0.1)


def test_a_method_that_invents_is_caught_by_the_twin(tissue):
    honest, liar = (found_by(tissue, Shown(added=a), contrasts_hu=[20.0])[0] for a in (0.0, 200.0))
    assert liar.recovery == pytest.approx(honest.recovery, abs=0.1)  # insertion alone would not see it
    assert liar.false_rate > 0.2 > honest.false_rate
    assert liar.detectability < 2 < honest.detectability


@dataclass(frozen=True)
class Bowl:
    """Shows all, and under it a bowl of `hu_per_mm2` r²: darker in the middle of any place."""

    hu_per_mm2: float
    needs_prior: bool = False

    def __call__(self, problem, prior, generator, callback):
        y, x = (2.0 * (torch.arange(96) - 47.5)[:, None], 2.0 * (torch.arange(96) - 47.5))
        return problem.y + self.hu_per_mm2 * MU_WATER / 1000 * (x**2 + y**2)


@pytest.mark.parametrize("sign", [1, -1])
def test_false_structure_has_the_sign_of_what_a_twin_shows(tissue, sign):
    """The mean of r² is R²/2 above the centre's over a disc, and (a² + b²)/2 over a ring."""
    radius, inner, outer = 5.0, 7.0, 11.0  # mm: disc, one pixel beside it, and three beyond
    signal = -(inner**2 + outer**2 - radius**2) / 2
    rows = found_by(tissue, Bowl(sign * 30 / signal), contrasts_hu=[50.0, -50.0])
    assert [row.contrast_hu for row in rows] == [50, -50]
    for row in rows:
        assert row.false_signal_hu == pytest.approx(sign * 30, rel=0.1)  # pixels of 2 mm
        assert row.recovery == pytest.approx(100, abs=0.5)
    # 30 HU exceed half of 50 HU in the lesion's own direction, and are none in the other.
    assert [row.false_rate for row in rows] == ([1, 0] if sign > 0 else [0, 1])
    assert f"{sign * 30:+.0f}"[0] in lesion_table(rows).splitlines()[1].split("±")[1]


def test_detectability_in_white_noise_is_closed_form(tissue):
    """The disc-minus-ring observer in white noise of sigma: d' = contrast · w·s / (sigma |w|)."""
    sigma_hu, contrast = 60.0, 30.0
    found = lesion_test(
        tissue,
        Mask((1, 96, 96), missing=0.0),
        Gaussian(sigma_hu * MU_WATER / 1000),
        Shown(),
        diameters_mm=[10.0],
        contrasts_hu=[contrast],
        places=120,
    )[0]
    # Disc of radius 2.5 pixels, ring from 3.5 to 5.5: areas of 19.6 and 56.5 pixels.
    areas = np.pi * 2.5**2, np.pi * (5.5**2 - 3.5**2)
    expected = contrast / (sigma_hu * np.sqrt(1 / areas[0] + 1 / areas[1]))
    # Standard error √(2/120 + d'²/480) ≈ 0.2, and twins share the noise of their images, which only helps;
    # 10 % for the pixels on the edge of disc and ring.
    assert found.detectability == pytest.approx(expected, abs=0.5 + 0.1 * expected)


def test_fbp_recovers_large_lesions_better_than_small_ones(tissue):
    """A band-limited linear method: recovery does not depend on contrast, and grows with the diameter."""
    A = Radon(GRID, ParallelBeam(90))
    rows = lesion_test(
        tissue, A, Gaussian(1e-3), FBP(), diameters_mm=[5.0, 16.0], contrasts_hu=[-40.0, 40.0], places=4
    )
    by_size = {size: [r.recovery for r in rows if r.diameter_mm == size] for size in (5.0, 16.0)}
    for values in by_size.values():
        assert values[0] == pytest.approx(values[1], abs=0.5)  # linear, in common noise
    assert max(by_size[5.0]) < min(by_size[16.0])
    assert by_size[16.0] == pytest.approx([100, 100], abs=8)  # the ring takes some of the blurred edge
    assert lesion_table(rows).count("\n") == 4


def test_lesions_that_fit_nowhere_are_refused(tissue):
    with pytest.raises(GeometryError, match="places"):
        lesion_test(tissue, None, None, None, diameters_mm=[200.0])
    two = Volume(tissue.data.repeat(2, 1, 1), replace(GRID, shape=(2, 96, 96), affine=()), "HU")
    with pytest.raises(GeometryError, match="one slice"):
        lesion_test(two, None, None, None)
