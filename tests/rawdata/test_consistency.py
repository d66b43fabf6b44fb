"""Projections that no object has are refused or warned of; sound ones, also measured, pass in silence."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctflow.datasets.phantoms import Ellipsoid, Phantom, disc, thorax
from ctflow.errors import GeometryError, UnitError
from ctflow.geometry import ConeBeam, FanBeam, ParallelBeam, VectorBeam, VolumeGeometry
from ctflow.rawdata import read_scan
from ctflow.rawdata.consistency import check_consistency
from ctflow.scan import Scan

GRID = VolumeGeometry((1, 96, 96), (1.0, 4.0, 4.0))
ASIDE = Phantom(
    (
        Ellipsoid((0.0, 0.0, 0.0), (90.0, 80.0, math.inf), 0.02),
        Ellipsoid((45.0, 30.0, 0.0), (15.0, 15.0, math.inf), 0.02),
    )
)
OBJECTS = {"chest": thorax(3), "rod aside": ASIDE, "disc": disc(70.0)}
BEAMS = {
    "half turn": ParallelBeam(180, bins=240, pitch=2.0),
    "turn": ParallelBeam(180, bins=240, pitch=2.0, arc_degrees=360.0),
    "third": ParallelBeam(90, bins=240, pitch=2.0, arc_degrees=120.0),
    "sparse": ParallelBeam(20, bins=240, pitch=2.0),
    "shifted": ParallelBeam(180, bins=260, pitch=2.0, shift_bins=6.3),
    "fan": FanBeam(240, bins=320, pitch=2.6),
    "sparse fan": FanBeam(40, bins=320, pitch=2.6),
    "curved fan": FanBeam(240, bins=320, pitch=2.6, curved=True),
    "fan with its axis aside": FanBeam(240, bins=340, pitch=2.6, axis_offset=12.0),
    "short scan": FanBeam(200, bins=320, pitch=2.6, arc_degrees=220.0),
    "fan, the other way": FanBeam(tuple(-np.radians(np.arange(0.0, 360.0, 1.5))), bins=320, pitch=2.6),
    "cone": ConeBeam(240, bins=320, pitch=2.6, rows=6, row_pitch=5.0),
    "one row less": ConeBeam(240, bins=320, pitch=2.6, rows=5, row_pitch=5.0, curved=True),
}
HALF, TURN, FAN = (BEAMS[name] for name in ("half turn", "turn", "fan"))


def data(thing, beam):
    return OBJECTS[thing].line_integrals(GRID, beam)


def said(y, beam):
    return check_consistency(Scan(y, beam, "test"))


def noisy(y, photons):
    counts = torch.poisson(photons * torch.exp(-y), generator=torch.Generator().manual_seed(0))
    return -(counts.clamp_min(0.5) / photons).log()


@pytest.mark.parametrize("beam", BEAMS)
@pytest.mark.parametrize("thing", OBJECTS)
def test_sound_data_pass_in_silence(thing, beam):
    y = data(thing, BEAMS[beam])
    assert said(y, BEAMS[beam]) == []
    assert said(noisy(y, 1e3), BEAMS[beam]) == []


@pytest.mark.parametrize("beam", [HALF, TURN, FAN])
def test_truncated_data_are_said_and_not_refused(beam):
    y = data("chest", beam)
    cut = (beam.bins - 110) // 2
    (warning,) = said(y[..., cut:-cut], replace(beam, bins=beam.bins - 2 * cut))
    assert "extends beyond the detector, or the data have an offset" in warning


def test_a_detector_that_sees_half_of_the_object_is_sound():
    """Over a whole turn the other half is seen from the other side; sums of views say nothing then."""
    rod = Phantom((Ellipsoid((60.0, 0.0, 0.0), (30.0, 30.0, math.inf), 0.02),))
    for beam in (TURN, FAN):
        cut = beam.bins // 2 - 10
        half = replace(beam, bins=beam.bins - cut, shift_bins=cut / 2)
        for thing in (rod, OBJECTS["chest"]):
            assert said(thing.line_integrals(GRID, beam)[..., cut:], half) == []


def test_views_that_come_twice_or_in_any_order_are_sound():
    twice = FanBeam(tuple(np.radians(np.arange(0.0, 720.0, 3.0))), bins=320, pitch=2.6)
    assert said(data("chest", twice), twice) == []
    order = np.random.default_rng(0).permutation(180)
    mixed = replace(TURN, angles=tuple(np.asarray(TURN.views)[order]))
    assert said(data("chest", TURN)[:, order], mixed) == []


def sorted_sums(y, beam):
    """An array given with its views and bins exchanged, of any shape."""
    turned = torch.nn.functional.interpolate(y.transpose(1, 2)[None], size=y.shape[1:], mode="bilinear")
    return turned[0], beam


WRONG = {
    "transposed": sorted_sums,
    "shuffled": lambda y, b: (
        y[:, torch.randperm(y.shape[1], generator=torch.Generator().manual_seed(1))],
        b,
    ),
    "interleaved": lambda y, b: (torch.cat([y[:, ::2], y[:, 1::2]], 1), b),
    "half turned back": lambda y, b: (
        torch.cat([y[:, : y.shape[1] // 2], y[:, y.shape[1] // 2 :].flip(1)], 1),
        b,
    ),
    "arc twice": lambda y, b: (y, replace(b, angles=tuple(2 * np.asarray(b.views)))),
}


@pytest.mark.parametrize("beam", [HALF, TURN, FAN])
@pytest.mark.parametrize("thing", ["chest", "rod aside"])
@pytest.mark.parametrize("wrong", WRONG)
def test_views_that_do_not_go_with_their_angles(beam, thing, wrong):
    y, told = WRONG[wrong](data(thing, beam), beam)
    with pytest.raises(GeometryError, match="likely"):
        said(y, told)


def test_a_patient_who_moves_is_said_and_not_refused():
    y = data("chest", HALF)
    (warning,) = said(torch.cat([y[:, :90], y[:, 90:].roll(2, -1)], 1), HALF)
    assert "a moved object" in warning


@pytest.mark.parametrize("value", [0.0, 11.09])
def test_dead_bins_and_views_are_said(value):
    y = data("chest", FAN).clone()
    y[..., 130:138] = value
    y[:, 50] = value
    (warning,) = said(y, FAN)
    assert "8 bins and 1 views hold a single value" in warning


@pytest.mark.parametrize(
    "beam", [FAN, BEAMS["sparse fan"], BEAMS["curved fan"], BEAMS["short scan"], BEAMS["cone"]]
)
def test_a_fan_that_turns_the_other_way_is_named(beam):
    """A parallel beam that turns the other way is a mirror image, which no law excludes."""
    y = data("chest", beam)
    for told in (y.flip(1), y.flip(2)):
        with pytest.raises(GeometryError, match="reversed direction"):
            said(told, beam)
    assert said(data("chest", HALF).flip(1), HALF) == []


def test_an_arc_of_half_the_length_is_named():
    with pytest.raises(GeometryError, match="an arc half as long"):
        said(data("chest", HALF), replace(HALF, angles=tuple(2 * np.asarray(HALF.views))))
    half = replace(TURN, angles=tuple(np.asarray(TURN.views) / 2))
    with pytest.raises(GeometryError, match="an arc twice as long"):
        said(data("chest", TURN), half)


@pytest.mark.parametrize("beam", ["half turn", "turn", "fan", "short scan", "fan with its axis aside"])
@pytest.mark.parametrize("shift", [5.0, -3.5])
def test_an_off_centre_detector_is_said_with_its_shift(beam, shift):
    right = replace(BEAMS[beam], bins=BEAMS[beam].bins + 20, shift_bins=shift)
    (warning,) = said(data("rod aside", right), replace(right, shift_bins=0.0))
    found = float(warning.split("shift_bins = ")[1].split(",")[0])
    # Bins of a flat fan are not equally wide at the axis.
    assert found == pytest.approx(shift, abs=0.4)


LEVELS = {
    "counts": (lambda y: 1e4 * torch.exp(-y), "are they counts"),
    "8 bits": (lambda y: 255 * torch.exp(-y), "are they counts"),
    "transmission": (lambda y: torch.exp(-y), "negative natural logarithm"),
    "the logarithm's sign": (lambda y: -y, "logarithm's sign"),
    "nothing": (torch.zeros_like, "expected above 0"),
}


@pytest.mark.parametrize("beam", [HALF, FAN])
@pytest.mark.parametrize("kind", LEVELS)
def test_values_that_are_no_line_integrals(beam, kind):
    change, words = LEVELS[kind]
    with pytest.raises(UnitError, match=words):
        said(change(data("chest", beam)), beam)


def test_an_offset_is_said():
    (warning,) = said(data("rod aside", HALF) + 0.3, HALF)
    assert "hold 0.3 and 0.3 where air gives 0" in warning


def test_beams_given_view_by_view_are_held_to_their_levels():
    rays = HALF.rays()
    vectors = tuple(map(tuple, np.hstack([rays.source, rays.centre, rays.u, rays.v])))
    beam = VectorBeam(vectors, bins=HALF.bins, parallel=True)
    y = data("chest", HALF)
    assert said(y, beam) == []
    with pytest.raises(UnitError, match="counts"):
        said(1e4 * torch.exp(-y), beam)


def test_few_views_show_nothing():
    beam = ParallelBeam(3, bins=240, pitch=2.0)
    assert said(data("chest", beam).flip(1), beam) == []


@pytest.mark.parametrize("name", ["solid_disc", "ta", "tc"])
def test_measured_fans(data_dir, name):
    """Beam-hardened: opposite rays agree within 1 %; turned back they do not."""
    folder = data_dir / "sinograms" / "htc2022"
    if not folder.is_dir():
        pytest.skip("no HTC 2022 scans here")
    scan = read_scan(folder / f"htc2022_{name}_full.mat")
    assert len(scan.notes) == 1  # the format's own
    assert check_consistency(scan.first(181)) == []  # the challenge's arcs begin at 30°
    if name != "solid_disc":  # which looks the same from everywhere
        with pytest.raises(GeometryError, match="reversed direction"):
            check_consistency(replace(scan, y=scan.y.flip(2)))


def test_a_transposed_file_is_refused_when_it_is_read(tmp_path):
    y = data("rod aside", ParallelBeam(240, bins=240, pitch=2.0))[0].numpy()
    text = 'units = {length = "mm", angle = "degrees"}\ndata = "y.npy"\n'
    (tmp_path / "y.toml").write_text(text + 'geometry = {name = "parallel-beam", pitch = 2.0}\n')
    np.save(tmp_path / "y.npy", y)
    assert read_scan(tmp_path / "y.toml").notes == ()
    np.save(tmp_path / "y.npy", y.T)
    with pytest.raises(GeometryError, match=r"sums of the views vary by \d+.*transposed axes"):
        read_scan(tmp_path / "y.toml")
