"""Counts, flats and darks; where the axis is; and a tooth that was measured with all of them."""

import math

import pytest
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom
from ctflow.errors import GeometryError, UnitError
from ctflow.geometry import ParallelBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.problem import InverseProblem
from ctflow.recon import FBP
from ctflow.scan import find_axis, to_line_integrals

GRID = VolumeGeometry((2, 96, 96), (2.0, 1.5, 1.5))
BODY = Phantom(
    (
        Ellipsoid((12.0, -5.0, 0.0), (45.0, 30.0, math.inf), 0.02),
        Ellipsoid((30.0, 4.0, 0.0), (6.0, 9.0, math.inf), 0.03, 0.4),
    )
)


def test_counts_flats_and_darks_are_beer_and_lambert():
    y = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    dark, flat = torch.full((2, 1, 7), 100.0), torch.linspace(900, 1100, 14).reshape(2, 1, 7)
    counts = dark + (flat - dark) * torch.exp(-y)
    torch.testing.assert_close(to_line_integrals(counts, flat, dark), y)
    # No photon at all is not infinite attenuation.
    assert float(to_line_integrals(dark - 1, flat, dark).max()) == pytest.approx(16 * math.log(2))


def test_exchanged_fields_are_refused():
    with pytest.raises(UnitError, match=r"14 bins .* swapped"):
        to_line_integrals(torch.ones(2, 5, 7), torch.ones(2, 1, 7), torch.full((2, 1, 7), 2.0))


@pytest.mark.parametrize("shift", [-6.3, 0.0, 11.75])
@pytest.mark.parametrize("arc", [360.0, 180.0])
@pytest.mark.parametrize("offset", [0.0, 4.0])
def test_axis_is_found(shift, arc, offset):
    beam = ParallelBeam(120, bins=160, pitch=1.2, arc_degrees=arc, shift_bins=shift, axis_offset=offset)
    y = BODY.line_integrals(GRID, beam, rays_per_bin=4)
    found = find_axis(y, ParallelBeam(beam.views, bins=160, pitch=1.2, axis_offset=offset))
    # Exactly opposed views leave the parabola through three bins, a tenth of a bin; half a turn without its
    # end point, the curvature of the sinogram over three steps.
    assert found.shift_bins == pytest.approx(shift, abs=0.05 if arc == 360.0 else 0.15)


def test_an_axis_that_nothing_shows_is_refused():
    beam = ParallelBeam(20, bins=160, pitch=1.2, arc_degrees=90.0)
    with pytest.raises(GeometryError, match="half a turn apart"):
        find_axis(BODY.line_integrals(GRID, beam), beam)
    with pytest.raises(GeometryError, match="do not go together"):
        find_axis(torch.zeros(2, 20, 161), beam)


def test_the_tooth(data_dir):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    file = data_dir / "sinograms" / "tooth.h5"
    if not file.is_file():
        pytest.skip("no tooth here")
    with h5py.File(file) as scan:
        counts, flat, dark = (
            torch.from_numpy(scan[f"exchange/{name}"][:]) for name in ("data", "data_white", "data_dark")
        )
        views = torch.deg2rad(torch.from_numpy(scan["exchange/theta"][:])).tolist()
    y = to_line_integrals(counts, flat.mean(0), dark.mean(0)).transpose(0, 1)
    found = find_axis(y, ParallelBeam(views, bins=640, pitch=1.0))
    axis = 319.5 - found.shift_bins
    images = {place: tooth(y[:1], views, place) for place in (axis - 2, axis, axis + 2)}
    negative = {place: float(image.clamp_max(0).norm()) for place, image in images.items()}
    print(f"axis at column {axis:.2f}; energy below zero {[round(v, 4) for v in negative.values()]}")
    # The file's note says 295.5; a wrong axis doubles edges and throws negative streaks.
    assert abs(axis - 295.5) < 1
    assert min(negative, key=negative.__getitem__) == axis
    # Reprojection: what is left of the data is noise and what stands outside the field of view.
    again = Radon(VolumeGeometry((1, 512, 512), (1.0, 1.0, 1.0)), beam_at(views, axis), "astra")(images[axis])
    correlation = torch.corrcoef(torch.stack([again.flatten(), y[:1].flatten()]))[0, 1]
    print(f"reprojection: correlation {float(correlation):.5f}")
    assert correlation > 0.99


def beam_at(views, axis):
    return ParallelBeam(views, bins=640, pitch=1.0, shift_bins=319.5 - axis)


def tooth(y, views, axis):
    A = Radon(VolumeGeometry((1, 512, 512), (1.0, 1.0, 1.0)), beam_at(views, axis), "astra")
    return FBP("hann")(InverseProblem(A, y, Gaussian(1.0)), None, torch.Generator(), lambda *_: None)
