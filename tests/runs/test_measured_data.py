"""Runs on measured data: a scanner's own rays, the FBP of all views in place of a truth."""

import json

import pytest

from ctflow.datasets.raw_phantom import measure_phantom, raw_phantom, scanner
from ctflow.dicom import read_series, write_projections
from ctflow.errors import GeometryError, ProtocolError
from ctflow.runs import run as pipeline
from ctflow.runs.protocol import Protocol
from tests.rawdata.test_sources import SPARSE, own

__all__ = ["own"]  # a fixture


def test_run_on_a_sinogram(own, tmp_path):
    report = pipeline.run(SPARSE, own, tmp_path / "out")
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "no ground truth" in figures["warnings"][0]
    assert figures["measured"] is True
    assert "30 views" in figures["measurement"]  # every other one
    assert list(report.volumes) == ["FBP of all views", "fbp", "tv"]
    assert "FBP of all views itself has" in (tmp_path / "out" / "report.html").read_text()
    back = read_series(tmp_path / "out" / "tv")
    assert float((back.data - report.volumes["tv"].data)[back.mask].abs().max()) <= 0.5
    assert abs(float(report.volumes["fbp"].data[0, 20:28, 20:28].mean())) < 10
    everything = "".join(path.read_text(errors="ignore") for path in (tmp_path / "out").rglob("*.*"))
    assert "CANARY" not in everything


def test_run_on_a_helix(tmp_path):
    spot = scanner(views=60, turns=2.4, bins=92, rows=8, feed=6.0, z=80.0)
    path = write_projections(measure_phantom(raw_phantom(bead=None), spot), tmp_path / "set")
    report = pipeline.run(SPARSE, path, tmp_path / "out", slices=(0, 2))
    assert "single-slice rebinning to a fan" in " ".join(report.figures["warnings"])
    assert "photons counted by the scanner" in report.figures["measurement"]
    assert report.figures["provenance"]["input_sha256"]
    volume = report.volumes["FBP of all views"]
    centre = volume.data.shape[1] // 2
    middle = volume.data[:, centre - 2 : centre + 2, centre - 2 : centre + 2]
    assert abs(float(middle.mean())) < 10
    assert len(read_series(tmp_path / "out" / "tv").data) == 2


def test_a_plan_of_measured_data_reconstructs_nothing(own, monkeypatch):
    def never(*arguments):
        raise AssertionError("the FBP of all views was computed")

    monkeypatch.setattr("ctflow.recon.fbp.FBP.__call__", never)
    said = pipeline.plan(SPARSE, own, device="cpu")
    assert "no ground truth" in said["warnings"]
    assert said["slices"] == "0:1 of 1"
    with pytest.raises(AssertionError, match="all views"):
        pipeline.run(SPARSE, own)


def test_limited_arcs_keep_the_first_views(own):
    limited = SPARSE.override(['geometry={name="parallel-beam", angles=1000, arc_degrees=120}'])
    measured = pipeline.prepare(limited, own)
    assert len(measured.A.beam.views) == 41  # 0 to 120° in steps of 3°


def test_dead_columns_act_on_measured_data(own):
    dead = SPARSE.override(
        [
            'operator={name="mask", kind="columns", missing=0.1, seed=0}',
            'reference={name="cgls", iterations=3}',
        ]
    )
    figures = pipeline.run(dead, own).figures
    assert "mask" in figures["measurement"]


def test_image_protocols_are_refused(own):
    with pytest.raises(ProtocolError, match="measures images"):
        pipeline.prepare(Protocol.load("deblur").override(['method={name="tv"}', "beside=[]"]), own)


def test_slices_that_are_not_there(own):
    with pytest.raises(GeometryError, match="do not lie in 0:1"):
        pipeline.prepare(SPARSE, own, slices=(0, 2))


def test_a_simulated_scanner_is_refused_over_measured_data(own):
    with pytest.raises(ProtocolError, match="measured by one"):
        pipeline.prepare(SPARSE.override(["scanner={ kvp = 120 }"]), own)
