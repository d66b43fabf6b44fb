"""What is padding: values outside the scan field, in every way of writing them; never tissue."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctflow.dicom import read_series
from tests.dicom.files import coded, edit, setting, toy_series

SIZE = 32
Y, X = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
RADIUS = np.hypot(Y, X)
FIELD = RADIUS <= SIZE / 2
BODY = RADIUS < 10


def body(outside, air=-1000, cavity=0):
    """Noisy water of 10 pixels' radius with a cavity, in air, with a filling outside the field, HU."""
    noise = np.random.default_rng(0).normal(0, 20, RADIUS.shape)
    hu = np.where(BODY, noise, air + noise).round()
    hu[14:18, 12:16] = cavity
    return np.where(FIELD, hu, outside)


def read(folder, hu, syntax="", **padding):
    """The mask of one slice of these CT numbers, and what is warned of."""
    file = toy_series(folder / "toy")[0]
    edit(file, setting(PixelData=hu.astype("<i2").tobytes()))
    for name, value in padding.items():
        edit(file, lambda dataset, name=name, value=value: dataset.add_new(name, "SS", value))
    if syntax:
        coded(file, syntax, **({"jls_error": 3} if syntax.endswith("81") else {"j2k_cr": [2]}))
    volume = read_series(file)
    return volume.mask[0].numpy(), volume.source.warnings


@pytest.mark.parametrize("value", [0, 40, -100])
def test_a_value_of_tissue_masks_nothing(tmp_path, value):
    hu = body(-1000)
    hu[BODY & (RADIUS > 6)] = value
    mask, warnings = read(tmp_path, hu, PixelPaddingValue=value)
    assert mask[FIELD].all()
    assert any("PixelPaddingValue" in warning for warning in warnings)


def test_tissue_that_reaches_the_border_is_not_masked_either(tmp_path):
    hu = np.where(np.abs(Y) < 8, 0.0, -1000.0) + np.random.default_rng(0).integers(-5, 6, RADIUS.shape)
    hu[10:20] = 0
    mask, _ = read(tmp_path, hu, PixelPaddingValue=0)
    assert mask.all()


@pytest.mark.parametrize("value", [-1000, -1024])
def test_a_cavity_that_holds_the_padding_value_is_measured(tmp_path, value):
    mask, _ = read(tmp_path, body(value, cavity=value), PixelPaddingValue=value)
    assert mask[BODY].all()
    assert not mask[~FIELD].any()


def test_a_filling_beside_the_centre_is_masked_by_its_tag(tmp_path):
    """The field lies aside; its filling of air's level reaches into the disc."""
    hu, field = body(-1024), np.hypot(Y, X - 6) < 12
    hu[~field] = -1024
    mask, _ = read(tmp_path, hu, PixelPaddingValue=-1024)
    assert not mask[~field].any()
    assert mask[field].mean() > 0.98  # noise has the value too, beside the filling


def test_a_range_that_reaches_into_tissue_masks_what_is_below_air_alone(tmp_path):
    mask, _ = read(tmp_path, body(-2000), PixelPaddingValue=-2000, PixelPaddingRangeLimit=100)
    assert mask[BODY].all()
    assert not mask[~FIELD].any()


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91"])
@pytest.mark.parametrize("outside", [-2000, -1024])
@pytest.mark.parametrize("tagged", [True, False])
def test_a_filling_behind_a_lossy_coder_is_masked(tmp_path, syntax, outside, tagged):
    hu = np.where(RADIUS > 15.5, outside, body(outside))  # coders blur its edge
    mask, warnings = read(tmp_path, hu, syntax, **({"PixelPaddingValue": outside} if tagged else {}))
    assert any("lossy" in warning for warning in warnings)
    assert mask[BODY].all()
    assert not mask[RADIUS > 17].any()


def test_corners_that_were_reconstructed_stay(tmp_path):
    mask, _ = read(tmp_path, body(0) * FIELD + np.where(FIELD, 0, body(0)[::-1, ::-1].T[0, 0] - 1000))
    assert mask[FIELD].all()


def test_noise_below_air_is_no_filling(tmp_path):
    hu = np.random.default_rng(0).normal(-1000, 300, RADIUS.shape).round()
    mask, _ = read(tmp_path, hu)
    assert torch.from_numpy(mask).all()
