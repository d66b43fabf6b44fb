"""Discs with holes: what a prior of the Helsinki challenge is trained on."""

import json

import numpy as np
import pytest
from scipy.ndimage import label

from ctflow.datasets.punched_discs import ACRYLIC_HU, AIR_HU, punched_disc, write_punched_discs
from ctflow.errors import UsageError
from ctflow.training.slices import Slices


@pytest.fixture(scope="module")
def discs():
    random = np.random.default_rng(0)
    return np.stack([punched_disc(random) for _ in range(40)])


def test_a_disc_is_acrylic_or_air_but_for_its_edges(discs):
    """A pixel is the mean of four: what lies between is a line of pixels along edges."""
    assert set(np.unique(discs)) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert ((discs > 0) & (discs < 1)).mean((1, 2)).max() < 0.1


def test_the_rim_is_whole_and_the_disc_lies_inside_the_picture(discs):
    """Air around the disc is one piece, and no hole joins it."""
    for disc in discs:
        air, number = label(disc < 0.5)
        outside = air[0, 0]
        assert all((edge == outside).all() for edge in (air[0], air[-1], air[:, 0], air[:, -1]))
        filled = (air != outside).sum()
        assert 2 * np.sqrt(filled / np.pi) == pytest.approx(256 * 0.905, abs=256 * 0.046)  # its diameter
        rows, columns = np.nonzero(air != outside)
        radius = np.sqrt(filled / np.pi)
        assert np.hypot(rows - rows.mean(), columns - columns.mean()).max() < radius + 1
        assert number - 1 <= 40


def test_holes_are_of_every_number_and_size(discs):
    shares = discs.mean((1, 2)) / (np.pi / 4 * 0.905**2)
    numbers = {label(disc < 0.5)[1] - 1 for disc in discs}
    assert 0 in numbers
    assert max(numbers) >= 10
    assert shares.min() < 0.5
    assert shares.max() > 0.9


def test_a_folder_of_discs_trains(tmp_path):
    data = write_punched_discs(tmp_path / "discs", number=20, seed=3)
    train, held_out = Slices(data, "train"), Slices(data, "validation")
    assert (len(train.by_kind["256"]), len(held_out.by_kind["256"])) == (18, 2)
    expected = AIR_HU + (ACRYLIC_HU - AIR_HU) * punched_disc(np.random.default_rng(3))
    np.testing.assert_array_equal(train.by_kind["256"][0], np.round(expected))
    assert {entry["pixel_spacing_mm"] for entry in json.loads((data / "index.json").read_text())} == {0.29664}


def test_too_few_discs_are_refused(tmp_path):
    with pytest.raises(UsageError, match="9 discs are too few"):
        write_punched_discs(tmp_path / "discs", number=9)
    assert not (tmp_path / "discs").exists()
