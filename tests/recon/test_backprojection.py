"""The compiled backprojection of FBP and FDK against the same sums by tensor operations."""

import pytest
import torch

from ctflow.geometry import ConeBeam, FanBeam, ParallelBeam, VolumeGeometry
from ctflow.recon import _backprojection
from ctflow.recon._backprojection import backproject, backproject_cone, bin_numbers

NEAR = {"source_axis": 300.0, "source_detector": 500.0}
# In float32 the rounding of a bin's place, 1e-5 of a bin; in float64 the end of a wide curved fan's series.
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-9}
SLICES = VolumeGeometry((1, 60, 51), (2.0, 2.0, 2.3))
FLAT = {
    "parallel": ParallelBeam(20),
    "parallel, off the axis": ParallelBeam(20, shift_bins=0.5, axis_offset=3.1),
    "flat fan": FanBeam(20, shift_bins=0.25, axis_offset=9.0, **NEAR),
    "curved fan": FanBeam(20, curved=True, shift_bins=-3.3, axis_offset=9.0, **NEAR),
    # Half the fan is 48°.
    "wide fan": FanBeam(20, curved=True, source_axis=106.0, source_detector=200.0),
    "truncated": FanBeam(20, bins=40, pitch=2.0, curved=True, axis_offset=2.0, **NEAR),
}
VOLUME = VolumeGeometry((9, 40, 31), (3.0, 2.0, 2.3))
CONES = {
    "cone": ConeBeam(11, **NEAR),
    "curved cone, off the axis": ConeBeam(11, curved=True, shift_bins=0.25, axis_offset=9.0, **NEAR),
    "rows that miss the outer slices": ConeBeam(7, rows=5, row_pitch=4.0, **NEAR),
    "one row": ConeBeam(7, rows=1, row_pitch=500.0, **NEAR),
}


def noise(*shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def unfitted(name):
    return "truncated" in name or "miss" in name


def close(found, wanted):
    bound = ROUNDING[wanted.dtype] * float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("slices", [1, 3, 21])
@pytest.mark.parametrize("name", FLAT)
def test_compiled_slices_are_the_tensors_sums(name, slices, dtype):
    # A detector that is too small is refused by the whole volume's fit, not by its middle.
    beam = FLAT[name].fitted(VolumeGeometry((1, 8, 8), (2.0, 2.0, 2.0)) if unfitted(name) else SLICES)
    y = noise(slices, 20, beam.bins, dtype=dtype)
    close(backproject(y, SLICES, beam), _backprojection._by_tensors(y, SLICES, beam))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", CONES)
def test_compiled_volumes_are_the_tensors_sums(name, dtype):
    beam = CONES[name].fitted(VolumeGeometry((1, 40, 31), (3.0, 2.0, 2.3)) if unfitted(name) else VOLUME)
    y = noise(2, beam.rows, len(beam.views), beam.bins, dtype=dtype)
    heights = (bin_numbers(9) * 3.0).to(y)
    close(backproject_cone(y, VOLUME, beam), _backprojection._slab(y, VOLUME, beam, heights))


@pytest.mark.parametrize("beam", [FLAT["flat fan"], CONES["cone"]])
def test_result_does_not_depend_on_the_number_of_threads(beam):
    volume, backprojection = (VOLUME, backproject_cone) if beam in CONES.values() else (SLICES, backproject)
    beam = beam.fitted(volume)
    y = noise(2, *beam.data_shape(volume)[volume is SLICES :], dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = backprojection(y, volume, beam)
        torch.set_num_threads(3)
        assert torch.equal(alone, backprojection(y, volume, beam))
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*FLAT, *CONES])
def test_a_gpu_sums_the_same(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    volume, backprojection = (VOLUME, backproject_cone) if name in CONES else (SLICES, backproject)
    beam = (FLAT | CONES)[name].fitted(
        VolumeGeometry((1, 8, 8), (2.0, 2.0, 2.0)) if unfitted(name) else volume
    )
    y = noise(2, *beam.data_shape(volume)[name in FLAT :], dtype=torch.float64)
    close(backprojection(y.cuda(), volume, beam).cpu(), backprojection(y, volume, beam))
