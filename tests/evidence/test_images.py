"""MTF, NPS, CNR and detectability against closed forms."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import erf

from ctflow.errors import GeometryError
from ctflow.evidence.cnr import contrast_to_noise
from ctflow.evidence.detectability import gabor, hotelling, laguerre_gauss, npw, npw_from_spectrum
from ctflow.evidence.mtf import edge_mtf, rod_mtf
from ctflow.evidence.nps import noise_power, regions_inside

SPACING, SIGMA = 0.7, 0.8  # mm


def gaussian_mtf(frequency):
    return np.exp(-2 * (np.pi * SIGMA * frequency) ** 2)


def blurred_rod(centre=(40.3, 39.8), radius=12.0, n=116):
    """A disc blurred by a Gaussian: P(|r + sigma z| < R) for a standard normal z, Rice's distribution."""
    y, x = (np.arange(n) * SPACING - c for c in centre)
    square = (y[:, None] ** 2 + x**2) / SIGMA**2
    return 100 * stats.ncx2.cdf(radius**2 / SIGMA**2, 2, square)


def test_a_blurred_rod_has_the_blurs_mtf():
    found = rod_mtf(blurred_rod(), SPACING, (40.3, 39.8), 12.0, 6.0)
    # The edge's curvature moves the mean over its circle by the order of (sigma / radius)² = 0.0044.
    assert np.abs(found.value - gaussian_mtf(found.frequency)).max() < 0.0044
    assert found.f50 == pytest.approx(math.sqrt(math.log(2) / 2) / (math.pi * SIGMA), rel=0.005)
    assert found.f10 == pytest.approx(math.sqrt(math.log(10) / 2) / (math.pi * SIGMA), rel=0.005)


def test_a_slanted_edge_has_the_blurs_mtf():
    angle, n = math.radians(4), 80
    y, x = (np.arange(n)[:, None] - 40.2) * SPACING, (np.arange(n) - 39.6) * SPACING
    image = 50 * (1 + erf((x * math.cos(angle) + y * math.sin(angle)) / (SIGMA * math.sqrt(2))))
    found = edge_mtf(image, SPACING, (40.2 * SPACING, 39.6 * SPACING), angle, 10.0)
    assert (
        np.abs(found.value - gaussian_mtf(found.frequency)).max() < 0.002
    )  # interpolation between bins of pitch / 5: (0.14 / 0.8)² / 16
    assert found.f50 == pytest.approx(math.sqrt(math.log(2) / 2) / (math.pi * SIGMA), rel=0.005)


def test_an_edge_is_found_wherever_its_point_lies():
    """Far from the diagonal: rows of the point are no columns."""
    angle, n, point = math.radians(4), 80, (20 * SPACING, 55 * SPACING)
    y, x = np.arange(n)[:, None] * SPACING - point[0], np.arange(n) * SPACING - point[1]
    image = 50 * (1 + erf((x * math.cos(angle) + y * math.sin(angle)) / (SIGMA * math.sqrt(2))))
    found = edge_mtf(image, SPACING, point, angle, 10.0)
    assert np.abs(found.value - gaussian_mtf(found.frequency)).max() < 0.002  # as above


def test_mtf_refuses_what_is_no_edge():
    with pytest.raises(GeometryError, match="no contrast"):
        rod_mtf(np.full((116, 116), 5.0), SPACING, (40.0, 40.0), 12.0, 6.0)
    with pytest.raises(GeometryError, match="does not fit"):
        rod_mtf(blurred_rod(), SPACING, (10.0, 40.0), 12.0, 6.0)


def coloured(number, n=64, seed=0):
    """Periodic noise of a known spectrum: white noise of 20 HU through a filter."""
    f = np.fft.fftfreq(n, SPACING)
    gain = np.exp(-2 * (np.hypot(f[:, None], f) / 0.3) ** 2)
    white = 20 * np.random.default_rng(seed).standard_normal((number, n, n))
    return np.fft.ifft2(np.fft.fft2(white) * gain).real, (20 * SPACING * gain) ** 2


def test_the_integral_of_the_nps_is_the_variance():
    regions, _ = coloured(7)
    assert noise_power(regions, SPACING).variance == pytest.approx(regions.var((1, 2)).mean(), rel=1e-12)


def test_the_nps_of_filtered_noise_is_the_filters():
    regions, expected = coloured(400)
    found = noise_power(regions, SPACING)
    strong = expected > 0.01 * expected.max()
    strong[0, 0] = False  # every region's mean is taken away
    # A periodogram has a relative standard deviation of 1 / √400 at each of some 3000 frequencies.
    assert np.abs(found.power / expected - 1)[strong].max() < 5 / math.sqrt(400)
    assert (found.power / expected)[strong].mean() == pytest.approx(1, abs=0.005)
    f, radial = found.radial()
    closed = (20 * SPACING * np.exp(-2 * (f / 0.3) ** 2)) ** 2
    # From the third ring on; the width of a ring, 0.022 per mm, bends the mean of a Gaussian by under 2 %.
    assert radial[2:12] == pytest.approx(closed[2:12], rel=0.05)


def test_regions_lie_wholly_inside():
    image, mask = np.arange(400.0).reshape(1, 20, 20), np.zeros((1, 20, 20), bool)
    mask[0, 4:16, 4:16] = True
    assert np.isin(regions_inside(image, mask, 8), image[mask]).all()
    with pytest.raises(GeometryError, match="fits"):
        regions_inside(image, mask, 14)


def test_cnr_of_known_contrast_and_noise():
    image = 10 * np.random.default_rng(1).standard_normal((4, 100, 100))
    signal = np.zeros(image.shape, bool)
    signal[:, 40:60, 40:60] = True
    # 38400 voxels of background: the standard deviation is known to 0.4 %, the mean signal to 2.5 %; 4 sigma.
    assert contrast_to_noise(image + 40 * signal, signal, ~signal) == pytest.approx(4, rel=0.05)
    with pytest.raises(GeometryError):
        contrast_to_noise(image, signal, signal)


def disc_signal(n=64, diameter=8.0, contrast=5.0):
    place = (np.arange(n) - (n - 1) / 2) * SPACING
    return contrast * (np.hypot(place[:, None], place) <= diameter / 2)


def test_npw_from_the_spectrum_of_white_noise():
    """White noise of sigma: d' = |s| / sigma."""
    white = noise_power(20 * np.random.default_rng(0).standard_normal((2, 64, 64)), SPACING)
    white.power[:] = (20 * SPACING) ** 2
    signal = disc_signal()
    assert npw_from_spectrum(signal, white) == pytest.approx(np.linalg.norm(signal) / 20, rel=1e-12)


def test_npw_from_images_agrees_with_the_spectrum():
    noise, power = coloured(1500, seed=3)
    spectrum = noise_power(noise[:2], SPACING)
    spectrum.power[:] = power
    signal = disc_signal()
    found = npw(signal, noise[:750] + signal, noise[750:])
    expected = npw_from_spectrum(signal, spectrum)
    # Two means and two variances of 750 images each: standard error √(2/750 + d'²/3000) ≈ 0.06.
    assert found == pytest.approx(expected, abs=4 * math.sqrt(2 / 750 + expected**2 / 3000))


def test_hotelling_is_the_ideal_observer_where_the_channels_hold_the_signal():
    """A Gaussian lesion is the first Laguerre-Gauss channel; in white noise d' = |s| / sigma."""
    n, width = 32, 12.0
    place = np.arange(n) - (n - 1) / 2
    signal = 8 * np.exp(-np.pi * (place[:, None] ** 2 + place**2) / width**2)
    noise = 20 * np.random.default_rng(5).standard_normal((4000, n, n))
    found = hotelling(laguerre_gauss(n, width), noise[:2000] + signal, noise[2000:])
    expected = np.linalg.norm(signal) / 20
    assert found == pytest.approx(expected, abs=4 * math.sqrt(2 / 2000 + expected**2 / 8000))


def test_hotelling_of_gabor_channels_in_white_noise():
    """d'² = vᵀ (sigma² U Uᵀ)⁻¹ v with v = U s, for channels that overlap."""
    n = 40
    channels = gabor(n, octaves=2, angles=3)
    flat = channels.reshape(len(channels), -1)
    signal = disc_signal(n, contrast=6.0)
    v = flat @ signal.ravel()
    expected = math.sqrt(v @ np.linalg.solve(flat @ flat.T, v)) / 20
    noise = 20 * np.random.default_rng(6).standard_normal((3000, n, n))
    found = hotelling(channels, noise[:1500] + signal, noise[1500:])
    assert found == pytest.approx(expected, abs=4 * math.sqrt(2 / 1500 + expected**2 / 6000))


def test_hotelling_is_right_on_average_with_few_images():
    """The correction for finite images leaves no bias in d'²; without it 24 images nearly double it."""
    n, width = 12, 6.0
    channels = laguerre_gauss(n, width, 4)
    signal = 10 * channels[0]
    generator = np.random.default_rng(7)
    squares = []
    for _ in range(400):
        noise = 5 * generator.standard_normal((24, n, n))
        squares.append(hotelling(channels, noise[:12] + signal, noise[12:]) ** 2)
    # True d'² = 4; the spread of one estimate is about 2.5, so the mean is known to 0.125; 4 of them.
    assert np.mean(squares) == pytest.approx(4, abs=0.5)


def test_hotelling_refuses_too_few_images():
    many = np.random.default_rng(0).standard_normal((2, 5, 8, 8))
    assert hotelling(laguerre_gauss(8, 4.0, 6), many[0] + 9, many[1]) > 0
    with pytest.raises(GeometryError, match="9 images are too few for 6 channels"):  # 7 - 6 - 1 degrees left
        hotelling(laguerre_gauss(8, 4.0, 6), many[0], many[1, 1:])
    with pytest.raises(GeometryError, match="too few"):
        hotelling(laguerre_gauss(8, 4.0), np.zeros((3, 8, 8)), np.zeros((3, 8, 8)))
