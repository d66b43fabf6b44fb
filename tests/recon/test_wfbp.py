"""WFBP of a simulated helix: water, the slices that it cannot see, and what it refuses."""

import pytest
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom
from ctflow.errors import GeometryError, UsageError
from ctflow.geometry import ConeBeam, FanBeam, HelicalBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Mask, Radon
from ctflow.problem import InverseProblem
from ctflow.recon import WFBP
from ctflow.units import attenuation_to_hu

GRID = VolumeGeometry((25, 48, 48), (3.0, 4.0, 4.0))
BODY = Phantom((Ellipsoid((0.0, 0.0, 0.0), (80.0, 70.0, 400.0), 0.0192),))


def invert(A, y):
    return WFBP()(InverseProblem(A, y, Gaussian(1.0)), None, torch.Generator(), lambda step, steps: None)


@pytest.mark.parametrize(
    "beam",
    [
        HelicalBeam(120, arc_degrees=360.0, feed=24.0),
        HelicalBeam(120, arc_degrees=360.0, feed=-24.0),
        HelicalBeam(120, arc_degrees=360.0, feed=24.0, curved=False),
    ],
    ids=["rising", "falling", "flat panel"],
)
def test_slices_inside_the_helix_are_water(beam):
    beam = beam.covering(36.0)
    A = Radon(GRID, beam, "joseph")
    y = BODY.line_integrals(GRID, A.beam, rays_per_bin=2)
    hu = attenuation_to_hu(invert(A, y[None]))[0]
    x = (torch.arange(48) - 23.5) * 4.0
    inner = torch.hypot(x[:, None], x) < 50
    inside = abs((torch.arange(25) - 12) * 3.0) < 18
    # Measured 2 HU; slices before the first half turn and after the last are 0, which is -1000 HU.
    assert hu[inside][:, inner].mean(1).sub(hu[12][inner].mean()).abs().max() < 5
    assert abs(float(hu[12][inner].mean())) < 10
    assert (hu[[0, -1]] == -1000).all()


def test_a_helix_covers_what_it_is_asked_to():
    one = HelicalBeam(100, arc_degrees=360.0, feed=24.0)
    more = one.covering(96.0)
    heights = more.heights()
    # Four turns of slices, and half a turn of 12 mm before and after them.
    assert heights[0] == pytest.approx(-(48 + 12), abs=0.3)
    assert heights[-1] == pytest.approx(48 + 12, abs=0.3)
    assert more.views[1] == pytest.approx(one.views[1])


@pytest.mark.parametrize(
    ("A", "error", "says"),
    [
        (Radon(GRID, FanBeam(9)), GeometryError, "FanBeam; use FBP"),
        (Radon(GRID, ConeBeam(9, arc_degrees=90.0)), GeometryError, "half a turn is needed"),
        (Mask.example(), UsageError, "WFBP inverts Radon and was given Mask"),
    ],
)
def test_what_wfbp_cannot_invert_is_refused(A, error, says):
    with pytest.raises(error, match=says):
        invert(A, torch.zeros(A.range_shape))
