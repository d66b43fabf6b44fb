"""Every registered operator, every composition and every projection obeys the laws of linear operators."""

import pytest

from ctflow.geometry import FanBeam, ParallelBeam, VolumeGeometry
from ctflow.operators import Blur, Downsample, Radon
from ctflow.registry import find, names
from tests.laws import LAWS, adjoint_gap

RADON = Radon.example()
COMPOSITES = {
    "scaled": -2.0 * RADON,
    "sum": RADON + 0.5 * RADON,
    "projected blur": RADON @ Blur(RADON.domain_shape, sigma=1.0),
    "low resolution of a backprojection": Downsample(RADON.domain_shape, factor=2) @ RADON.T,
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", sorted(names("operator")))
def test_operator_obeys(name, law):
    law(find("operator", name).example())


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", COMPOSITES)
def test_composition_obeys(name, law):
    law(COMPOSITES[name])


@pytest.mark.parametrize("backend", ["astra", "matrix"])
@pytest.mark.parametrize("beam", [ParallelBeam(30), FanBeam(30, source_axis=300.0, source_detector=500.0)])
def test_projections_are_matched(beam, backend):
    volume = VolumeGeometry((2, 64, 48), (3.0, 1.7, 1.7))
    # Float32 rounding; measured 3e-9 and below.
    assert adjoint_gap(Radon(volume, beam, backend)) < 1e-7
