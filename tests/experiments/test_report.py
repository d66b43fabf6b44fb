"""The study's report: its numbers are the evidence's, it is whole, small, silent and works in a browser."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from ctflow import metrics
from ctflow.datasets.synthetic import toy_volume
from ctflow.errors import UsageError
from ctflow.evidence.statistics import bootstrap, wilcoxon
from ctflow.evidence.support import support_map
from ctflow.experiments import pictures
from ctflow.experiments.findings import read
from ctflow.experiments.report import write_report
from ctflow.experiments.support import support
from ctflow.problem import simulate
from ctflow.runs.protocol import Protocol
from ctflow.runs.support import PRIOR_SD_HU

PARSED = Protocol.load("sparse-view-60")
PROTOCOL = PARSED.dump()
METHODS = {"fbp": {"name": "fbp"}, "tv": {"name": "tv"}, "conjugate": {"name": "conjugate"}}


def unit(case, method, seed=0, **more):
    return {
        "unit": f"{case:02d}-{method}",
        "case": f"phantom-{case}",
        "case_hash": f"hash-{case}",
        "truth": f"hash-{case}",
        "patient": f"patient-{case}",
        "split": "test",
        "protocol": "sparse-view-60",
        "method": method,
        "parameters": {},
        "seed": seed,
        "trial": None,
        **more,
    }


def write_study(out: Path, cases: int, size: int = 64, slices: int = 3, sd: bool = True) -> None:
    """A study's folder: truth plus white errors that differ by method; the samples' spread is half."""
    noise = np.random.default_rng(0)
    planned = []
    for case in range(cases):
        truth = toy_volume(slices, size, seed=case)
        folder = out / "cases" / f"hash-{case}"
        folder.mkdir(parents=True)
        arrays = {"hu": truth.data.numpy(), "mask": truth.mask.numpy()}
        np.savez(folder / "truth.npz", **arrays, spacing_mm=np.array(truth.geometry.spacing))
        fov = metrics.fov_mask(truth)
        body = metrics.body_mask(truth.data, fov)
        for method, sigma in (("fbp", 40.0), ("tv", 25.0 + case), ("conjugate", 20.0 + 3 * case)):
            planned.append(unit(case, method))
            place = out / "units" / f"{case:02d}-{method}"
            place.mkdir(parents=True)
            hu = truth.data.numpy() + sigma * noise.standard_normal(truth.data.shape).astype(np.float32)
            spread = {"sd": np.full(hu.shape, sigma / 2, np.float32)} if sd and method == "conjugate" else {}
            np.savez(place / "image.npz", hu=hu, **spread)
            figures = metrics.evaluate(torch.from_numpy(hu), truth.data, fov, body)
            figures |= {"residual": 1.0, "seconds": 0.5, "network": 0}
            record = {
                "status": "done",
                "reason": "",
                "figures": figures,
                "samples": 8,
                "prior_sha256": "ab" * 32,
            }
            record = {
                **planned[-1],
                **record,
                "protocol_text": PROTOCOL,
                "ctflow": "0.1.0",
                "machine": "CPU, 1 threads",
                "seconds": 0.6,
            }
            (place / "unit.json").write_text(json.dumps(record))
    plan = {
        "study": "toy",
        "summary": "<b>synthetic</b>",
        "ctflow": "0.1.0",
        "protocols": {"sparse-view-60": PROTOCOL},
        "methods": METHODS,
        "tuning": {"trials": 8, "objective": "rmse_hu", "seed": 0},
        "statistics": {"reference": "fbp", "margin_hu": 30.0},
        "trials": [],
        "units": planned,
    }
    (out / "plan.json").write_text(json.dumps(plan))


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
    case = viewed(study / "report.html")["cases"][0]
    assert (case["slices"], case["of"]) == ([1, 2, 3], 3)


def test_the_page_is_one_file_and_escapes(study):
    page = (study / "report.html").read_text()
    assert "<b>synthetic</b>" not in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(""", page)
    assert "Research use only, not for diagnosis" in page


def viewed(page):
    return json.loads(re.search(r"const V = (\{.*\});", page.read_text()).group(1))


def test_pictures_stay_within_the_pages_budget(tmp_path, monkeypatch):
    """Twenty cases of white noise, which compresses worst of all, in a page a twentieth the size."""
    budget = pictures._BYTES // 20
    assert pictures._BYTES * 4 / 3 + 1e6 < 10e6  # base64, and a megabyte for the rest of the page
    monkeypatch.setattr(pictures, "_BYTES", budget)
    monkeypatch.setattr(pictures, "support", lambda findings, unit: None)
    write_study(tmp_path, 20, size=48)
    page = write_report(tmp_path)
    found = viewed(page)["cases"]
    assert len(found) == 20
    assert len(json.dumps(found)) < budget * 4 / 3 + 200_000  # profiles and names
    assert page.stat().st_size < budget * 4 / 3 + 1e6


def test_a_full_page_keeps_its_worst_cases_and_all_figures(study, monkeypatch):
    monkeypatch.setattr(pictures, "_BYTES", 9000)  # two or three cases of one slice of 16²
    page = write_report(study)
    found = viewed(page)
    assert found["shrink"] == 4
    assert 0 < len(found["cases"]) < 6
    assert found["cases"][0]["title"].startswith("phantom-5")  # the worst
    assert page.read_text().count('class="page"') == 6
    monkeypatch.undo()
    write_report(study)


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


@pytest.fixture
def page(browser, study):
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto((study / "report.html").as_uri())
    yield opened
    opened.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def source(page, name="imageA"):
    assert page.evaluate(f"document.getElementById('{name}').decode().then(() => true)")
    return page.get_attribute(f"#{name}", "src")


def test_the_slider_moves_through_the_slices(page):
    page.focus("#slice")
    before = source(page), page.inner_text("#where")
    page.keyboard.press("ArrowRight")
    assert before[1] == "2 of 3"
    page.locator("#where").filter(has_text="3 of 3").wait_for()
    assert source(page) != before[0]


def test_the_toggle_shows_every_image_and_map(page):
    names = page.locator("#chooseA button").all_inner_texts()
    assert names == ["truth", "fbp", "tv", "conjugate"]
    seen = set()
    for name in names:
        page.click(f"#chooseA button:text-is('{name}')")
        assert page.inner_text("#nameA") == name
        assert page.get_attribute(f"#chooseA button:text-is('{name}')", "aria-pressed") == "true"
        seen.add(source(page))
    assert len(seen) == 4
    maps = page.locator("#chooseB button").all_inner_texts()
    assert maps == ["Difference", "SD", "Support"]
    shown = set()
    for label in maps:
        page.click(f"#chooseB button:text-is('{label}')")
        shown.add(source(page, "imageB"))
    assert len(shown) == 3
    assert page.locator("#profile polyline").count() == 4


def test_blink_goes_to_and_fro_and_stops(page):
    page.click("#chooseA button:text-is('tv')")
    page.click("#blink")
    name = page.locator("#nameA")
    name.filter(has_text="truth").wait_for()
    name.filter(has_text="tv").wait_for()
    page.click("#blink")
    page.wait_for_timeout(1100)  # two turns
    assert page.inner_text("#nameA") == "tv"


def test_a_case_opens_by_its_link_and_by_keys(page):
    page.click("a[href='#case-2']")
    assert page.input_value("#case") == "2"
    assert page.locator("article.page:visible").count() == 1
    assert "phantom-3" in page.inner_text("article.page:visible h3")
    page.keyboard.press("n")
    assert page.input_value("#case") == "3"


def test_everything_that_is_operated_has_a_name(page):
    """Names of all controls and pictures, and heads of all tables (WCAG 2.2: 1.1.1, 1.3.1, 4.1.2)."""
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, img, svg')].filter(e =>
        !(e.textContent.trim() || e.getAttribute('aria-label') || e.getAttribute('alt') || e.labels?.length)
        ).map(e => e.id)"""
    )
    assert unnamed == []
    assert page.locator("table:not(:has(th[scope]))").count() == 0
