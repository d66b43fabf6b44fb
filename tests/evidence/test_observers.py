"""The ideal observer against likelihood ratios, the Hotelling observer's interval against many studies."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from ctflow.errors import GeometryError
from ctflow.evidence.detectability import (
    auc,
    channel_outputs,
    hotelling,
    hotelling_interval,
    hotelling_of_outputs,
    ideal,
    laguerre_gauss,
)
from ctflow.evidence.discs import Disc
from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.problem import InverseProblem

GRID = VolumeGeometry((1, 24, 24), (1.0, 1.0, 1.0))


def test_the_ideal_observers_area_is_that_of_the_likelihood_ratio():
    """Scores log p(y | lesion) - log p(y | none) of 4000 draws each, on 12 views with uneven weights."""
    generator = torch.Generator().manual_seed(0)
    A = Radon(GRID, ParallelBeam(12))
    signal = 0.0025 * torch.from_numpy(Disc(12, 12, 6.0).profile(GRID))[None].float()
    clean = A(torch.rand(GRID.shape, generator=generator))
    W = 200 * torch.rand(clean.shape, generator=generator)
    problem = InverseProblem(A, clean, Gaussian(1.0), W)
    noise = torch.randn((2, 4000, *clean.shape), generator=generator) / W.sqrt()

    def score(y):
        absent, present = (0.5 * (W * (y - A_x) ** 2).sum((-3, -2, -1)) for A_x in (clean, clean + A(signal)))
        return absent - present

    with_, without = score(clean + A(signal) + noise[0]), score(clean + noise[1])
    found = mannwhitneyu(with_, without).statistic / 4000**2
    expected = auc(ideal(problem, signal))
    assert 0.6 < expected < 0.9  # where the comparison says something
    assert found == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(4000))  # standard error at most 0.008


def test_the_area_under_the_curve_of_known_detectability():
    assert auc(0.0) == 0.5
    # Φ(1) = 0.8413, where d' = √2.
    assert auc(math.sqrt(2)) == pytest.approx(0.841345, abs=1e-6)


def outputs(generator, number, mean, mixing):
    return (generator.standard_normal((number, len(mean))) @ mixing) + mean


@pytest.mark.parametrize("d", [0.0, 1.0, 4.0])
def test_the_interval_holds_the_true_detectability_as_often_as_it_says(d):
    """500 studies of 12 images with and 30 without, four correlated channels."""
    generator, mixing = np.random.default_rng(1), np.eye(4) + 0.4
    mean = d * mixing[0]  # of Mahalanobis length d
    held = []
    for _ in range(500):
        low, high = hotelling_interval(
            outputs(generator, 12, mean, mixing), outputs(generator, 30, np.zeros(4), mixing), 0.9
        )
        held.append(low <= d <= high)
    # At d' = 0 the lower end is cut at 0, so that only one side can miss.
    assert np.mean(held) == pytest.approx(0.95 if d == 0 else 0.9, abs=4 * math.sqrt(0.09 / 500))


def test_the_interval_surrounds_the_estimate():
    generator = np.random.default_rng(2)
    with_, without = outputs(generator, 40, 2 * np.ones(3), np.eye(3)), generator.standard_normal((60, 3))
    low, high = hotelling_interval(with_, without)
    assert low < hotelling_of_outputs(with_, without) < high


def test_outputs_at_places_are_those_of_images_cut_out_there():
    image = np.random.default_rng(3).standard_normal((40, 50))
    channels = laguerre_gauss(9, 5.0, 3)
    places = np.array([(10, 20), (30, 7), (0, 49)])
    cut = np.stack([np.pad(image, 4)[r : r + 9, c : c + 9] for r, c in places])
    assert channel_outputs(channels, image, places) == pytest.approx(np.einsum("pyx,nyx->np", channels, cut))
    at_most = np.random.default_rng(4).integers(4, 36, (60, 2))
    present, absent = (channel_outputs(channels, x, at_most) for x in (image + 1, image))
    regions = [np.stack([x[r - 4 : r + 5, c - 4 : c + 5] for r, c in at_most]) for x in (image + 1, image)]
    assert hotelling(channels, *regions) == pytest.approx(hotelling_of_outputs(present, absent))


def test_observers_without_noise_or_images_are_refused():
    with pytest.raises(GeometryError, match="vary in 0 directions"):
        hotelling_of_outputs(np.ones((9, 2)), np.zeros((9, 2)))
    with pytest.raises(GeometryError, match="too few"):
        hotelling_interval(np.ones((20, 2)), np.zeros((0, 2)))
