"""Volumes where rays cross slices: what is solved for, and that chosen slices come back in their place."""

import pytest
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom
from ctflow.errors import GeometryError
from ctflow.geometry import VolumeGeometry
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.reconstruction import reconstruct
from ctflow.volume import Volume

CONE = """# A cone.
geometry = { name = "cone-beam", angles = 40, source_axis = 400.0, source_detector = 700.0 }
noise = { name = "poisson", photons = 1e9 }
method = { name = "cgls", iterations = 40 }
reference = { name = "fdk" }
"""


def series(slices=20, size=32):
    """An object that changes along z and goes on through both ends of every choice, HU."""
    grid = VolumeGeometry((slices, size, size), (5.0, 6.0, 6.0))
    parts = (
        Ellipsoid((0.0, 0.0, 0.0), (80.0, 70.0, 300.0), 0.02),
        Ellipsoid((25.0, 10.0, 5.0), (18.0, 18.0, 22.0), 0.006),
        Ellipsoid((-25.0, -20.0, -20.0), (20.0, 15.0, 20.0), -0.012),
    )
    mu = Phantom(parts).rasterise(grid).data
    return Volume(1000 * (mu / 0.0192 - 1), grid, "HU", mu_water=0.0192)


def protocol(**changes):
    return Protocol.parse("cone", CONE).override([f"{key}={value}" for key, value in changes.items()])


def test_slices_beyond_the_chosen_ones_are_unknown_too():
    volume = series()
    found = prepare(protocol(), volume, slices=(6, 14))
    beyond = found.unknown.beyond
    assert beyond > 0
    assert found.A.domain_shape == (8 + 2 * beyond, 32, 32)
    assert found.solves == 1
    torch.testing.assert_close(found.unknown.chosen(found.x, 8), found.mu.data)
    # Inside the series its own slices are taken, beyond its end the last is repeated.
    end = prepare(protocol(), volume, slices=(14, 20))
    assert torch.equal(end.x[0, -1], end.x[0, -1 - end.unknown.beyond])
    assert any("last slice is repeated" in text for text in end.warnings(None))


def test_end_slices_of_a_long_object_are_not_biased():
    measurement = prepare(protocol(), series(), slices=(6, 14))
    method = measurement.protocol.methods()["cgls"]
    hu = reconstruct(measurement, measurement.problem(0), method).volume.data
    error = (hu - measurement.truth.data)[:, measurement.masks[1][0]]
    # Without the slices beyond, the outer ones are off by more than 100 HU. Measured 3 HU.
    assert float(error[[0, -1]].mean(1).abs().max()) < 10


def test_a_cone_over_one_slice_is_refused():
    with pytest.raises(GeometryError, match="ConeBeam crosses slices and 1 of them"):
        prepare(protocol(), series(), slices=(3, 4))


def test_a_slab_far_thinner_than_the_panel_sees_is_refused():
    with pytest.raises(GeometryError, match="slices or more, or a panel of fewer rows"):
        prepare(protocol(**{"geometry.rows": 120, "geometry.row_pitch": 4.0}), series(), slices=(4, 8))


def test_slices_that_not_every_view_sees_are_named():
    found = prepare(protocol(**{"geometry.rows": 8, "geometry.row_pitch": 9.0}), series(), slices=(6, 14))
    assert any("not seen by all views" in text for text in found.warnings(None))


def test_a_panel_too_low_for_every_slice_is_said():
    """Nothing lies beyond slices of which it sees the middle alone."""
    low = protocol(**{"geometry.rows": 2, "geometry.row_pitch": 9.0, "geometry.height": 10.0})
    found = prepare(low, series(8))
    assert found.unknown.beyond == 0
    assert any("6 of 8 slices are not seen by all views" in text for text in found.warnings(None))


def test_a_helix_that_climbs_too_fast_is_refused_and_one_at_its_limit_said():
    def helix(rows):
        text = f'name = "helical-beam", angles = 48, arc_degrees = 360.0, feed = 30.0, rows = {rows}'
        return protocol(geometry=f"{{ {text}, row_pitch = 3.0 }}", reference='{ name = "wfbp" }')

    def said(rows):
        return [
            text for text in prepare(helix(rows), series(24), slices=(8, 16)).warnings(None) if "seen" in text
        ]

    with pytest.raises(GeometryError, match=r"no slice is seen in more than .* feed below 30 mm"):
        said(4)
    assert said(40) == []


def test_flat_beams_are_solved_slice_by_slice():
    found = prepare(Protocol.load("sparse-view-20"), series(4))
    assert found.solves == 4
    assert found.A.domain_shape == (1, 32, 32)
    assert found.x.shape == (4, 1, 32, 32)


def test_a_helix_is_as_long_as_the_slices_need():
    helix = protocol(
        geometry='{ name = "helical-beam", angles = 24, arc_degrees = 360.0, feed = 30.0 }',
        reference='{ name = "wfbp" }',
    )
    measurement = prepare(helix, series(24), slices=(9, 15))
    problem = measurement.problem(0)
    # One turn of slices and one of overscan.
    assert len(measurement.unknown.beam.views) == pytest.approx(48, abs=1)
    methods = measurement.protocol.methods()
    hu = {name: reconstruct(measurement, problem, method).volume.data for name, method in methods.items()}
    body = measurement.masks[1]
    for name, bound in (("wfbp", 120), ("cgls", 75)):  # from 24 views a turn; measured 88 and 52 HU
        error = (hu[name] - measurement.truth.data)[torch.from_numpy(body)]
        assert float(error.square().mean().sqrt()) < bound
