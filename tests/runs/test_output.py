"""What a run leaves behind: spreads, differences, identities and UIDs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import torch

from ctflow.dicom import read_series
from ctflow.errors import UsageError
from ctflow.experiments import Study
from ctflow.experiments.cases import cases
from ctflow.experiments.plan import Planner
from ctflow.experiments.worker import Worker
from ctflow.recon.fbp import FBP
from ctflow.runs import run as pipeline
from ctflow.runs.export import Exports, _Writer, export
from ctflow.runs.protocol import Protocol
from ctflow.samplers import ConjugateIntegrator, MomentMatching, MSFlow
from ctflow.units import hu_to_attenuation
from tests.dicom.files import CANARY, cylinder, plant_canary, toy_series
from tests.dicom.validators import validate

PROTOCOL = """# few views
geometry = { name = "parallel-beam", angles = 12, bins = 48, pitch = 1.3 }
noise = { name = "poisson", photons = 1e4 }
method = { name = "conjugate" }
reference = { name = "fbp" }
"""
DRAWN = f"""{PROTOCOL}[[beside]]
name = "moment-matching"
steps = 2
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run of three samples on a series of a canary's."""
    folder = tmp_path_factory.mktemp("report") / "series"
    folder = plant_canary(folder, toy_series(folder, slices=2))
    protocol = Protocol.parse("few", PROTOCOL)
    return pipeline.run(protocol, folder, seed=3, samples=3, prior="ct-gaussian")


def uids(folder):
    return {
        file.relative_to(folder): pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID
        for file in folder.rglob("*.dcm")
    }


def test_the_spread_is_that_of_the_samples(report, tmp_path):
    assert list(report.spreads) == ["conjugate"]
    spread = report.spreads["conjugate"]
    assert spread.unit == "HU"
    export(report, tmp_path)
    series = tmp_path / "conjugate-spread"
    stored = torch.stack(
        [
            torch.from_numpy(header.pixel_array * float(header.RescaleSlope))
            for header in map(pydicom.dcmread, sorted(series.iterdir()))
        ]
    )
    expected = torch.where(spread.mask, spread.data, 0.0)
    # stored in steps of 0.1 HU
    assert (stored - expected).abs().max() <= 0.05 + 1e-4
    assert expected.max() > 1  # the samples differ by more than a step


def test_the_spread_divides_by_one_less_than_the_samples(tmp_path, monkeypatch):
    """Samples of 0, 1 and 5 HU above water: mean 2 HU, √((4 + 1 + 9) / 2) = 2.646 HU; by N it were 2.160."""

    def drawn(self, problem, *_):
        hu = torch.tensor([0.0, 1.0, 5.0]).reshape(3, 1, 1, 1, 1)
        return hu_to_attenuation(hu).expand(3, *problem.batch_shape[1:], *problem.A.domain_shape)

    monkeypatch.setattr(ConjugateIntegrator, "__call__", drawn)
    protocol = Protocol.parse("few", PROTOCOL)
    found = pipeline.run(protocol, cylinder(2), tmp_path / "out", samples=3, prior="ct-gaussian")
    inside = found.spreads["conjugate"].mask
    assert found.volumes["conjugate"].data[inside] == pytest.approx(2, abs=1e-3)  # float32 in 1/mm
    assert found.spreads["conjugate"].data[inside] == pytest.approx(7**0.5, abs=1e-3)
    header = pydicom.dcmread(next((tmp_path / "out" / "conjugate-spread").iterdir()))
    stored = header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)
    assert stored.max() == pytest.approx(2.6)  # in steps of 0.1 HU
    (tmp_path / "tiny.toml").write_text(PROTOCOL.replace(", bins = 48, pitch = 1.3", ""))
    text = "protocols = ['tiny.toml']\nsamples = 3\nprior = 'ct-gaussian'\n[methods.conjugate]\n"
    study = Study.parse("s", "cases = [{ phantoms = [0], size = 48, slices = 1 }]\n" + text, tmp_path)
    (unit,) = Planner(study, cases(study, {})).test({})
    _, image = Worker().compute(unit)
    assert image["sd"].max() == pytest.approx(7**0.5, abs=1e-3)
    assert np.median(image["sd"]) == pytest.approx(7**0.5, abs=1e-3)


SAID = {
    "conjugate": ("starts", "standard deviation over starts, not of the posterior", "SD over starts"),
    "moment-matching": ("posterior", "posterior standard deviation", "posterior SD"),
}


def test_a_spread_says_whether_it_is_the_posteriors(tmp_path):
    pytest.importorskip("highdicom")
    protocol, out = Protocol.parse("few", DRAWN), tmp_path / "out"
    exports = Exports(parametric_map=True)
    found = pipeline.run(protocol, cylinder(2), out, samples=3, prior="ct-gaussian", exports=exports)
    assert list(found.spreads) == ["moment-matching", "conjugate"]
    page = " ".join((out / "report.html").read_text().split())
    for name, (kind, meaning, short) in SAID.items():
        drawn = {"number": 3, "spread": kind, "meaning": meaning}
        for file in ("report.json", f"{name}.json"):
            told = json.loads((out / file).read_text())["samples"]
            assert told.get(name, told) == drawn
        image, spread = (pydicom.dcmread(out / f"{name}{end}" / "IM0001.dcm") for end in ("", "-spread"))
        assert image.DerivationDescription.startswith(f"mean of 3 samples of {name} by protocol few")
        assert spread.DerivationDescription.startswith(f"{meaning}: 3 samples of {name} by protocol few")
        assert spread.SeriesDescription == f"ctflow {name} {short} (HU, not for diagnosis), few"[:64]
        mapped = pydicom.dcmread(out / f"{name}-spread-map.dcm")
        assert mapped.SeriesDescription == spread.SeriesDescription
        assert mapped.ContentDescription == f"{meaning}, HU"
        assert f"{name}: mean of 3 samples; the series beside it is their {meaning}" in page
    assert validate(sorted(out.rglob("*.dcm"))) == []
    assert json.loads((out / "fbp.json").read_text())["samples"]["number"] == 1
    image = pydicom.dcmread(out / "fbp" / "IM0001.dcm")
    assert image.DerivationDescription.startswith("fbp by protocol few")


def test_a_long_name_cuts_no_word_of_a_spread(report, tmp_path):
    name = "single-shooting-refinement"
    figures = {**report.figures, "samples": {name: report.figures["samples"]["conjugate"]}}
    said = _Writer(replace(report, figures=figures), tmp_path, Exports())._description(name, "spread")
    assert said == "ctflow single-shooting-re SD over starts (HU, not for diagnosis)"
    assert len(said) == 64


def test_a_method_that_draws_nothing_is_run_once(tmp_path):
    """And samples that no method draws are refused before the series is read."""
    protocol = Protocol.parse("few", PROTOCOL.replace('"conjugate"', '"ms-flow", states = 2'))
    with pytest.raises(UsageError, match="fbp, ms-flow, whose samples would be alike; leave out --samples"):
        pipeline.run(protocol, tmp_path / "none", samples=3, prior="ct-gaussian")
    drawn = protocol.with_methods(["moment-matching"]).override(["beside.moment-matching.steps=2"])
    found = pipeline.run(drawn, cylinder(2), samples=3, prior="ct-gaussian")
    assert list(found.spreads) == ["moment-matching"]
    numbers = {name: samples["number"] for name, samples in found.figures["samples"].items()}
    assert numbers == {"fbp": 1, "moment-matching": 3, "ms-flow": 1}


def test_all_series_are_of_one_study_and_valid(report, tmp_path):
    pytest.importorskip("highdicom")
    export(report, tmp_path, Exports(hu_scale=0.1, difference=True, parametric_map=True))
    files = sorted(tmp_path.rglob("*.dcm"))
    assert len(files) == 2 * 4 + 1  # two methods, a spread, a difference; one map
    assert validate(files) == []
    headers = [pydicom.dcmread(file) for file in files]
    assert len({header.StudyInstanceUID for header in headers}) == 1
    # Images from 1001, their spreads a hundred on, differences another hundred.
    numbers = {(header.SeriesNumber, file.parent.name) for file, header in zip(files, headers, strict=True)}
    assert numbers > {(1001, "fbp"), (1002, "conjugate"), (1102, "conjugate-spread")}
    assert (1202, "conjugate-difference") in numbers
    assert len({number for number, _ in numbers}) == 5
    change = read_series(tmp_path / "conjugate-difference").data
    image, truth = report.volumes["conjugate"], report.volumes[report.compared_with]
    expected = torch.where(truth.mask, image.data - truth.data, 0.0)
    assert (change - expected).abs().max() <= 0.5 + 1e-3  # whole HU


def test_the_same_run_has_the_same_uids(report, tmp_path):
    for name, exports in {"a": Exports(), "b": Exports(), "c": Exports(hu_scale=0.5)}.items():
        (tmp_path / name).mkdir()
        export(report, tmp_path / name, exports)
    first, again, other = (uids(tmp_path / name) for name in "abc")
    assert first == again
    spread = {path for path in first if "spread" in path.parts[0]}
    assert not {first[path] for path in first if path not in spread} & set(other.values())
    report.figures["provenance"]["seed"] = 4
    (tmp_path / "d").mkdir()
    export(report, tmp_path / "d")
    report.figures["provenance"]["seed"] = 3
    assert not set(first.values()) & set(uids(tmp_path / "d").values())


def test_a_deidentified_run_names_nobody(report, tmp_path):
    export(report, tmp_path, Exports(deidentify=True))
    for file in tmp_path.rglob("*"):
        assert CANARY not in str(file.relative_to(tmp_path))
        assert file.is_dir() or CANARY.encode() not in file.read_bytes()
    assert validate(sorted(tmp_path.rglob("*.dcm"))) == []


def test_a_volume_without_dicom_gets_a_study_of_its_own(tmp_path):
    volume = cylinder(2)
    protocol = Protocol.parse("few", PROTOCOL)
    found = pipeline.run(protocol, volume, tmp_path / "out", prior="ct-gaussian")
    files = sorted((tmp_path / "out").rglob("*.dcm"))
    assert len(files) == 4
    assert validate(files) == []
    assert not found.spreads


def test_what_cannot_be_written_is_refused_at_once():
    pytest.importorskip("highdicom")
    drawing, none = {"moment-matching": MomentMatching()}, {"fbp": FBP(), "ms-flow": MSFlow()}
    Exports(parametric_map=True, hu_scale=0.04).check(2, none | drawing)
    Exports(hu_scale=1.0).check(1, none)
    with pytest.raises(UsageError, match="--samples 8"):
        Exports(parametric_map=True).check(1, drawing)
    for samples in (1, 8):
        with pytest.raises(UsageError, match=r"fbp, ms-flow, .* --beside moment-matching"):
            Exports(parametric_map=True).check(samples, none)
    with pytest.raises(UsageError, match=r"expected 0\.04 to 1"):
        Exports(hu_scale=3).check(1, none)
