"""What the reader may do when asked: fill gaps, part series, straighten tilted stacks, skip damaged files."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch

from ctflow.dicom import ReadOptions, inspect_folder, read_series, write_series
from ctflow.errors import SeriesError, UnreadableError, UsageError
from ctflow.geometry import VolumeGeometry
from ctflow.volume import Volume
from tests.dicom.files import cylinder, edit, setting, toy_series

LINEAR = ReadOptions(fill="linear")
RADIUS, CENTRE = 20.0, np.array([1.0, -2.0, 3.0])  # of the sphere, mm


def test_a_ramp_is_filled_exactly(tmp_path):
    geometry = VolumeGeometry((6, 32, 32), (2.5, 1.25, 1.25))
    ramp = torch.arange(6.0)[:, None, None] * 100 + torch.arange(32.0).expand(6, 32, 32)
    series = write_series(Volume(ramp, geometry, "HU"), tmp_path / "ramp", like=None, description="ramp")
    series[2].unlink()
    series[3].unlink()
    volume = read_series(tmp_path / "ramp", options=LINEAR)
    # linear in z, so linear interpolation is exact but for float32
    torch.testing.assert_close(volume.data, ramp, rtol=0, atol=1e-3)
    assert volume.geometry.shape == (6, 32, 32)
    np.testing.assert_allclose(volume.geometry.affine, geometry.affine, atol=1e-6)
    assert any("slices 2, 3 of 6 (from 0) are interpolated" in warning for warning in volume.source.warnings)
    assert len(volume.source) == 6


def test_uneven_steps_are_resampled_by_height(tmp_path):
    series = toy_series(tmp_path / "toy")
    for k, file in enumerate(series):
        z = [0, 2.5, 5, 8, 10, 12.5][k]
        edit(file, lambda d, z=z: setattr(d, "PixelData", np.full((32, 32), 40 * z, "<i2").tobytes()))
        edit(file, setting(ImagePositionPatient=[0, 0, z]))
    with pytest.raises(SeriesError, match=r"varies from 2.00 to 3.00 mm"):
        read_series(tmp_path / "toy")
    volume = read_series(tmp_path / "toy", options=LINEAR)
    torch.testing.assert_close(volume.data[:, 0, 0], 40 * torch.linspace(0, 12.5, 6), rtol=0, atol=1e-3)


def test_more_invention_than_data_is_refused(tmp_path):
    series = toy_series(tmp_path / "toy")
    edit(series[5], setting(ImagePositionPatient=["-19.375", "-19.375", "90000"]))
    with pytest.raises(SeriesError, match="more slices would be invented"):
        read_series(tmp_path / "toy", options=LINEAR)


def test_split_parts_at_a_gap(tmp_path):
    series = toy_series(tmp_path / "toy")
    series[3].unlink()
    split = ReadOptions(split=True)
    below, above = inspect_folder(tmp_path / "toy", split)
    assert (below.slices, above.slices, below.usable, above.usable) == (3, 2, True, True)
    with pytest.raises(SeriesError, match="2 usable volumes, expected one; 2 parts within one series"):
        read_series(tmp_path / "toy", options=split)
    volume = read_series(tmp_path / "toy", series=above.uid, options=split)
    assert torch.equal(volume.data, cylinder().data[4:])
    assert volume.source.warnings == ["one of 2 parts of its series"]


def test_split_parts_phases_and_leaves_step_and_shoot_alone(tmp_path):
    series = toy_series(tmp_path / "toy")
    for k, file in enumerate(series):
        edit(file, setting(AcquisitionNumber=k))  # each rotation its own number, as in step-and-shoot
        late = shutil.copy(file, file.with_name(f"late{k}.dcm"))
        edit(late, setting(SOPInstanceUID=f"1.2.{k}", TemporalPositionIdentifier=2, RescaleIntercept="7"))
        edit(file, setting(TemporalPositionIdentifier=1))
    split = ReadOptions(split=True)
    first, second = inspect_folder(tmp_path / "toy", split)
    assert (first.slices, second.slices) == (6, 6)
    phases = [read_series(tmp_path / "toy", series=part.uid, options=split).data for part in (first, second)]
    assert sorted(float(phase[0, 16, 16]) for phase in phases) == [0, 7]
    with pytest.raises(SeriesError, match="2 images at one position"):
        read_series(tmp_path / "toy")


def test_split_parts_a_real_bolus_stack_and_real_mixed_thickness(data_dir):
    bolus = inspect_folder(data_dir / "dicom/refusals/notavolume", ReadOptions(split=True))
    assert [part.slices for part in bolus] == [1, 1, 1, 1]
    mixed = inspect_folder(data_dir / "dicom/gantry-tilt/ge", ReadOptions(split=True, tilt="resample"))
    assert [(part.slices, part.thickness_mm, part.usable) for part in mixed] == [(14, 4, True), (14, 7, True)]


def sphere_series(folder, degrees):
    """A sphere with a smooth edge in slices under a gantry tilted about x; positions climb along z."""
    tilt = math.radians(degrees)
    down = np.array([0, math.cos(tilt), -math.sin(tilt)])
    right, up = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
    origin = CENTRE - 31.5 * right - 31.5 * down - 22 * 1.5 * up
    k, i, j = np.meshgrid(np.arange(45), np.arange(64), np.arange(64), indexing="ij")
    points = origin + k[..., None] * 1.5 * up + i[..., None] * down + j[..., None] * right
    distance = np.linalg.norm(points - CENTRE, axis=-1)
    hu = 1000 / (1 + np.exp((distance - RADIUS) / 1.5)) - 1000
    affine = np.eye(4)
    affine[:3] = np.column_stack([1.5 * up, down, right, origin])
    geometry = VolumeGeometry((45, 64, 64), (1.5, 1.0, 1.0), tuple(map(tuple, affine)))
    volume = Volume(torch.from_numpy(hu.astype(np.float32)), geometry, "HU")
    write_series(volume, folder, like=None, description="sphere", seed_uid="sphere")


def radii(volume):
    """Distances from the centre to the half-height surface along 200 directions in space, mm."""
    from scipy.ndimage import map_coordinates

    rng = np.random.default_rng(0)
    directions = rng.normal(size=(200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    steps = np.arange(RADIUS - 6, RADIUS + 6, 0.02)
    points = CENTRE + directions[:, None] * steps[:, None]
    inverse = np.linalg.inv(np.array(volume.geometry.affine))
    indices = np.einsum("ab,...b->a...", inverse[:3, :3], points) + inverse[:3, 3, None, None]
    profile = map_coordinates(volume.data.numpy().astype(float), indices, order=1, mode="nearest")
    return steps[(profile > -500).sum(1)]


@pytest.mark.parametrize("degrees", [18.5, -22.0])
@pytest.mark.parametrize("tilt", ["resample", "in-plane"])
def test_a_sphere_stays_round_under_a_tilted_gantry(tmp_path, degrees, tilt):
    sphere_series(tmp_path / "s", degrees)
    with pytest.raises(SeriesError, match=f"sheared by {abs(degrees):.2f}°"):
        read_series(tmp_path / "s")
    volume = read_series(tmp_path / "s", options=ReadOptions(tilt=tilt))
    # 0.5 mm is asked for; linear interpolation of a smooth edge costs less
    assert np.abs(radii(volume) - RADIUS).max() < 0.5
    assert any("gantry tilt" in warning for warning in volume.source.warnings)
    axes = np.array(volume.geometry.affine)[:3, :3]
    axes /= np.linalg.norm(axes, axis=0)
    skew = abs(axes[:, 0] @ axes[:, 1])
    assert skew == pytest.approx(0 if tilt == "resample" else math.sin(math.radians(abs(degrees))), abs=1e-6)
    # The constant corners are masked and the disc is not, but for a pixel of its edge where it moved.
    assert int(volume.mask[22].sum()) == pytest.approx(math.pi * 32**2, rel=0.04)
    assert volume.mask[:, 20:44, 20:44].double().mean() > 0.9
    if tilt == "in-plane":
        for k, header in enumerate(volume.source.headers):
            corner = np.array(volume.geometry.affine)[:3] @ [k, 0, 0, 1]
            assert np.allclose(corner, np.array(header.ImagePositionPatient, float), atol=1e-6)


@pytest.mark.parametrize("tilt", ["resample", "in-plane"])
def test_a_tilted_volume_comes_back_from_its_own_export(tmp_path, tilt):
    sphere_series(tmp_path / "s", 18.5)
    volume = read_series(tmp_path / "s", options=ReadOptions(tilt=tilt))
    write_series(volume, tmp_path / "again", like=volume, description="again")
    with pytest.raises(SeriesError, match=r"18\.5° off axial"):
        read_series(tmp_path / "again")
    again = read_series(tmp_path / "again", options=ReadOptions(tilt=tilt))
    assert np.allclose(again.geometry.affine, volume.geometry.affine, atol=1e-5)
    assert torch.equal(again.data[volume.mask], volume.data[volume.mask].round())


def test_real_tilted_series_is_straightened(data_dir):
    split = ReadOptions(split=True, tilt="resample")
    parts = inspect_folder(data_dir / "dicom/gantry-tilt/ge", split)
    volume = read_series(data_dir / "dicom/gantry-tilt/ge", series=parts[0].uid, options=split)
    first, last = volume.source.headers[0], volume.source.headers[-1]
    affine = np.array(volume.geometry.affine)
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    climbed = np.subtract(last.ImagePositionPatient, first.ImagePositionPatient).astype(float) @ normal
    assert abs(affine[:3, 0] @ affine[:3, 1]) < 1e-6
    assert np.linalg.norm(affine[:3, 0]) * (len(volume.data) - 1) == pytest.approx(climbed, abs=1e-6)
    moved = volume.data.shape[1] - 512
    drift = np.linalg.norm(np.subtract(last.ImagePositionPatient, first.ImagePositionPatient).astype(float))
    assert moved == math.ceil(math.sqrt(drift**2 - climbed**2) / volume.geometry.spacing[1])
    assert not volume.mask[0, :moved].any() or not volume.mask[0, -moved:].any()


def test_philips_s2010_is_not_tilted(data_dir):
    """Its header says 0° and its positions climb along z; and so do its pixels.

    Were the gantry tilted by 18.5° behind the header's back, the head would move 3.7 pixels from slice to
    slice; by phase correlation it moves by less than half a pixel.
    """
    registration = pytest.importorskip("skimage.registration")
    hu = read_series(data_dir / "dicom/gantry-tilt/philips/S2010").data.clamp(-1000, 1500).numpy()
    moves = [
        registration.phase_cross_correlation(hu[k], hu[k + 1], upsample_factor=5)[0] for k in range(8, 26, 3)
    ]
    assert np.abs(moves).max() < 0.5


def test_damaged_files_are_skipped_where_the_rest_is_whole(tmp_path):
    series = toy_series(tmp_path / "toy")
    (tmp_path / "toy" / "zzz.dcm").write_text("dear radiologist")
    series[5].write_bytes(series[5].read_bytes()[:-500])  # truncated pixels
    skip = ReadOptions(on_bad_file="skip")
    volume = read_series(tmp_path / "toy", options=skip)
    assert torch.equal(volume.data, cylinder().data[:5])
    assert volume.source.warnings == ["1 file skipped: text", "1 file skipped: damaged pixels"]
    series[2].write_bytes(series[2].read_bytes()[:-500])
    with pytest.raises(SeriesError, match="2 files skipped: damaged pixels; gap after"):
        read_series(tmp_path / "toy", options=skip)
    with pytest.raises(UnreadableError):
        read_series(tmp_path / "toy")


@pytest.mark.parametrize("meta", [True, False])
def test_files_without_their_marker_are_read_by_request(tmp_path, meta):
    series = toy_series(tmp_path / "toy")
    whole = read_series(tmp_path / "toy")
    for file in series:
        data = file.read_bytes()
        length = 144 + int.from_bytes(data[140:144], "little")
        file.write_bytes(data[132:] if meta else data[length:])
    with pytest.raises(UnreadableError):
        read_series(tmp_path / "toy")
    assert torch.equal(read_series(tmp_path / "toy", options=ReadOptions(force=True)).data, whole.data)
    (tmp_path / "toy" / "notes.txt").write_text("no image at all")
    assert read_series(tmp_path / "toy", options=ReadOptions(force=True)).data.shape[0] == 6


@pytest.mark.parametrize("wrong", [{"fill": "cubic"}, {"tilt": "yes"}, {"on_bad_file": "ask"}])
def test_unknown_repairs_are_refused(wrong):
    with pytest.raises(UsageError, match="expected '"):
        ReadOptions(**wrong)
