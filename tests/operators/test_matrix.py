"""Stored weights: an independent writing of the on-the-fly kernels, kept on disk, bounded in memory."""

import logging
import math

import pytest
import torch

from ctflow.errors import BackendError
from ctflow.geometry import FanBeam, ParallelBeam, VolumeGeometry
from ctflow.linalg import cg
from ctflow.operators import Radon, _matrix, radon
from ctflow.system.cache import folder

VOLUME = VolumeGeometry((2, 40, 32), (3.0, 1.5, 1.5))
BEAMS = [ParallelBeam(15, arc_degrees=360.0), FanBeam(15, source_axis=60.0, source_detector=100.0)]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty cache, on disk and in memory, for small matrices too."""
    monkeypatch.setenv("CTFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr(_matrix, "_DISK_ENTRIES", 0)
    _matrix._shared.clear()


def x(seed=0):
    return torch.rand(VOLUME.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("beam", BEAMS)
def test_stored_weights_are_those_of_the_kernels(beam):
    stored, on_the_fly = Radon(VOLUME, beam, "matrix"), Radon(VOLUME, beam, "joseph")
    y = on_the_fly(x())
    # The same weights, rounded to float32, and summed in another order.
    torch.testing.assert_close(stored(x()), y, rtol=0, atol=1e-5 * float(y.max()))
    back = on_the_fly.T(y)
    torch.testing.assert_close(stored.T(y), back, rtol=0, atol=1e-5 * float(back.max()))


@pytest.mark.parametrize("beam", BEAMS)
def test_either_backend_is_the_transpose_of_the_other(beam, monkeypatch):
    A = Radon(VOLUME, beam)
    monkeypatch.setattr(radon, "_GATHERED", math.prod(VOLUME.shape) - 1)
    few, many = x(), x(1).expand(9, *VOLUME.shape)
    assert math.prod(A.range_shape) < math.prod(VOLUME.shape)
    y = torch.rand(A.range_shape, generator=torch.Generator().manual_seed(2))
    # Rounding of weights and sums in float32.
    torch.testing.assert_close((A(few) * y).sum(), (few * A.T(y)).sum(), rtol=1e-6, atol=0)
    assert set(A._projectors) == {("joseph", None), ("matrix", None)}
    # Many images go by the kernels both ways, few data by the matrix: the normal equations hardly differ.
    torch.testing.assert_close(A.T(A(many))[0], A.T(A(x(1))), rtol=1e-5, atol=0)
    # Conjugate gradients need one set of weights: a condition of about 10, solved to the rounding of float32.
    floor = float(A.T(A(few)).norm() / few.norm()) / 10

    def normal(image):
        return A.T(A(image)) + floor * image

    found = cg(normal, normal(few), dims=3, iterations=30, tolerance=0.0)
    torch.testing.assert_close(found, few, rtol=0, atol=1e-5)


@pytest.mark.parametrize("beam", BEAMS)
def test_memory_is_what_was_announced(beam):
    A = Radon(VOLUME, beam, "matrix")
    rays = _matrix.lines(VOLUME, A.beam)
    entries = _matrix._weights(rays, VOLUME.shape[1:])["weights"].size
    # Two weights a row are counted; at the rim of the image, and where a ray meets a pixel's centre, one.
    assert entries <= _matrix._entries(rays, VOLUME.shape[1:]) + 2 * rays.start.size < 1.2 * entries


def test_matrices_beyond_the_limit_are_refused_with_the_figures():
    volume, beam = VolumeGeometry((1, 512, 512), (1.0, 0.8, 0.8)), ParallelBeam(720)
    with pytest.raises(BackendError, match=r"take 5\.07 GiB and max_matrix_bytes allows 1\.00 GiB; raise"):
        Radon(volume, beam, "matrix")
    with pytest.raises(BackendError, match=r"allows 0\.00 GiB"):
        Radon(VOLUME, BEAMS[0], "matrix", max_matrix_bytes=1000)


def test_equal_rays_share_their_matrices_wherever_the_slices_lie():
    stack = VolumeGeometry((8, 32, 32), (3.0, 2.0, 2.0))
    one, other = (Radon(stack.slices(k, k + 2), ParallelBeam(9), "matrix") for k in (0, 4))
    assert one._projector(x()) is other._projector(x())
    assert Radon(stack, ParallelBeam(10), "matrix")._projector(x()) is not one._projector(x())


def test_a_second_process_reads_the_file(monkeypatch):
    first = Radon(VOLUME, BEAMS[0], "matrix")(x())
    _matrix._shared.clear()
    monkeypatch.setattr(_matrix, "_weights", None)  # cannot be computed again
    assert torch.equal(Radon(VOLUME, BEAMS[0], "matrix")(x()), first)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1000])


def change_a_weight(path):
    data = bytearray(path.read_bytes())
    data[data.find(b"weights.npy") + 4000] ^= 64
    path.write_bytes(bytes(data))


def swap(path):
    """The weights of another geometry under this one's name."""
    wanted = path.read_bytes()
    Radon(VOLUME, ParallelBeam(15, arc_degrees=90.0), "matrix")(x())
    (other,) = (p for p in folder().iterdir() if p != path)
    assert other.read_bytes() != wanted
    other.replace(path)


@pytest.mark.parametrize("harm", [shorten, change_a_weight, swap])
def test_a_damaged_file_never_scales_an_image(harm, caplog):
    good = Radon(VOLUME, BEAMS[0], "matrix")(x())
    (path,) = folder().iterdir()
    harm(path)
    _matrix._shared.clear()
    with caplog.at_level(logging.WARNING):
        again = Radon(VOLUME, BEAMS[0], "matrix")(x())
    assert torch.equal(again, good)
    assert "matrix is damaged and is computed again" in caplog.text
