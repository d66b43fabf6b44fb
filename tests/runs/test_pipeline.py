"""The main job on a small synthetic series: what is written is what was found, whole and repeatable."""

import json

import numpy as np
import pytest
import torch

from ctflow.datasets.synthetic import toy_volume, write_toy_series
from ctflow.dicom import read_series
from ctflow.errors import BackendError, GeometryError, OutputError, UsageError
from ctflow.recon.fbp import FBP
from ctflow.runs import run as pipeline
from ctflow.runs.protocol import Protocol
from ctflow.runs.report import INPUT

SMALL = """# A small one.
geometry = { name = "parallel-beam", angles = 30 }
noise = { name = "poisson", photons = 1e5 }
method = { name = "tv", iterations = 5 }
reference = { name = "fbp" }
"""


@pytest.fixture(scope="module")
def protocol():
    return Protocol.parse("small", SMALL)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write_toy_series(tmp_path_factory.mktemp("toy") / "series", slices=3, size=64)


@pytest.fixture(scope="module")
def done(protocol, series, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "out"
    return pipeline.run(protocol, series, out, slices=(1, 3)), out


def test_the_output_is_complete_and_readable(done):
    report, out = done
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["fbp", "fbp.json", "report.html", "report.json", "tv", "tv.json", "viewer"]
    )
    figures = json.loads((out / "report.json").read_text())
    assert list(figures["methods"]) == ["fbp", "tv"]
    assert figures["measured"] is False
    for found in figures["methods"].values():
        assert {"rmse_hu", "psnr", "ssim", "seconds", "residual", "network", "body", "fov"} <= set(found)
    assert {"conventions", "provenance", "protocol", "warnings", "accept"} <= set(figures)
    assert figures == json.loads(json.dumps(report.figures))


def test_written_series_hold_what_was_found(done):
    report, out = done
    for name, volume in report.methods():
        back = read_series(out / name)
        inside = back.mask & volume.mask
        # Stored values are whole HU: half a grey level.
        assert float((back.data - volume.data)[inside].abs().max()) <= 0.5
        assert np.allclose(back.geometry.affine, volume.geometry.affine, atol=1e-2)


def test_side_cars_say_where_the_figures_come_from(done, protocol, series):
    _, out = done
    side_car = json.loads((out / "tv.json").read_text())
    assert side_car["protocol"]["sha256"] == protocol.sha256
    assert side_car["provenance"]["input_sha256"] == read_series(series).slices(1, 3).source.sha256
    assert side_car["clipped_voxels"] == 0
    assert side_car["provenance"]["prior"] is None
    assert side_car["provenance"]["slices"] == "1:3"


def test_the_true_image_fits_its_own_noise(done):
    # Per datum chi-squared: 2 slices × 30 views × about 92 bins leave a standard deviation of 0.02; the
    # weights come from the noisy counts, which biases by about 1 / counts.
    assert done[0].figures["residual_of_input"] == pytest.approx(1, abs=0.1)


def test_tv_is_better_than_fbp_from_few_views(protocol, series):
    converged = protocol.override(["method.iterations=100"])
    figures = pipeline.run(converged, series, slices=(1, 2)).figures["methods"]
    assert figures["tv"]["rmse_hu"] < figures["fbp"]["rmse_hu"]


def test_the_same_seed_gives_the_same_pixels(protocol, series, done, tmp_path):
    again = pipeline.run(protocol, series, tmp_path / "out", slices=(1, 3))
    for name, volume in again.methods():
        assert torch.equal(volume.data, done[0].volumes[name].data)
        first, second = (read_series(folder / name).data for folder in (tmp_path / "out", done[1]))
        assert torch.equal(first, second)


def test_noise_of_a_slice_is_its_own(protocol, series):
    volume = read_series(series)
    whole = pipeline.prepare(protocol, volume).problem(3).y
    part = pipeline.prepare(protocol, volume, slices=(1, 2)).problem(3).y
    other = pipeline.prepare(protocol, volume, slices=(1, 2)).problem(4).y
    assert torch.equal(whole[1:2], part)
    assert not torch.equal(part, other)


def test_chunks_do_not_change_the_image(protocol, series, done, monkeypatch):
    for bound in ("_FEW_PIXELS", "_LANES"):  # one slice at a time
        monkeypatch.setattr(f"ctflow.runs.reconstruction.{bound}", 1)
    single = pipeline.run(protocol, series, slices=(1, 3))
    # Step sizes may come from norms of the whole chunk; float32 sums in another order otherwise.
    assert torch.allclose(single.volumes["fbp"].data, done[0].volumes["fbp"].data, atol=0.1)
    assert float((single.volumes["tv"].data - done[0].volumes["tv"].data).abs().max()) < 1


def test_progress_runs_from_zero_to_one(protocol, series):
    seen = []
    pipeline.run(protocol, series, progress=lambda fraction, method: seen.append((fraction, method)))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < fractions[-1] == pytest.approx(1)
    assert [method for _, method in seen][:: len(seen) - 1] == ["reading", "tv"]


def test_image_domain_protocols_run_on_the_same_line(series):
    report = pipeline.run(
        Protocol.load("deblur").override(['method={name="tv", iterations=5}', "beside=[]"]), series
    )
    assert set(report.volumes) == {INPUT, "cgls", "tv"}
    assert "2.0" in report.figures["measurement"]


def test_projections_with_dead_columns_run_on_the_same_line(series):
    changes = ['method={name="tv", iterations=5}', "beside=[]", "geometry.angles=30"]
    report = pipeline.run(Protocol.load("dead-columns").override(changes), series, slices=(0, 1))
    assert "Parallel beam: 30" in report.figures["measurement"]
    assert "Then mask (kind columns, missing 0.05) of the projections" in report.figures["measurement"]


def test_thresholds_are_judged(protocol, series):
    good = pipeline.run(protocol.override(["accept={rmse_hu=1e6, ssim=0.0}"]), series, slices=(0, 1))
    bad = pipeline.run(protocol.override(["accept={psnr=99}"]), series, slices=(0, 1))
    assert good.failures == []
    assert len(bad.failures) == 1
    assert "psnr" in bad.failures[0]


def test_a_body_at_the_edge_is_reported(protocol):
    volume = toy_volume(slices=1, size=64)
    wide = volume.with_data(torch.full_like(volume.data, 40.0))
    assert any(
        "edge of the field of view" in text for text in pipeline.prepare(protocol, wide).warnings(None)
    )
    assert not any("edge of the field" in text for text in pipeline.prepare(protocol, volume).warnings(None))


def test_what_does_not_fit_the_data_and_what_may_be_radians_is_said():
    """An image of one step, and an arc of 2.09 that was meant as two thirds of a half turn."""
    protocol = Protocol.parse("small", SMALL)
    for iterations, said in ((300, False), (1, True)):
        one = protocol.override([f"method={{ name = 'sirt', iterations = {iterations} }}"])
        warnings = pipeline.run(one, toy_volume(1, 48)).figures["warnings"]
        assert any("the image of sirt is far from the data" in text for text in warnings) is said
        assert not any("fbp" in text or "radians" in text for text in warnings)
    short = pipeline.plan(protocol.override(["geometry.arc_degrees=2.09"]), toy_volume(1, 48))
    assert "the arc is 2.09 degrees; if radians were meant, give arc_degrees = 120" in short["warnings"]


def test_a_failure_half_way_leaves_nothing(protocol, series, tmp_path, monkeypatch):
    def broken(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("ctflow.runs.report.Report.write", broken)  # after all series have been written
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(protocol, series, tmp_path / "out", slices=(0, 1))
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_method_is_named(protocol, series, monkeypatch):
    monkeypatch.setattr(FBP, "__call__", lambda self, problem, *_: torch.full((1, 3, 1, 64, 64), torch.nan))
    with pytest.raises(UsageError, match="FBP diverged"):
        pipeline.run(protocol, series)


def test_an_existing_output_is_refused_before_anything_is_read(protocol, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError):
        pipeline.run(protocol, tmp_path / "there is no series here", tmp_path / "out")


def test_what_cannot_be_is_refused(protocol, series):
    with pytest.raises(GeometryError, match="slices 2:9"):
        pipeline.prepare(protocol, series, slices=(2, 9))
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="'cuda' is not on this machine, which has cpu"):
            pipeline.prepare(protocol, series, device="cuda")


def test_a_scanner_measures_in_place_of_the_operator(protocol, series):
    plain, scanned = (
        protocol.override(changes) for changes in ([], ["scanner={ gain_error = 0.01, rays = 3, kvp = 120 }"])
    )
    apart = [pipeline.prepare(one, series).problem(0) for one in (plain, scanned)]
    assert apart[1].y.shape == apart[0].y.shape == apart[1].W.shape
    assert 1e-3 < float((apart[1].y - apart[0].y).abs().mean()) < 0.1
    one = pipeline.prepare(scanned, series, slices=(1, 2)).problem(0)  # a slice's data are its own
    torch.testing.assert_close(one.y[0], apart[1].y[1])
    assert "120 kV" in pipeline.prepare(scanned, series).description
