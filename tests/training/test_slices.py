"""What a training run sees: slices as the index lists them, crops, spacings and noise."""

import json
import math

import numpy as np
import pytest
import torch

from ctflow.errors import ProtocolError, UnreadableError, UsageError
from ctflow.training import Batches, Schedule, Slices
from ctflow.training.processes import Process


def test_crops_are_pieces_of_the_slices(training_data):
    slices = Slices(training_data, "train")
    batches = Batches(slices, {"256": 1.0}, Schedule(1, batch=4, crop=32, told=1.0))
    crops, _, _, spacings = batches[0]
    assert spacings.tolist() == [1.5] * 4
    hu = crops[:, 0] * 500 - 300
    wholes = [torch.from_numpy(image).float() for image in slices.by_kind["256"]]
    for crop in hu:
        views = [
            op(v)
            for v in (crop, crop.T)
            for op in (lambda a: a, lambda a: a.flip(0), lambda a: a.flip(1), lambda a: a.flip(0, 1))
        ]
        # The network range is float32: HU come back to within 1e-3.
        assert any((view - whole).abs().max() < 1e-3 for view in views for whole in wholes)


def test_zoom_changes_spacing_and_size_alike(training_data):
    """A resampled crop of a ramp keeps its slope per mm."""
    slices = Slices(training_data, "train")
    ramp = np.arange(40)[:, None] * 10 + np.arange(40)[None] * 10
    slices.by_kind = {"256": [ramp.astype(np.int16)]}
    slices.spacings = {"256": [1.5]}
    schedule = Schedule(1, batch=16, crop=24, zoom=1.5, told=1.0)
    crops, _, _, spacings = Batches(slices, {"256": 1.0}, schedule)[0]
    slope = crops[:, 0].diff(dim=2)[:, 8:16, 8:16].abs().mean((1, 2)) * 500 / spacings
    torch.testing.assert_close(slope, torch.full((16,), 10 / 1.5), rtol=0.02, atol=0)
    assert spacings.min() < 1.2
    assert spacings.max() > 1.8


def test_noise_follows_the_law_of_the_schedule(training_data):
    schedule = Schedule(1, batch=400, crop=8, log_sigma_mean=-1.0, log_sigma_std=0.5)
    u, noisy, sigma, spacing = Batches(Slices(training_data, "train"), {"256": 1.0}, schedule)[3]
    # Four standard errors of a mean, of a standard deviation and of a share out of 400.
    assert sigma.log().mean() == pytest.approx(-1.0, abs=4 * 0.5 / 20)
    assert sigma.log().std() == pytest.approx(0.5, rel=4 / 28)
    assert spacing.isnan().float().mean() == pytest.approx(0.2, abs=4 * 0.4 / 20)
    z = (noisy - u) / sigma[:, None, None, None]
    assert z.std() == pytest.approx(1.0, abs=4 / (2 * z.numel()) ** 0.5)


def test_lesions_have_the_sizes_and_contrasts_that_are_said(training_data):
    """In water they are all there is: one to three ellipses of 0.6 to 1 times π r², r from 1.5 to 10 mm."""
    slices = Slices(training_data, "train")
    water, air = np.zeros((64, 64), np.int16), np.full((64, 64), -1000, np.int16)
    slices.by_kind, slices.spacings = {"256": [water], "512": [air]}, {"256": [0.7], "512": [0.7]}
    schedule = Schedule(1, batch=300, crop=64, lesions=1.0)
    crops, noisy, sigma, _ = Batches(slices, {"256": 1.0}, schedule)[0]
    hu = crops[:, 0] * 500 - 300
    peak = hu.abs().amax((1, 2))
    assert 5 < peak.min() < 20  # 10 HU, less at the soft edge of a small one
    assert 100 < peak.max() < 300  # three of up to 100 HU may overlap
    assert (hu.mean((1, 2)) > 0).float().mean() == pytest.approx(0.5, abs=0.12)  # four standard errors
    across = (hu.abs() > peak[:, None, None] / 2).sum((1, 2)) * 0.7**2  # mm²
    assert across.max() < 3 * math.pi * 10**2
    assert across.min() > math.pi * 0.6 * 1.5**2 / 2
    # The noise is on the crop with its lesions: the network has to keep them.
    assert ((noisy - crops) / sigma[:, None, None, None]).std() == pytest.approx(1.0, abs=0.01)
    nothing, *_ = Batches(slices, {"512": 1.0}, schedule)[0]
    assert torch.unique(nothing).numel() == 1
    unchanged, *_ = Batches(slices, {"256": 1.0}, Schedule(1, batch=4, crop=64))[0]
    assert torch.unique(unchanged).numel() == 1


def test_processes_cut_what_one_would(training_data):
    slices, schedule = Slices(training_data, "train"), Schedule(1, batch=4, crop=16)
    whole = Batches(slices, {"256": 1.0}, schedule)[7]
    shares = [Process(torch.device("cpu"), rank, 2).share(schedule.batch) for rank in range(2)]
    parts = [Batches(slices, {"256": 1.0}, schedule, share)[7] for share in shares]
    for mine, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(mine, torch.cat(pieces), rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ProtocolError, match="4 crops cannot be shared by 3"):
        Process(torch.device("cpu"), 0, 3).share(4)


def test_the_hash_is_of_the_pixels_and_not_of_names(training_data):
    before = Slices(training_data, "train").sha256()
    (training_data / "train.npz").rename(training_data / "renamed.npz")
    index = json.loads((training_data / "index.json").read_text())
    index[0]["file"] = "renamed.npz"
    (training_data / "index.json").write_text(json.dumps(index))
    assert Slices(training_data, "train").sha256() == before
    hu = np.load(training_data / "renamed.npz")["hu"]
    hu[0, 0, 0] += 1
    np.savez(training_data / "renamed.npz", hu=hu)
    assert Slices(training_data, "train").sha256() != before


@pytest.mark.parametrize(
    ("hu", "message"),
    [
        (np.zeros((1, 32, 32), np.float32), "must be int16"),
        (np.zeros((32, 32), np.int16), "2 axes"),
        (np.full((1, 32, 32), 700, np.int16), "are not HU; apply the rescale"),
        (np.full((1, 32, 32), -2000, np.int16), "100 % outside"),
    ],
)
def test_data_that_are_not_hu_are_refused_without_their_name(training_data, hu, message):
    np.savez(training_data / "train.npz", hu=hu)
    with pytest.raises(UsageError, match=message) as caught:
        Slices(training_data, "train")
    assert "file #0" in str(caught.value)
    assert "npz" not in str(caught.value)


def test_damaged_data_are_explained(training_data):
    (training_data / "train.npz").write_bytes(b"PK no archive")
    with pytest.raises(UnreadableError, match="file #0 of the index is missing"):
        Slices(training_data, "train")
    (training_data / "index.json").write_text('[{"file": "train.npz"}]')
    with pytest.raises(UnreadableError, match=r"entry #0 of index\.json lacks collection"):
        Slices(training_data, "train")
    (training_data / "index.json").write_text("[]")
    with pytest.raises(UsageError, match="no 'train' slices"):
        Slices(training_data, "train")
    (training_data / "index.json").write_text("{")
    with pytest.raises(UnreadableError, match="not a list"):
        Slices(training_data, "train")
