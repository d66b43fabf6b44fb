"""Measured data from files: each format is told by content, read right, and refused when it lies."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ctflow.datasets.phantoms import disc
from ctflow.errors import BackendError, GeometryError, UnitError, UnreadableError, UsageError
from ctflow.geometry import FanBeam, ParallelBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.problem import InverseProblem
from ctflow.rawdata import holds_scan, read_scan
from ctflow.rawdata import lodopab as lodopab_set
from ctflow.rawdata.loading import load_tiff
from ctflow.recon import FBP
from ctflow.runs import run as pipeline
from ctflow.runs.protocol import Protocol
from ctflow.units import MU_WATER

h5py = pytest.importorskip("h5py")

SPARSE = Protocol.parse(
    "sparse",
    """# Every other view, TV against FBP.
geometry = { name = "parallel-beam", angles = 30 }
noise = { name = "poisson", photons = 1e5 }
method = { name = "tv", iterations = 3 }
reference = { name = "fbp", filter = "hann" }
""",
)
GEOMETRY = """units = { length = "mm", angle = "degrees" }
data = "CANARY.npy"
geometry = { name = "parallel-beam", pitch = 2.0, arc_degrees = 180.0 }
image = { pixels = 48, pixel_mm = 4.0 }
mu_water = 0.0192
"""


def sinogram(beam, radius=70.0, side=192.0):
    grid = VolumeGeometry((1, 48, 48), (1.0, side / 48, side / 48))
    return disc(radius).line_integrals(grid, beam)


@pytest.fixture
def own(tmp_path):
    """A geometry file and a disc of water."""
    y = sinogram(ParallelBeam(60, bins=100, pitch=2.0))
    np.save(tmp_path / "CANARY.npy", y[0].numpy())
    (tmp_path / "CANARY.toml").write_text(GEOMETRY)
    return tmp_path / "CANARY.toml"


def water(scan):
    """Mean in the middle of FBP, HU."""
    grid = scan.image_grid(len(scan.y), largest=64)
    A = Radon(grid, scan.beam)
    x = FBP("hann")(InverseProblem(A, scan.y, Gaussian(1.0)), None, torch.Generator(), lambda a, b: None)
    middle = slice(grid.shape[1] // 2 - 3, grid.shape[1] // 2 + 3)
    return float((x[:, middle, middle] / MU_WATER - 1).mean()) * 1000


def test_a_sinogram_with_its_geometry_file(own):
    for path in (own, own.with_suffix(".npy")):
        assert holds_scan(path)
        scan = read_scan(path)
        assert scan.y.shape == (1, 60, 100)
        # Discretisation of FBP on 4 mm pixels; a wrong pitch of 1 % is 10 HU.
        assert abs(water(scan)) < 5


@pytest.mark.parametrize("ending", ["npz", "tif", "h5", "mat"])
def test_every_kind_of_array_file(own, ending):
    y = np.load(own.with_suffix(".npy"))
    file = own.with_name(f"other.{ending}")
    if ending == "npz":
        np.savez_compressed(file, y)
    elif ending == "tif":
        Image.fromarray(y).save(file)
    elif ending == "h5":
        with h5py.File(file, "w") as opened:
            opened["entry/values"] = y
    else:
        from scipy.io import savemat

        savemat(file, {"y": y})
    text = GEOMETRY.replace("CANARY.npy", file.name)
    own.write_text(text + 'dataset = "y"\n' if ending == "mat" else text)
    assert np.array_equal(read_scan(own).y[0].numpy(), y)


def test_counts_with_flats_darks_and_an_axis_to_find(tmp_path):
    beam = ParallelBeam(61, bins=100, pitch=2.0, arc_degrees=183.05, shift_bins=1.7)
    y = sinogram(beam)[0]
    with h5py.File(tmp_path / "scan.h5", "w") as opened:
        opened["exchange/data"] = (100 + 5e4 * torch.exp(-y))[:, None].numpy()
        opened["exchange/white"] = np.full((4, 1, 100), 5.01e4)
        opened["exchange/dark"] = np.full((4, 1, 100), 100.0)
        opened["exchange/theta"] = np.degrees(beam.views)
    (tmp_path / "scan.toml").write_text(
        """units = { length = "mm", angle = "degrees" }
data = "scan.h5"
dataset = "exchange/data"
axes = "views rows bins"
values = "counts"
flat = "exchange/white"
dark = "exchange/dark"
find_axis = true
geometry = { name = "parallel-beam", pitch = 2.0, angles = "exchange/theta" }
"""
    )
    scan = read_scan(tmp_path / "scan.h5")
    # float32 counts of 5e4 are exact to 4e-3, so their logarithm to 1e-6 and more behind 14 cm of water.
    assert float((scan.y[0] - y).abs().max()) < 1e-4
    assert scan.beam.shift_bins == pytest.approx(1.7, abs=0.1)


def test_tooth(data_dir, tmp_path):
    """The synchrotron's own axis, by a geometry file that names data sets of a file elsewhere."""
    (tmp_path / "tooth.toml").write_text(
        f"""units = {{ length = "mm", angle = "degrees" }}
data = "{data_dir / "sinograms" / "tooth.h5"}"
dataset = "exchange/data"
axes = "views rows bins"
values = "counts"
flat = "exchange/data_white"
dark = "exchange/data_dark"
find_axis = true
geometry = {{ name = "parallel-beam", pitch = 0.001, angles = "exchange/theta" }}
"""
    )
    scan = read_scan(tmp_path / "tooth.toml")
    assert scan.y.shape == (2, 181, 640)
    # The data set's own figure for the axis: column 295.5.
    assert 639 / 2 - scan.beam.shift_bins == pytest.approx(295.5, abs=1.0)


def test_lodopab(tmp_path):
    """A disc of water off the centre comes out where the set's images would show it, at 0 HU."""
    beam = lodopab_set.beam()
    grid = VolumeGeometry((1, 362, 362), (1.0, 260 / 362, 260 / 362))
    y = disc(60.0, lodopab_set.MU_WATER).line_integrals(grid, beam) / lodopab_set.MU_MAX
    with h5py.File(tmp_path / "observation_test_000.hdf5", "w") as opened:
        opened["data"] = y.numpy()
    scan = read_scan(tmp_path / "observation_test_000.hdf5")
    assert scan.mu_water == 0.02
    assert scan.photons.unique().tolist() == [4096.0]
    kept = scan.every(25)
    assert abs((water(kept) / 1000 + 1) * MU_WATER / 0.02 - 1) < 0.005  # 5 HU, 40 views of a disc


def test_2detect(tmp_path):
    """Counts of a disc, 73 views whose last repeats the first, the detector a bin aside."""
    folder = tmp_path / "slice00017" / "mode2"
    folder.mkdir(parents=True)
    turn = 72
    angles = tuple(math.pi - 2 * math.pi * view / turn for view in range(turn))
    beam = FanBeam(angles, 382, 0.374, shift_bins=-1 / 5, source_axis=431.019989, source_detector=529.000488)
    grid = VolumeGeometry((1, 64, 64), (1.0, 1.0, 1.0))
    y = disc(30.0).line_integrals(grid, beam)[0].numpy().repeat(5, 1)[:, :1910]
    counts = 200 + 4e4 * np.exp(-np.concatenate([y, y[:1]]))
    for name, field in {"sinogram": counts, "flat1": 4.02e4, "flat2": 4.02e4, "dark": 200.0}.items():
        image = np.broadcast_to(field, counts.shape if name == "sinogram" else (1, 1910))
        Image.fromarray(image.astype(np.float32)).save(folder / f"{name}.tif")
    assert holds_scan(folder)
    scan = read_scan(folder)
    assert scan.y.shape == (1, 72, 1910)
    assert scan.beam.shift_bins == -1.0
    assert float((scan.y[0].numpy() - y).max()) < 1e-4
    assert abs(water(scan)) < 15  # 72 views of steps five bins wide
    (folder / "dark.tif").unlink()
    with pytest.raises(UnreadableError, match=r"lacks dark\.tif"):
        read_scan(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("mu_water", "mu_watr"), "did you mean 'mu_water'"),
        (("units", "#"), "lacks units"),
        (('"mm"', '"cm"'), "give lengths in mm"),
        (('"degrees"', '"radians"'), "angles in degrees"),
        (("pitch = 2.0,", ""), "lacks the detector's pitch"),
        (("arc_degrees", "arc"), "arc_degrees"),
        (("parallel-beam", "cone-beam"), "lacks the distance of the panel's rows"),
        (("pixels = 48", "pixel = 48"), "did you mean"),
        (("data =", 'axes = "bins views rows"\ndata ='), "does not name the 2 axes"),
        (("data =", 'values = "photons"\ndata ='), "write"),
        (("data =", 'values = "counts"\ndata ='), "need flat"),
        (("pitch = 2.0", 'pitch = "two"'), "geometry file"),
        (("CANARY.npy", "absent.npy"), "not there"),
        (("geometry =", "geometry = ="), "not valid TOML"),
    ],
)
def test_geometry_files_are_checked(own, change, said):
    own.write_text(GEOMETRY.replace(*change))
    with pytest.raises(UsageError, match=said) as caught:
        read_scan(own)
    assert "CANARY" not in str(caught.value)


def test_radians_by_mistake_are_noticed(own):
    angles = np.linspace(0, math.pi, 60, endpoint=False).round(4).tolist()
    own.write_text(GEOMETRY.replace("arc_degrees = 180.0", f"angles = {angles}"))
    with pytest.raises(UsageError, match="looks like radians"):
        read_scan(own)


def test_nan_and_other_shapes_are_refused(own):
    array = np.load(own.with_suffix(".npy"))
    np.save(own.with_suffix(".npy"), np.where(array > 2.5, np.nan, array))
    with pytest.raises(UnitError, match="NaN"):
        read_scan(own)
    np.save(own.with_suffix(".npy"), array.T)
    with pytest.raises((GeometryError, UsageError)):
        pipeline.prepare(SPARSE.override(["geometry.angles=60"]), own.parent / "CANARY.npy")
    np.save(own.with_suffix(".npy"), array.astype("U8"))
    with pytest.raises(UsageError, match="numbers are expected"):
        read_scan(own)


@pytest.mark.parametrize("compression", [None, "adobe_deflate"])
@pytest.mark.parametrize("kind", ["<f4", "<u2", "<i4", "<u4", "<f8", ">f8", "bigtiff"])
def test_a_tiff_of_every_kind_is_read_exactly_or_refused(tmp_path, kind, compression):
    """Unsigned numbers above 2³¹ too; whatever part of it is cut off or struck out."""
    dtype = "<u2" if kind == "bigtiff" else kind
    pages = np.random.default_rng(3).random((2, 6, 7))
    pages = (pages * (2.0**32 - 1 if dtype == "<u4" else 30_000)).astype(dtype)
    file = tmp_path / "x.tif"
    tifffile.imwrite(file, pages, compression=compression, bigtiff=kind == "bigtiff", rowsperstrip=2)
    assert np.array_equal(load_tiff(file), pages)
    with tifffile.TiffFile(file) as opened:
        counts = opened.pages[1].tags["StripByteCounts"]
    width = counts.valuebytecount // counts.count
    whole = file.read_bytes()
    for length in range(4, len(whole), 31):
        file.write_bytes(whole[:length])
        try:
            assert np.array_equal(load_tiff(file), pages)  # what was cut off lay behind the last page
        except UnreadableError:
            continue
    place = counts.valueoffset
    file.write_bytes(whole[:place] + bytes(width) + whole[place + width :])
    with pytest.raises(UnreadableError):
        load_tiff(file)


def test_a_tiff_whose_codec_is_not_here_names_the_extra(tmp_path):
    Image.fromarray(np.ones((4, 5), np.float32)).save(tmp_path / "x.tif", compression="tiff_lzw")
    if find_spec("imagecodecs"):
        assert np.array_equal(load_tiff(tmp_path / "x.tif"), np.ones((4, 5)))
        return
    with pytest.raises(BackendError, match=r"LZW; pip install 'ctflow\[codecs\]'"):
        load_tiff(tmp_path / "x.tif")


@pytest.mark.parametrize("ending", ["npy", "npz", "tif", "h5", "mat"])
def test_damaged_files_give_one_typed_error(own, ending):
    file = own.with_suffix(".npy")
    if ending != "npy":
        test_every_kind_of_array_file(own, ending)
        file = own.with_name(f"other.{ending}")
    whole = file.read_bytes()
    # Cut anywhere; a cut in the padding behind the array, as in HDF5, may leave it whole, never wrong.
    for length in (0, 3, 20, 130, len(whole) // 3, len(whole) // 2):
        file.write_bytes(whole[:length])
        with pytest.raises((UnreadableError, UsageError)) as caught:
            read_scan(own)
        assert "CANARY" not in str(caught.value)
        assert str(own.parent) not in str(caught.value)


def test_headers_that_lie_take_no_memory(own):
    with h5py.File(own.with_name("lie.h5"), "w") as opened:
        opened.create_dataset("data", (10**6, 10**6), "f4", chunks=(1000, 1000), compression="gzip")
    own.write_text(GEOMETRY.replace("CANARY.npy", "lie.h5"))
    with pytest.raises(UnreadableError, match="more than the file can hold"):
        read_scan(own)
    file = own.with_suffix(".npy")
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}".ljust(117) + "\n"
    file.write_bytes(b"\x93NUMPY\x01\x00v\x00" + header.encode() + b"\0" * 64)
    own.write_text(GEOMETRY)
    with pytest.raises(UnreadableError):
        read_scan(own)


def test_arrays_without_a_geometry_are_not_guessed(tmp_path):
    np.save(tmp_path / "y.npy", np.zeros((4, 5)))
    with pytest.raises(UsageError, match="geometry file"):
        read_scan(tmp_path / "y.npy")
    with pytest.raises(UsageError, match="no such file"):
        read_scan(tmp_path / "absent.mat")
    assert not holds_scan(tmp_path)
