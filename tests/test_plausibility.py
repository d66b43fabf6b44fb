"""Values that are no HU are refused or said, whatever the source; what the user declares is taken."""

import json

import numpy as np
import pydicom
import pytest
import torch

from ctflow.cli import main
from ctflow.datasets.synthetic import toy_volume
from ctflow.dicom import ReadOptions, read_series
from ctflow.dicom.reading.padding import filling
from ctflow.errors import SeriesError, UsageError
from ctflow.geometry import VolumeGeometry
from ctflow.nifti import read_nifti, write_nifti
from ctflow.plausibility import require_hu, scale
from ctflow.runs import run as pipeline
from ctflow.runs.protocol import Protocol
from ctflow.volume import Volume
from tests.dicom.files import edit, enhanced, setting, toy_series

FBP = Protocol.parse(
    "fbp",
    """# FBP against SIRT.
geometry = { name = "parallel-beam", angles = 20 }
noise = { name = "poisson", photons = 1e5 }
method = { name = "fbp" }
reference = { name = "sirt", iterations = 2 }
""",
)


def windowed(hu, low, high):
    return ((hu.clip(low, high) - low) / (high - low) * 255).round()


SPOILT = {
    "1/mm": lambda hu: 0.0192 * (1 + hu / 1000),
    "1/cm": lambda hu: 0.192 * (1 + hu / 1000),
    "1/m": lambda hu: 19.2 * (1 + hu / 1000),
    "[-1, 1]": lambda hu: (hu / 1000).clip(-1, 1),
    "[0, 1]": lambda hu: (hu + 1000) / 4000,
    "z-score": lambda hu: (hu - hu.mean()) / hu.std(),
    "HU + 1000": lambda hu: hu + 1000,
    "HU + 1024": lambda hu: hu + 1024,
    "HU + 999": lambda hu: hu + 999,
    "HU + 200": lambda hu: hu + 200,
    "intercept twice": lambda hu: hu - 1024,
    "lung window": lambda hu: windowed(hu, -1350, 150),
    "soft window": lambda hu: windowed(hu, -160, 240),
    "8 bits": lambda hu: windowed(hu, -1000, 3000),
    "cut at -200": lambda hu: hu.clip(-200),
    "labels": lambda hu: np.digitize(hu, [-900, -500, -150, 150, 500]).astype(float),
    "labels from -1": lambda hu: np.digitize(hu, [-500, 150]) - 1.0,
    "half": lambda hu: 0.5 * hu,
    "twice": lambda hu: 2 * hu,
    "ten times": lambda hu: 10 * hu,
    "half above air": lambda hu: 0.5 * (hu + 1000) - 1000,
    "sign": lambda hu: -hu,
    "unsigned": lambda hu: np.where(hu < 0, hu + 65536, hu),
    "MR": lambda hu: np.interp(hu, [-1000, -900, -150, -50, 0, 60, 150], [5, 10, 700, 800, 300, 420, 350]),
    "zero for air": lambda hu: np.where(hu < -500, 0, hu),
}
DOUBTFUL = {
    "window cut at 150": lambda hu: hu.clip(-1350, 150),
    "twice above air": lambda hu: 2 * (hu + 1000) - 1000,
}


def chest(noise=12.0):
    """The toy chest whose noise reaches below -1000 HU, as a scanner's does."""
    volume = toy_volume(slices=3, size=128, noise_hu=0.0)
    random = np.random.default_rng(0)
    return volume.with_data(volume.data + torch.from_numpy(random.normal(0, noise, volume.data.shape)))


def volume_of(hu, spacing=(3.0, 2.0, 2.0)):
    hu = np.ascontiguousarray(hu, np.float32)
    mask = np.stack([~filling(plane) for plane in hu])
    return Volume(torch.from_numpy(hu), VolumeGeometry(hu.shape, spacing), "HU", torch.from_numpy(mask))


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("noise", [0.0, 12.0])
def test_values_of_another_kind_are_refused(kind, noise):
    with pytest.raises(SeriesError, match=r"not HU: .* air near -1000, water near 0.* --unit 1/mm"):
        require_hu(volume_of(SPOILT[kind](chest(noise).data.numpy()), (3.0, 3.0, 3.0)))


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_values_that_may_be_hu_are_warned_of(kind):
    (said,) = require_hu(volume_of(DOUBTFUL[kind](chest().data.numpy())))
    assert "may not be HU" in said


@pytest.mark.parametrize("noise", [0.0, 12.0, 100.0])
def test_a_chest_is_taken_in_silence(noise):
    assert require_hu(chest(noise)) == []


@pytest.mark.parametrize("filled", [-2000, -3024])
def test_filled_corners_are_no_air(filled):
    hu = chest().data.numpy().copy()
    hu[:, :40, :40] = filled
    assert require_hu(volume_of(hu)) == []
    hu[:, :40, :40] += np.random.default_rng(0).integers(-2, 3, (3, 40, 40))  # behind a lossy coder
    assert all("below -1300" in warning for warning in require_hu(volume_of(hu)))


def test_real_series_and_their_crops(data_dir):
    """Whole slices say nothing, also with noise; crops of 96 pixels are taken, some with a warning."""
    index = json.loads((data_dir / "prior" / "index.json").read_text())
    random = np.random.default_rng(0)
    for entry in index[::5]:
        hu = np.load(data_dir / "prior" / entry["file"])["hu"][:6].astype(np.float32)
        assert require_hu(volume_of(hu)) == []
        assert require_hu(volume_of(hu + random.normal(0, 60, hu.shape))) == []
        row, column = (random.integers(0, size - 96) for size in hu.shape[1:])
        require_hu(volume_of(hu[:, row : row + 96, column : column + 96], (4.0, 1.5, 1.5)))


@pytest.mark.parametrize(
    "kind", ["1/mm", "[-1, 1]", "HU + 1024", "intercept twice", "soft window", "twice", "MR"]
)
def test_spoilt_real_slices_are_refused(data_dir, kind):
    index = json.loads((data_dir / "prior" / "index.json").read_text())
    for entry in index[::9]:
        hu = np.load(data_dir / "prior" / entry["file"])["hu"][:2].astype(np.float32)
        hu += np.random.default_rng(0).normal(0, 12, hu.shape).astype(np.float32)
        with pytest.raises(SeriesError, match="not HU"):
            require_hu(volume_of(SPOILT[kind](hu)))


def test_acrylic_in_air_is_possible():
    """A material that is no tissue: air is where it belongs, so it is taken with a warning."""
    y, x = np.mgrid[:128, :128] - 63.5
    hu = np.where(np.hypot(x, y) < 40, 550.0, -1000.0) + np.random.default_rng(0).normal(0, 30, (2, 128, 128))
    (said,) = require_hu(volume_of(hu))
    assert "within 250 of water" in said


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("HU", (1.0, 0.0)),
        ("HU+1024", (1.0, -1024.0)),
        ("HU-1000", (1.0, 1000.0)),
        ("1/mm", (50000.0, -1000.0)),
        ("1/cm", (5000.0, -1000.0)),
        ("1/m", (50.0, -1000.0)),
        ("500,-1e2", (500.0, -100.0)),
    ],
)
def test_units_in_words(unit, expected):
    assert scale(unit, 0.02) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "unit", ["hu", "HU+", "HU+inf", "mm", "0,1", "1,nan", "1e999,0", "1", "1,2,3", "__import__"]
)
def test_units_that_are_none(unit):
    with pytest.raises(UsageError, match=r"expected HU, HU\+1024, 1/mm"):
        scale(unit, 0.02)
    with pytest.raises(UsageError):
        ReadOptions(unit=unit)


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        ("1/mm", SPOILT["1/mm"]),
        ("1/cm", SPOILT["1/cm"]),
        ("HU+1024", SPOILT["HU + 1024"]),
        ("1000,0", lambda hu: hu / 1000),
    ],
)
def test_a_declared_unit_gives_the_hu(tmp_path, unit, values):
    """The advice of the refusal works: the same file, with the option, is the volume that it was."""
    whole = chest()
    file = write_nifti(whole.with_data(values(whole.data)), tmp_path / "x.nii")
    with pytest.raises(SeriesError, match="--unit"):
        read_nifti(file)
    volume = read_nifti(file, unit=unit)
    torch.testing.assert_close(volume.data, whole.data, rtol=1e-4, atol=1e-2)
    assert f"declared by the user as {unit}" in " ".join(volume.source.warnings)


def test_hu_that_look_like_none_are_taken_when_declared(tmp_path):
    file = write_nifti(volume_of(np.full((4, 64, 64), 3.0)), tmp_path / "x.nii")
    volume = read_nifti(file, unit="HU")
    assert float(volume.data.max()) == 3.0
    assert "they span only 3 to 3" in " ".join(volume.source.warnings)


@pytest.mark.parametrize("multi", [False, True])
def test_dicom_whose_intercept_was_forgotten(tmp_path, multi):
    """Classic and Enhanced alike, and two units are two inputs."""
    from ctflow.dicom import write_series

    series = list(write_series(chest(), tmp_path / "in", like=None, description="toy"))
    for file in series:
        pixels = pydicom.dcmread(file).pixel_array.astype(np.int16) + 1024
        edit(file, lambda d, pixels=pixels: setattr(d, "PixelData", pixels.tobytes()))
    path = _enhanced(series, tmp_path) if multi else tmp_path / "in"
    with pytest.raises(SeriesError, match="not HU"):
        read_series(path)
    volume = read_series(path, options=ReadOptions(unit="HU+1024"))
    assert abs(float(volume.data.median() - chest().data.median())) < 1
    assert any("declared by the user as HU+1024" in warning for warning in volume.source.warnings)
    other = read_series(path, options=ReadOptions(unit="HU"))
    assert volume.source.sha256 != other.source.sha256


def _enhanced(series, folder):
    file = enhanced(series, folder / "e" / "one")

    def once(dataset):
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            setting(RescaleSlope="1", RescaleIntercept="0")(frame.PixelValueTransformationSequence[0])

    edit(file, once)
    return file


def test_a_run_refuses_and_says_what_was_declared(tmp_path, capsys):
    shifted = chest().with_data(chest().data + 1024)
    with pytest.raises(SeriesError, match="not HU"):
        pipeline.prepare(FBP, shifted)
    measured = pipeline.prepare(FBP, shifted, options=ReadOptions(unit="HU+1024"))
    torch.testing.assert_close(measured.truth.data, chest().data, rtol=0, atol=1e-3)
    file = write_nifti(shifted, tmp_path / "x.nii")
    (tmp_path / "fbp.toml").write_text(FBP.dump())
    run = ["run", str(tmp_path / "fbp.toml"), str(file), "-o", str(tmp_path / "out"), "--slices", "0:1"]
    assert main(run) == 3
    assert "--unit" in capsys.readouterr().err
    assert main([*run, "--unit", "HU+1024"]) == 0
    assert "declared by the user as HU+1024" in capsys.readouterr().err
    for name in ("report.json", "fbp.json"):
        assert "declared by the user as HU+1024" in (tmp_path / "out" / name).read_text()
    assert main([*run[:-4], "-o", str(tmp_path / "out2"), "--unit", "inches"]) == 2


def test_convert_takes_the_unit(tmp_path, capsys):
    for file in toy_series(tmp_path / "in"):
        edit(file, setting(RescaleSlope="0.001", RescaleIntercept="0"))
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "x.nii")]) == 3
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "x.nii"), "--unit", "1000,0"]) == 0
    assert "declared by the user" in capsys.readouterr().err
    hu = read_nifti(tmp_path / "x.nii").data
    assert float(hu.min()) == pytest.approx(-1000, abs=1e-3)


def test_a_volume_in_attenuation_is_looked_at_in_hu():
    volume = chest().to_attenuation()
    assert require_hu(volume) == []
    with pytest.raises(SeriesError, match="not HU"):
        require_hu(volume.with_data(10 * volume.data))  # 1/cm


def test_nan_in_a_volume_is_refused():
    volume = chest()
    volume.data[0, 0, 0] = torch.nan
    with pytest.raises(SeriesError, match="1 of 49152 voxels are NaN"):
        require_hu(volume)
