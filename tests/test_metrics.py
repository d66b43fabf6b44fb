"""Metrics against formulas written out here, and against known answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from ctflow.datasets.phantoms import Phantom, thorax
from ctflow.errors import GeometryError, UsageError
from ctflow.geometry import VolumeGeometry
from ctflow.metrics import CONVENTIONS, body_mask, compare, evaluate, fov_mask
from ctflow.solving import Solution
from ctflow.units import hu_to_attenuation
from ctflow.volume import Volume

GRID = VolumeGeometry((2, 96, 96), (3.0, 4.0, 4.0))


@pytest.fixture(scope="module")
def truth() -> Volume:
    return thorax(0).rasterise(GRID).to_hu()


def noisy(truth, sigma=40.0):
    return truth.data + sigma * torch.randn(truth.data.shape, generator=torch.Generator().manual_seed(0))


def everywhere(truth):
    return torch.ones_like(truth.mask)


def test_offset_gives_exact_numbers(truth):
    """An offset of d HU inside the windows is an RMSE of |d| and a PSNR of 20 log10(range / |d|)."""
    flat = truth.with_data(torch.full_like(truth.data, 20.0))
    values = evaluate(flat.data - 8, flat.data, flat.mask, flat.mask)
    assert values["body"]["rmse_hu"] == pytest.approx(8)
    assert values["body"]["bias_hu"] == pytest.approx(-8)
    assert values["psnr"] == pytest.approx(20 * math.log10(2000 / 8))
    assert values["fov"]["psnr_soft_tissue"] == pytest.approx(20 * math.log10(400 / 8))
    # Flat images: SSIM is its luminance term alone, C1 = (K1 range)².
    x, y, c = 12.0, 20.0, (0.01 * 2000) ** 2
    assert values["ssim"] == pytest.approx((2 * x * y + c) / (x**2 + y**2 + c), rel=1e-12)


def test_same_image_is_perfect(truth):
    values = evaluate(truth.data, truth.data, truth.mask, truth.mask)
    assert values["rmse_hu"] == 0
    assert values["psnr"] == math.inf
    assert values["ssim"] == pytest.approx(1, abs=1e-12)


def test_every_class_of_ct_numbers_has_its_own_error(truth):
    """An error put into one class alone is found there alone; the classes part the body without rest."""
    whole = everywhere(truth)
    limits = {"air_lung": (-1e4, -190), "fat": (-190, -30), "soft_tissue": (-30, 150), "bone": (150, 1e4)}
    masks = {name: (truth.data >= low) & (truth.data < high) for name, (low, high) in limits.items()}
    for k, mask in enumerate(masks.values(), start=1):
        assert mask.any()
        spoilt = truth.data + 10 * k * mask
        found = evaluate(spoilt, truth.data, whole, whole)["classes"]
        expected = {name: {"rmse_hu": 0.0, "bias_hu": 0.0} for name in masks}
        expected[list(masks)[k - 1]] = {"rmse_hu": 10.0 * k, "bias_hu": 10.0 * k}
        for name, values in found.items():
            assert values == pytest.approx(expected[name], abs=1e-4)  # float32 HU


def test_a_class_that_does_not_occur_has_no_figure(truth):
    flat = truth.with_data(torch.full_like(truth.data, 20.0))
    assert set(evaluate(flat.data, flat.data, flat.mask, flat.mask)["classes"]) == {"soft_tissue"}


def written_out_ssim(x, y, data_range):
    """Wang et al. (2004), eq. 13, with their Gaussian window of 11 pixels."""

    def mean(image):
        return ndimage.gaussian_filter(image, 1.5, radius=5)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


@pytest.mark.parametrize(("suffix", "low", "high"), [("", -1000, 1000), ("_soft_tissue", -160, 240)])
def test_windowed_metrics_are_the_written_out_formulas(truth, suffix, low, high):
    image = noisy(truth)
    body = body_mask(truth.data, everywhere(truth))
    values = evaluate(image, truth.data, everywhere(truth), body)["body"]
    x, y = (part.double().numpy().clip(low, high) for part in (image, truth.data))
    square = np.mean((x[body] - y[body]) ** 2)
    similarity = np.stack([written_out_ssim(a, b, high - low) for a, b in zip(x, y, strict=True)])
    assert values["psnr" + suffix] == pytest.approx(10 * np.log10((high - low) ** 2 / square), rel=1e-9)
    # Variances are differences of numbers up to 1e6, rounded to 1e-16 of them, against C2 = 144 or more.
    assert values["ssim" + suffix] == pytest.approx(similarity[body].mean(), abs=1e-9)


def test_noise_of_40_hu_is_an_rmse_of_40_hu(truth):
    values = evaluate(noisy(truth), truth.data, everywhere(truth), everywhere(truth))
    # 18432 samples: the estimate of sigma has a relative standard deviation of 0.5 %; four of them.
    assert values["rmse_hu"] == pytest.approx(40, rel=0.02)
    assert values["fov"]["bias_hu"] == pytest.approx(0, abs=4 * 40 / 18432**0.5)


def test_nothing_outside_the_field_of_view_counts(truth):
    fov = fov_mask(truth)
    body = body_mask(truth.data, fov)
    spoilt = torch.where(torch.from_numpy(fov), noisy(truth), 3000.0)
    padded = torch.where(torch.from_numpy(fov), truth.data, -2048.0)
    assert evaluate(spoilt, padded, fov, body) == evaluate(noisy(truth), truth.data, fov, body)


def test_an_error_outside_the_body_counts_for_the_field_of_view_only(truth):
    fov = everywhere(truth)
    body = body_mask(truth.data, fov)
    spoilt = truth.data.clone()
    spoilt[:, :6] += 100  # rows of air
    values = evaluate(spoilt, truth.data, fov, body)
    assert values["body"]["rmse_hu"] == 0
    assert values["fov"]["rmse_hu"] == pytest.approx(100 * (6 / 96) ** 0.5)
    assert values["fov"]["bias_hu"] == pytest.approx(100 * 6 / 96)


def test_wider_padding_changes_nothing(truth):
    body = body_mask(truth.data, everywhere(truth))
    narrow = evaluate(noisy(truth), truth.data, body, body)
    wide = [
        np.pad(part, ((0, 0), (9, 9), (9, 9)))
        for part in (noisy(truth).numpy(), truth.data.numpy(), body, body)
    ]
    assert evaluate(*wide)["body"] == pytest.approx(narrow["body"], rel=1e-12)


def test_each_slice_is_judged_on_its_own(truth):
    """The values of a stack are means (of squares, of SSIM) of the values of its slices."""
    image, whole = noisy(truth), everywhere(truth)
    both = evaluate(image, truth.data, whole, whole)
    each = [evaluate(image[k : k + 1], truth.data[k : k + 1], whole[:1], whole[:1]) for k in range(2)]
    assert both["ssim"] == pytest.approx(np.mean([e["ssim"] for e in each]), rel=1e-12)
    assert both["rmse_hu"] ** 2 == pytest.approx(np.mean([e["rmse_hu"] ** 2 for e in each]), rel=1e-12)


def test_body_is_the_outer_ellipse_without_the_table():
    grid = VolumeGeometry((2, 256, 256), (3.0, 1.5, 1.5))
    outer = Phantom((replace(thorax(0).ellipsoids[0], density=1.0),))
    exact = outer.rasterise(grid).data.numpy() > 0.5
    hu = thorax(0).rasterise(grid).to_hu().data
    hu[:, 222:225, 20:236] = 100.0  # a table top of 4.5 mm, two pixels below the back
    hu[:, 225:240, 20:236] = -900.0
    found = body_mask(hu, np.ones(hu.shape, bool))
    assert not exact[:, 220:].any()
    # Fat of -100 HU crosses -500 HU at 5/9 coverage, the ellipse here at 1/2: few edge pixels differ.
    assert (found ^ exact).sum() <= 2 * 60
    assert not found[:, 222:].any()
    assert found[:, 128, 80].all()  # lung: -850 HU, but inside


def test_field_of_view_is_a_disc_without_padding(truth):
    mask = fov_mask(truth)
    assert mask[0].mean() == pytest.approx(math.pi / 4, rel=0.01)  # 96 pixels across: about 1 / 96
    assert not mask[0, 0, 0]
    padded = Volume(truth.data, GRID, "HU", mask=torch.zeros_like(truth.mask))
    assert not fov_mask(padded).any()


def test_compare_reads_attenuation_and_prints_every_method(truth):
    mu = truth.to_attenuation()
    stats = {"network": 240.0, "seconds": 12.3, "residual": 1.02}
    fbp = Solution(hu_to_attenuation(noisy(truth))[None], None, stats, 0)
    flow = Solution(hu_to_attenuation(truth.data + 5)[None, :, None], None, stats, 0)  # slices as a batch
    for reference in (mu, truth):
        table = compare({"FBP": fbp, "MS-Flow": flow}, reference=reference)
        # float32 attenuation resolves 1e-7 of mu, that is 2e-4 HU.
        assert table.rows["MS-Flow"]["rmse_hu"] == pytest.approx(5, abs=1e-3)
        assert table.rows["FBP"]["rmse_hu"] == pytest.approx(40, rel=0.03)
    text = str(table)
    assert [line.split()[0] for line in text.splitlines()[:3]] == ["method", "FBP", "MS-Flow"]
    assert "5.0" in text.splitlines()[2]
    assert "[-1000, 1000] HU" in text.splitlines()[-1]


def test_conventions_name_every_metric(truth):
    values = evaluate(noisy(truth), truth.data, truth.mask, truth.mask)
    assert set(values["fov"]) == set(values["body"]) == set(CONVENTIONS) - {"regions", "classes", "headline"}
    assert set(values) - {"fov", "body", "classes"} == set(CONVENTIONS["headline"])


def test_senseless_inputs_are_refused_with_advice(truth):
    hu, mask = truth.data, truth.mask
    with pytest.raises(GeometryError, match="reshape"):
        evaluate(hu[:1], hu, mask, mask)
    with pytest.raises(GeometryError, match="body mask is empty"):
        evaluate(hu, hu, mask, body_mask(truth.to_attenuation().data - 1000, mask))
    with pytest.raises(GeometryError, match="11 × 11"):
        evaluate(hu[:, :8], hu[:, :8], mask[:, :8], mask[:, :8])
    with pytest.raises(GeometryError, match="slices that were reconstructed"):
        compare({"FBP": Solution(hu[None, :1], None, {}, 0)}, truth)
    with pytest.raises(UsageError, match="'FBP' is Tensor; give what solve returns"):
        compare({"FBP": hu}, truth)
