"""Discs in a slice: drawn where they fit and apart, refused where they do not, their means as in geometry."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.special import ive

from ctflow.errors import GeometryError
from ctflow.evidence.discs import (
    EDGE_MM,
    LUNG,
    SOFT_TISSUE,
    Disc,
    disc_means,
    distance,
    draw_discs,
    fits,
    invented,
    on_grid,
)
from ctflow.geometry import VolumeGeometry
from ctflow.volume import Volume

GRID = VolumeGeometry((1, 120, 120), (1.0, 1.0, 1.0))


def overlap(radius, sigma):
    """Mean of a disc, blurred by a Gaussian, over the disc: 1 - exp(-a) (I0(a) + I1(a)), a = R² / sigma².

    Soumpasis, Biophys. J. 41 (1983), eq. 12: recovery of a bleached disc by diffusion.
    """
    a = (radius / sigma) ** 2
    return 1 - ive(0, a) - ive(1, a)


@pytest.fixture(scope="module")
def slice_():
    """A body of 40 HU with a lung, and noise of 10 HU."""
    y, x = np.arange(120)[:, None] - 60.0, np.arange(120) - 60.0
    hu = np.where((y / 50) ** 2 + (x / 56) ** 2 < 1, 40.0, -1000.0)
    hu[np.hypot(y, x - 28) < 18] = -850
    hu += 10 * np.random.default_rng(0).standard_normal(hu.shape)
    return Volume(torch.from_numpy(hu.astype(np.float32))[None], GRID, "HU")


@pytest.mark.parametrize("blur", [0.0, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("diameter", [8.0, 12.0])
def test_the_mean_of_a_blurred_disc_is_closed_form(diameter, blur):
    image = gaussian_filter(Disc(60, 60, diameter).profile(GRID), blur)
    found = disc_means(image, GRID, diameter)[60, 60]
    # Pixels of 1 mm: those whose centres lie in the disc have 98 to 100 % of its area, and a lesion's edge is
    # straight across where the Gaussian's of a disc is bent: (sigma / R)² / 8 = 0.002.
    assert found == pytest.approx(overlap(diameter / 2, np.hypot(blur, EDGE_MM)), abs=0.02)


def test_discs_lie_in_their_tissue_and_apart(slice_):
    found = []
    for diameter in (12.0, 8.0, 6.0, 4.0):
        found += draw_discs(slice_, diameter, SOFT_TISSUE, 4, 3, found)
    assert len(found) == 16
    hu = slice_.data[0].numpy()
    for disc in found:
        inside = disc.profile(GRID) > 0.1  # with its edge
        assert hu[inside].min() > -30  # noise of 10 HU about 40 HU: neither air nor lung
        gaps = [
            np.hypot(disc.row - o.row, disc.column - o.column) - disc.diameter_mm - o.diameter_mm
            for o in found
            if o is not disc
        ]
        assert min(gaps) >= 0
    nodule = draw_discs(slice_, 6.0, LUNG, 1, 0)[0]
    assert hu[nodule.profile(GRID) > 0.1].max() < -800
    assert draw_discs(slice_, 6.0, LUNG, 1, 0) == [nodule]  # a matter of the seed alone


def test_as_many_as_fit_are_drawn(slice_):
    assert 1 <= len(draw_discs(slice_, 10.0, LUNG, 50, 0)) < 6  # centres 20 mm apart within 18 mm of radius


def test_a_lesion_that_fits_nowhere_is_refused_by_diameter_and_tissue(slice_):
    coarse = Volume(slice_.data[:, ::3, ::3], VolumeGeometry((1, 40, 40), (1.0, 3.0, 3.0)), "HU")
    with pytest.raises(GeometryError, match="lesion of 90 mm fits nowhere in soft tissue"):
        draw_discs(coarse, 90.0, SOFT_TISSUE, 1, 0)
    with pytest.raises(GeometryError, match="lesion of 40 mm fits nowhere in lung"):
        draw_discs(coarse, 40.0, LUNG, 1, 0)
    full = [Disc(row, column, 30.0) for row in range(0, 40, 10) for column in range(0, 40, 10)]
    with pytest.raises(GeometryError, match="none is free"):
        draw_discs(coarse, 6.0, SOFT_TISSUE, 1, 0, full)


def test_tissue_that_is_not_homogeneous_takes_no_lesion(slice_):
    y, x = np.arange(120)[:, None], np.arange(120)
    stripes = slice_.with_data(slice_.data + 30 * torch.from_numpy(np.cos(np.pi * (y + x) / 4))[None])
    assert fits(slice_, 6.0, SOFT_TISSUE).sum() > 1000
    # √(30²/2 + 10²) = 23.5 HU before the waves, and at 45 HU in place of 30 it is 33 HU: above 25 HU.
    assert fits(stripes, 6.0, SOFT_TISSUE).any()
    wilder = slice_.with_data(slice_.data + 45 * torch.from_numpy(np.cos(np.pi * (y + x) / 4))[None])
    assert not fits(wilder, 6.0, SOFT_TISSUE).any()


def test_a_grid_has_its_pitch_at_any_spacing():
    grid = VolumeGeometry((1, 60, 60), (1.0, 1.5, 2.0))
    places = on_grid(np.ones((60, 60), bool), grid, 8.0)
    rows, columns = (np.unique(places[:, axis]) for axis in (0, 1))
    assert set(np.diff(rows)) == {6}  # 8 mm are 5.3 rows: discs do not meet
    assert set(np.diff(columns)) == {4}
    assert len(places) == len(rows) * len(columns)


@pytest.mark.parametrize(("contrast", "above"), [(150.0, (1, 1)), (-60.0, (1, 0)), (40.0, (0, 0))])
def test_a_blob_that_is_not_there_is_an_invention(contrast, above):
    body = np.hypot(np.arange(120)[:, None] - 60, np.arange(120) - 60) < 50
    row, column = on_grid(body, GRID, 8.0)[40]
    errors = invented(contrast * (distance(GRID, (row, column)) <= 4), body, GRID)
    assert (int((np.abs(errors) > 50).sum()), int((np.abs(errors) > 100).sum())) == above
    assert errors[np.abs(errors).argmax()] == pytest.approx(contrast, rel=1e-6)
    # Cells of 8 × 8 mm; those that the rim of the body cuts are left out.
    assert np.pi * 46**2 / 64 * 0.8 < len(errors) < np.pi * 50**2 / 64
