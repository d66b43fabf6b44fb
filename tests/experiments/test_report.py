"""The study's report: its numbers are the evidence's, it is whole, small, silent and works in a browser."""

import base64
import csv
import json
import re
import shutil

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from ctflow.errors import UsageError
from ctflow.evidence.statistics import bootstrap, wilcoxon
from ctflow.evidence.support import support_map
from ctflow.experiments import pictures
from ctflow.experiments.findings import read
from ctflow.experiments.report import write_report
from ctflow.experiments.support import support
from ctflow.problem import simulate
from ctflow.runs.pictures import picture_in
from ctflow.runs.support import PRIOR_SD_HU
from tests.experiments.written_study import METHODS, PARSED, characters, viewed, write_study
from tests.runs.test_report import decoded


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    write_study(out, 6)
    write_report(out)
    return out


def content(study):
    return json.loads((study / "report.json").read_text())


def test_numbers_are_those_of_the_evidence(study):
    rows = content(study)["protocols"]["sparse-view-60"]
    records = {
        m: [json.loads((study / "units" / f"{c:02d}-{m}" / "unit.json").read_text()) for c in range(6)]
        for m in METHODS
    }
    rmse = {m: np.array([r["figures"]["rmse_hu"] for r in records[m]]) for m in METHODS}
    for method in METHODS:
        expected = bootstrap(rmse[method])
        found = rows[method]["figures"]["rmse_hu"]
        assert (found["mean"], found["low"], found["high"]) == (expected.mean, expected.low, expected.high)
    assert rows["tv"]["versus"]["p"] == wilcoxon(rmse["tv"], rmse["fbp"]) == 2 / 2**6
    assert rows["tv"]["versus"]["p_holm"] == 2 * 2 / 2**6  # two comparisons, both the least p of six patients
    assert rows["fbp"]["versus"] is None
    difference = rmse["conjugate"] - rmse["fbp"]
    assert rows["conjugate"]["versus"]["difference_hu"]["mean"] == pytest.approx(difference.mean())


def test_the_support_is_that_of_the_middle_slice(study):
    findings = read(study)
    found = support(findings, findings.done[0])
    assert found.shape == (64, 64)
    middle = findings.truth(findings.done[0]).slices(1, 2)
    problem = simulate(
        PARSED.operator(middle.geometry), middle.to_attenuation(PARSED.mu_water).data, PARSED.noise(), 0
    )
    expected = support_map(problem, PRIOR_SD_HU / 1000 * PARSED.mu_water, 2, 0)[0].double().numpy()
    # Kept as float32, and averaged over squares of 9 pixels.
    assert found == pytest.approx(uniform_filter(expected, 9).clip(0, 1), abs=1e-6)
    assert 0.1 < found.mean() < 1


def test_the_page_orders_differences_by_their_sign(study):
    """A method that is better than the reference stands with a minus before its difference of RMSE."""
    found = content(study)["protocols"]["sparse-view-60"]["tv"]["versus"]["difference_hu"]["mean"]
    assert -20 < found < -5  # 25 to 30 HU of TV against 40 of FBP
    assert f"{found:+.1f}" in (study / "report.html").read_text()


def test_coverage_is_of_patients_that_did_not_calibrate(study):
    """Spread is half the error's sigma for every patient alike but for the floor: 90 % can be held."""
    found = content(study)["protocols"]["sparse-view-60"]["conjugate"]["coverage"]
    assert found["all"] == pytest.approx(0.9, abs=0.02)
    assert content(study)["protocols"]["sparse-view-60"]["tv"]["coverage"] is None


def test_the_worst_case_comes_first(study):
    cases = content(study)["cases"]
    assert [case["case"] for case in cases] == [f"phantom-{k}" for k in (5, 4, 3, 2, 1, 0)]


def test_the_csv_has_a_row_for_every_unit(study):
    with (study / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    assert float(rows[0]["soft_tissue.rmse_hu"]) == pytest.approx(40, rel=0.1)


def test_slices_are_counted_from_one(study):
    case = viewed(study / "report.html")[0]
    axial = case["planes"][0]
    assert (axial["first"], axial["places"], axial["of"]) == (1, [0, 1, 2], 3)
    assert "numbers" not in case["holds"][0]  # all of them


def test_the_page_is_one_file_and_escapes(study):
    page = (study / "report.html").read_text()
    assert "<b>synthetic</b>" not in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(""", page)
    assert "Research use only, not for diagnosis" in page


def test_the_page_holds_the_pixels_of_the_study_exactly(study):
    """In the page as in the folder beside it; the worst method but the reference is shown first."""
    case = viewed(study / "report.html")[0]
    assert (case["names"], case["main"]) == (["truth", "fbp", "tv", "conjugate"], 3)
    with np.load(study / "units" / "05-conjugate" / "image.npz") as stored:
        hu, sd = stored["hu"], stored["sd"]
    assert [bool(file) for file in case["files"]["spreads"]] == [False, False, False, True]
    for kind, expected in (("images", np.rint(hu)), ("spreads", np.rint(10 * sd))):
        for k in range(3):
            name = f"{case['files'][kind][3]}-{k}"
            known = np.load(study / "cases" / "hash-5" / "truth.npz")["mask"][k]
            found = decoded(base64.b64decode(case["held"][name]))
            assert np.array_equal(found[known], expected[k][known])
            assert picture_in(study / "viewer" / f"{name}.js") == case["held"][name]


def test_pictures_stay_within_the_pages_budget(tmp_path, monkeypatch):
    """Twenty cases of white noise, which compresses worst of all, in a page a twentieth the size."""
    budget = pictures._IN_PAGE // 20
    assert pictures._IN_PAGE + 1e6 < 10e6  # a megabyte for the rest of the page
    monkeypatch.setattr(pictures, "_IN_PAGE", budget)
    monkeypatch.setattr(pictures, "support", lambda findings, unit: None)
    write_study(tmp_path, 20, size=32)
    page = write_report(tmp_path)
    found = viewed(page)
    assert [len(case["planes"][0]["places"]) for case in found] == [2] * 20
    assert budget / 2 < characters(found) <= budget
    assert page.stat().st_size < budget + 1e6


def test_a_full_page_keeps_its_worst_cases_and_all_figures(study, monkeypatch):
    whole = viewed(study / "report.html")
    one = characters(whole) / len(whole) / 3  # of a case with one slice
    monkeypatch.setattr(pictures, "_IN_PAGE", 2.5 * one)
    page = write_report(study)
    found = viewed(page)
    assert [case["planes"][0]["places"] for case in found] == [[1], [1], [], [], [], []]
    assert found[0]["whole"].startswith("phantom-5")  # the worst
    assert "1 of 3 slices, numbers 2 of phantom-5" in found[0]["holds"][0]
    assert page.read_text().count('class="page"') == 6
    monkeypatch.undo()
    write_report(study)


def test_slices_that_are_there_are_not_written_again(study):
    files = {path: path.stat().st_mtime_ns for path in (study / "viewer").glob("*/*.js")}
    assert len(files) == 6 * (3 * (1 + 3 + 1) + 1)  # truth, three methods, a spread; a support
    write_report(study)
    assert {path: path.stat().st_mtime_ns for path in (study / "viewer").glob("*/*.js")} == files


def test_what_is_not_done_is_listed_with_its_reason(tmp_path):
    write_study(tmp_path, 2, sd=False)
    place = tmp_path / "units" / "00-tv" / "unit.json"
    record = {
        **json.loads(place.read_text()),
        "status": "failed",
        "reason": "the series <lacks> slices",
        "figures": None,
    }
    place.write_text(json.dumps(record))
    shutil.rmtree(tmp_path / "units" / "01-conjugate")
    page = write_report(tmp_path).read_text()
    found = content(tmp_path)
    assert [unit["status"] for unit in found["failures"]] == ["failed", "pending"]
    assert "the series &lt;lacks&gt; slices" in page
    assert found["protocols"]["sparse-view-60"]["tv"]["failed"] == 1
    assert found["protocols"]["sparse-view-60"]["tv"]["patients"] == 1


def test_a_study_of_which_nothing_is_done_has_a_report_too(tmp_path):
    write_study(tmp_path, 1)
    shutil.rmtree(tmp_path / "units")
    assert "case-0" not in write_report(tmp_path).read_text()


def test_a_folder_without_a_plan_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"plan\.json"):
        write_report(tmp_path)


def test_a_plan_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text('{"ctflow": "0.0.9", "units": []}')
    with pytest.raises(
        UsageError, match=r"plan is of ctflow 0\.0\.9, which .* run the study again with --resume"
    ):
        write_report(tmp_path)
