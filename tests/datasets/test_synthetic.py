"""The toy series: what is written is what is read, and it looks like a scan of the thorax."""

import pytest
import torch

from ctflow.datasets.phantoms import thorax
from ctflow.datasets.synthetic import toy_volume, write_toy_series
from ctflow.dicom import read_series
from ctflow.errors import OutputError
from ctflow.registry import find_class


@pytest.fixture(scope="module")
def toy():
    return toy_volume(slices=3, size=128, seed=2)


def test_series_reads_back_as_written(tmp_path, toy):
    folder = write_toy_series(tmp_path / "toy", slices=3, size=128, seed=2)
    volume = read_series(folder)
    assert len(list(folder.iterdir())) == 3
    assert torch.equal(volume.data, toy.data)  # whole HU in 16 bits: nothing is lost
    assert volume.mask.all()
    assert volume.geometry.spacing == pytest.approx(toy.geometry.spacing)
    # DICOM writes coordinates with 16 characters.
    assert torch.tensor(volume.geometry.affine) == pytest.approx(torch.tensor(toy.geometry.affine), abs=1e-6)


def test_noise_has_the_size_and_texture_that_are_stated(toy):
    clean = thorax(2).rasterise(toy.geometry).to_hu().data
    body = clean > -900  # air is cut at -1000 HU, everything else keeps its noise
    noise = toy.data - clean
    # 18 000 voxels, correlated over 2 pi s² = 3 of them (squares) and 6 (mean): four standard deviations.
    assert float(noise[body].std()) == pytest.approx(12, rel=4 / (2 * 6000) ** 0.5)
    assert float(noise[body].mean()) == pytest.approx(0, abs=4 * 12 / 3000**0.5)
    # Blur of sigma s = 0.7 correlates neighbours by exp(-1 / 4 s²) = 0.60, here from 6000 independent pairs.
    pairs = body[:, :, 1:] & body[:, :, :-1]
    product = (noise[:, :, 1:] * noise[:, :, :-1])[pairs].mean() / noise[body].var()
    assert float(product) == pytest.approx(0.60, abs=4 / 6000**0.5)


def test_seed_decides_everything(toy):
    assert torch.equal(toy.data, toy_volume(slices=3, size=128, seed=2).data)
    assert not torch.equal(toy.data, toy_volume(slices=3, size=128, seed=3).data)


def test_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        write_toy_series(tmp_path / "toy", slices=1, size=32)
    assert (tmp_path / "toy" / "notes.txt").read_text() == "mine"


def test_protocols_can_name_both_files():
    assert find_class("dataset", "phantoms") is thorax
    assert find_class("dataset", "synthetic") is write_toy_series
