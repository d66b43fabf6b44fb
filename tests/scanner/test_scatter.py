"""Scatter taken off: what was added is removed, and parallel data tell how much it was."""

import pytest
import torch

import ctflow as ct
from ctflow.datasets.synthetic import toy_volume
from ctflow.errors import ProtocolError, UsageError
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.units import MU_WATER

QUIET = ct.Gaussian(1e-7)
SLICE, STACK = toy_volume(1, 64), toy_volume(5, 32)
BEAMS = {
    "parallel": (SLICE, ct.ParallelBeam(20)),
    "fan": (SLICE, ct.FanBeam(20)),
    "cone": (STACK, ct.ConeBeam(12)),
}
TEXT = """# Small.
geometry = { name = "parallel-beam", angles = 40 }
noise = { name = "poisson", photons = 1e9 }
method = { name = "cgls", iterations = 10 }
reference = { name = "fbp" }
"""


def measured(volume, beam, share, noise=QUIET, **effects):
    A = ct.Radon(volume.geometry, beam)
    return ct.Scanner(scatter=share, **effects).measure(A, volume.data, noise, MU_WATER)


@pytest.mark.parametrize("name", BEAMS)
def test_what_was_added_is_taken_off(name):
    """At a share of scatter as of a cone without a grid."""
    volume, beam = BEAMS[name]
    exact, scattered = measured(volume, beam, 0.0), measured(volume, beam, 0.3)
    assert float((scattered.y - exact.y).abs().max()) > 0.3
    corrected = ct.correct_scatter(scattered, 0.3)
    torch.testing.assert_close(corrected.y, exact.y, atol=1e-3, rtol=0)
    batch = ct.correct_scatter(
        ct.InverseProblem(scattered.A, scattered.y[None], QUIET, scattered.W[None]), 0.3
    )
    torch.testing.assert_close(batch.y[0], corrected.y)


def test_weights_follow_the_signal_that_is_left():
    """The corrected data vary with the measured ones by the derivative, found by a difference."""
    problem = measured(SLICE, BEAMS["parallel"][1], 0.2, ct.Poisson(1e5))
    corrected = ct.correct_scatter(problem, 0.2)
    moved = problem.y.clone()
    moved[..., 10, 30] += 0.01
    there = ct.correct_scatter(ct.InverseProblem(problem.A, moved, problem.noise, problem.W), 0.2)
    slope = float((there.y - corrected.y)[..., 10, 30]) / 0.01
    assert slope > 1.05
    ratio = float((problem.W / corrected.W)[..., 10, 30])
    assert ratio == pytest.approx(slope**2, rel=0.05)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_parallel_views_tell_the_share(share):
    """With the noise of 1e5 photons, and of two slices at once."""
    one = measured(SLICE, ct.ParallelBeam(60), share, ct.Poisson(1e5))
    assert ct.scatter_share(one) == pytest.approx(share, abs=0.003)
    two = ct.InverseProblem(one.A, torch.stack([one.y, one.y]), one.noise)
    assert ct.scatter_share(two) == pytest.approx(share, abs=0.003)


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_a_share_that_empties_the_thickest_places_is_not_taken(share):
    """Behind a wide patient the views look alike, if less, at a third too."""
    _, dy, dx = SLICE.geometry.spacing
    wide = ct.Radon(ct.VolumeGeometry(SLICE.geometry.shape, (3.0, 1.3 * dy, 1.3 * dx)), ct.ParallelBeam(60))
    seen = ct.Scanner(scatter=share).measure(wide, SLICE.data, ct.Poisson(1e5), MU_WATER)
    assert ct.scatter_share(seen) == pytest.approx(share, abs=0.003)


def test_a_spectrum_and_gains_bias_the_share_by_little():
    seen = measured(SLICE, ct.ParallelBeam(60), 0.02, ct.Poisson(1e5), kvp=120, gain_error=0.001)
    assert ct.scatter_share(seen) == pytest.approx(0.02, abs=0.015)


def test_what_tells_no_share_is_refused():
    with pytest.raises(UsageError, match="parallel rays in a slice alone"):
        ct.scatter_share(measured(*BEAMS["fan"], 0.1))
    with pytest.raises(UsageError, match="5 views are too few"):
        ct.scatter_share(measured(SLICE, ct.ParallelBeam(5), 0.1))
    problem = measured(SLICE, ct.ParallelBeam(20), 0.0)
    cut = problem.y.clone()
    cut[..., 0] = 1.0
    with pytest.raises(UsageError, match="does not see all"):
        ct.scatter_share(ct.InverseProblem(problem.A, cut, QUIET))
    uneven = torch.linspace(0.5, 1.5, 20)[:, None] * problem.y
    with pytest.raises(UsageError, match="no share"):
        ct.scatter_share(ct.InverseProblem(problem.A, uneven, QUIET))


def test_what_has_no_scatter_is_refused():
    blur = ct.Blur((1, 16, 16), sigma=1.0)
    problem = ct.simulate(blur, torch.rand(1, 16, 16), QUIET)
    with pytest.raises(UsageError, match="Blur gives others"):
        ct.correct_scatter(problem, 0.1)
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(UsageError, match="at least 0 and below 1"):
            ct.correct_scatter(measured(SLICE, ct.ParallelBeam(8), 0.0), share)


def test_a_protocol_takes_scatter_off():
    protocol = Protocol.parse("small", TEXT)
    scanner = protocol.override(["scanner={ scatter = 0.1 }"])
    corrected = scanner.override(["scatter_correction=0.1"])
    hu = {
        name: ct.run(one, SLICE).volumes["fbp"].data[0, 24:40, 24:40].mean()
        for name, one in {"ideal": protocol, "scanner": scanner, "corrected": corrected}.items()
    }
    assert hu["scanner"] < hu["ideal"] - 40
    assert float(hu["corrected"] - hu["ideal"]) == pytest.approx(0, abs=2)
    assert "Scatter of 0.1 behind 200 mm of water is taken off." in prepare(corrected, SLICE).description


@pytest.mark.parametrize("share", ["1.0", "-0.1", "'much'"])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ProtocolError, match="scatter_correction"):
        Protocol.parse("small", TEXT).override([f"scatter_correction={share}"])


def test_a_protocol_without_projections_has_no_scatter():
    protocol = Protocol.load("super-resolution").override(["scatter_correction=0.1"])
    with pytest.raises(UsageError, match="leave out the correction"):
        prepare(protocol, SLICE)
