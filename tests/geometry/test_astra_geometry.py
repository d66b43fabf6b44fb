"""Beams against ASTRA: its own dictionaries run by hand, round trips, and where a point is seen."""

import math

import astra
import numpy as np
import pytest
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom
from ctflow.errors import GeometryError
from ctflow.geometry import (
    ConeBeam,
    FanBeam,
    HelicalBeam,
    ParallelBeam,
    ParallelBeam3D,
    VectorBeam,
    VolumeGeometry,
    from_astra,
    to_astra,
)
from ctflow.operators._astra import AstraSliceProjector, AstraVolumeProjector

SLICE = VolumeGeometry((1, 40, 48), (1.6, 1.6, 1.6))
VOLUME = VolumeGeometry((5, 40, 48), (2.0, 1.6, 1.6))
# ASTRA's line lengths round where a ray meets the corner of a pixel; of values up to 40.
ROUNDING = 2e-3
NEAR = {"source_axis": 200.0, "source_detector": 320.0}
FLAT = {
    "parallel": ParallelBeam(9),
    "parallel, shifted": ParallelBeam(9, shift_bins=2.25, axis_offset=1.1),
    "fan": FanBeam(9, **NEAR),
    "fan, shifted and off axis": FanBeam(9, shift_bins=-1.75, axis_offset=4.0, **NEAR),
}
CURVED = {
    "curved fan": FanBeam(9, curved=True, **NEAR),
    "curved fan, shifted and off axis": FanBeam(9, curved=True, shift_bins=1.25, axis_offset=4.0, **NEAR),
}
SPATIAL = {
    "parallel": ParallelBeam3D(9, shift_bins=0.5),
    "cone": ConeBeam(9, shift_bins=0.25, axis_offset=3.0, **NEAR),
    "flat helix": HelicalBeam(9, curved=False, feed=-12.0, arc_degrees=720.0, **NEAR),
}


def by_hand(projections, grid, model, image):
    """ASTRA's projection of a slice through its classic interface, in its own unit of length."""
    geometry = astra.create_proj_geom(*projections) if isinstance(projections, tuple) else projections
    projector = astra.create_projector(model, geometry, grid)
    identity, sinogram = astra.create_sino(image, projector)
    astra.data2d.delete(identity)
    astra.projector.delete(projector)
    return sinogram


def image():
    return np.random.default_rng(0).random((40, 48), dtype=np.float32)


def project(volume, beam, x):
    return AstraSliceProjector(volume, beam).forward(torch.from_numpy(x)[None])[0].numpy()


@pytest.mark.parametrize(
    ("projections", "model"),
    [
        (("parallel", 1.3, 60, np.linspace(0, 3, 7)), "linear"),
        (("fanflat", 2.1, 70, np.linspace(0, 6, 7), 150.0, 90.0), "line_fanflat"),
    ],
)
@pytest.mark.parametrize("pixel", [1.0, 1.6])
def test_converted_dictionary_projects_as_astra_by_hand(projections, model, pixel):
    grid = astra.create_vol_geom(40, 48)
    volume, beam = from_astra(astra.create_proj_geom(*projections), grid, unit_mm=pixel)
    wanted = pixel * by_hand(projections, grid, model, image())
    # The same weights from the same rays.
    np.testing.assert_allclose(project(volume, beam.fitted(volume), image()), wanted, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", FLAT)
def test_exported_dictionary_projects_as_ours(name):
    beam = FLAT[name].fitted(SLICE)
    model = "linear" if isinstance(beam, ParallelBeam) else "line_fanflat"
    projections, grid = to_astra(SLICE, beam)
    wanted = by_hand(projections, {**grid, "option": grid["option"]}, model, image())
    np.testing.assert_allclose(project(SLICE, beam, image()), wanted, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", [*FLAT, *SPATIAL])
def test_there_and_back_is_the_same_beam(name):
    volume, beam = (SLICE, FLAT[name]) if name in FLAT else (VOLUME, SPATIAL[name])
    beam = beam.fitted(volume)
    again, back = from_astra(*to_astra(volume, beam))
    assert again.shape == volume.shape
    assert again.spacing == pytest.approx(volume.spacing)
    assert type(back) is type(beam)
    for one, other in zip(rays_of(beam), rays_of(back), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)


def rays_of(beam):
    rays = beam.rays()
    # A parallel detector may stand anywhere along its rays.
    return [rays.source, rays.u, rays.v, rays.points(3)]


def test_a_curved_helix_comes_back_as_vectors_of_the_same_rays():
    beam = HelicalBeam(12, **NEAR).fitted(VOLUME)
    with pytest.raises(GeometryError, match="reverse the rows"):
        to_astra(VOLUME, beam)
    rays = beam.rays()
    table = np.concatenate([rays.source, rays.centre, rays.u, -rays.v], 1)
    turned = VectorBeam(tuple(map(tuple, table)), rays.bins, rays.rows, radius=rays.radius)
    _, back = from_astra(*to_astra(VOLUME, turned))
    np.testing.assert_allclose(back.rays().points(5), rays.points(5)[::-1], rtol=0, atol=1e-9)


def test_astra_puts_its_cylinder_where_we_do():
    # cuda/3d/cone_cyl.cu: centre - axis, axis = -u × v, point = middle + axis cos γ + tangent sin γ.
    rays = HelicalBeam(7, **NEAR).fitted(VOLUME).rays()
    table = np.concatenate([rays.source, rays.centre, rays.u, -rays.v], 1)
    turned = VectorBeam(tuple(map(tuple, table)), rays.bins, rays.rows, radius=rays.radius)
    row = to_astra(VOLUME, turned)[0]["Vectors"][2]
    d, u, v, R = row[3:6], row[6:9], row[9:12], row[12]
    axis = -np.cross(u, v) * R / np.linalg.norm(u) / np.linalg.norm(v)
    gamma = (np.arange(rays.bins) - (rays.bins - 1) / 2)[:, None] * np.linalg.norm(u) / R
    points = d - axis + axis * np.cos(gamma) + u * R / np.linalg.norm(u) * np.sin(gamma)
    middle = (turned.rays().rows - 1) / 2
    ours = turned.rays().points(2)
    between = (ours[math.floor(middle)] + ours[math.ceil(middle)]) / 2
    np.testing.assert_allclose(points * [1, -1, 1], between, rtol=0, atol=1e-9)


def test_named_spatial_dictionaries_are_their_vectors():
    # ASTRA's own geom_2vec says what its named geometries mean.
    angles = np.linspace(0, 5, 6)
    grid = astra.create_vol_geom(40, 48, 5)
    for named in (
        astra.create_proj_geom("parallel3d", 1.0, 1.2, 6, 70, angles),
        astra.create_proj_geom("cone", 1.0, 1.2, 9, 110, angles, 150.0, 90.0),
    ):
        beam, vectors = (from_astra(g, grid)[1] for g in (named, astra.geom_2vec(named)))
        for one, other in zip(rays_of(beam), rays_of(vectors), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CURVED)
def test_curved_fan_on_astra_is_its_rays(name):
    beam = CURVED[name].fitted(SLICE)
    x, y, radius = 6.0, -3.0, 12.0
    fine = VolumeGeometry((1, 400, 480), (0.16, 0.16, 0.16))
    columns, rows = np.meshgrid((np.arange(480) - 239.5) * 0.16, (199.5 - np.arange(400)) * 0.16)
    disc = ((columns - x) ** 2 + (rows - y) ** 2 < radius**2).astype(np.float32)
    data = project(fine, beam, disc)
    rays = beam.rays()
    for view in range(len(beam.views)):
        towards = rays.points(view)[0] - rays.source[view]
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        start = np.array([x, y, 0.0]) - rays.source[view]
        distance = np.linalg.norm(np.cross(start, towards), axis=1)
        exact = 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
        # A chord near the rim of a disc of pixels of h = 0.16 mm errs by sqrt(2 R h) at most, on average h.
        assert np.abs(data[view] - exact).mean() < 0.16
        assert np.abs(data[view] - exact).max() < math.sqrt(2 * radius * 0.16)


def test_a_window_off_the_origin_moves_the_rays():
    projections = ("fanflat", 2.1, 90, np.linspace(0, 6, 7), 150.0, 90.0)
    grid = astra.create_vol_geom(40, 48, -20.0, 28.0, -23.0, 17.0)
    volume, beam = from_astra(astra.create_proj_geom(*projections), grid)
    wanted = by_hand(projections, grid, "line_fanflat", image())
    np.testing.assert_allclose(project(volume, beam.fitted(volume), image()), wanted, rtol=0, atol=ROUNDING)


def test_what_does_not_go_together_is_refused():
    flat = astra.create_proj_geom("parallel", 1.0, 60, np.zeros(1))
    with pytest.raises(GeometryError, match="give both dictionaries of a slice"):
        from_astra(flat, astra.create_vol_geom(4, 4, 4))
    with pytest.raises(GeometryError, match="'sparse_matrix' is not known"):
        from_astra({"type": "sparse_matrix"}, astra.create_vol_geom(4, 4))
    with pytest.raises(GeometryError, match="cones only"):
        to_astra(SLICE, CURVED["curved fan"])


GPU = {
    **SPATIAL,
    "curved cone": ConeBeam(9, curved=True, axis_offset=3.0, **NEAR),
    "curved helix": HelicalBeam(9, feed=8.0, **NEAR),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU)
def test_volumes_on_a_gpu_are_their_chords(name):
    if not (torch.cuda.is_available() and astra.use_cuda()):
        pytest.skip("no CUDA device")
    volume = VolumeGeometry((24, 96, 96), (1.6, 0.8, 0.8))
    ball = Phantom((Ellipsoid((9.0, -6.0, 2.5), (14.0, 11.0, 9.0), 0.02, 0.4),))
    projector = AstraVolumeProjector(volume, beam := GPU[name].fitted(volume))
    x = smoothed(ball, volume).cuda()[None]
    y = projector.forward(x)
    exact = ball.line_integrals(volume, beam)
    assert y.is_cuda
    # Voxels of 0.8 × 0.8 × 1.6 mm, axes of 9 mm and more; a mirrored axis is wrong by more than half.
    assert (y[0].cpu() - exact).norm() < 0.08 * exact.norm()
    # ASTRA's CUDA pair is close, not exact.
    back = projector.adjoint(y)
    assert float((x * back).sum()) == pytest.approx(float(y.square().sum()), rel=2e-2)


def smoothed(phantom, volume):
    """The phantom averaged over voxels: over pixels by itself, along z over four planes of each slice."""
    Z, Y, X = volume.shape
    fine = VolumeGeometry((4 * Z, Y, X), (volume.spacing[0] / 4, *volume.spacing[1:]))
    return phantom.rasterise(fine).data.reshape(Z, 4, Y, X).mean(1)
