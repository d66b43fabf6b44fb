"""What a study asks beyond figures: calibration on validation patients, lesions, whiteness, in its files."""

import csv
import json

import pytest

from ctflow.errors import StudyError
from ctflow.experiments import run_study
from tests.experiments.small_study import written

TEXT = """# All tests.
protocols = ["tiny.toml"]
samples = 2
prior = "ct-gaussian"
cases = [{ phantoms = [0, 1], size = 128, slices = 1 }]
split = { validation = ["phantom-0"], test = ["phantom-1"] }
lesions = { diameters_mm = [8.0], contrasts_hu = [-80.0], places = 2 }
whiteness = { lags = 3 }
[methods.fbp]
[methods.conjugate]
steps = 2
"""


def test_a_study_with_all_its_tests(tmp_path):
    out = tmp_path / "out"
    found = run_study(written(tmp_path, TEXT), out)
    assert found.whole
    # Only a method with a spread has something to calibrate, and only test patients are tested.
    described = {(unit["split"], unit["method"]) for unit in found.units}
    assert described == {("validation", "conjugate"), ("test", "fbp"), ("test", "conjugate")}
    content = json.loads((out / "report.json").read_text())
    rows = content["protocols"]["tiny"]
    assert rows["fbp"]["coverage"] is None
    coverage = rows["conjugate"]["coverage"]
    assert (coverage["on"], coverage["patients"]) == ("validation patients", 1)
    assert coverage["spread"] == "starts"
    number = {method: drawn["number"] for method, drawn in content["samples"].items()}
    assert number == {"fbp": 1, "conjugate": 2}
    assert 0.7 < coverage["all"] <= 1  # two samples of one patient calibrate another: near 0.9, not at it
    assert [case["case"] for case in content["cases"]] == ["phantom-1"]
    for method in ("fbp", "conjugate"):
        (lesion,) = rows[method]["lesions"]
        assert (lesion["diameter_mm"], lesion["contrast_hu"], lesion["patients"]) == (8, -80, 1)
        assert 0 <= rows[method]["whiteness"]["rejected"]["mean"] <= 1
    # FBP is linear and a lesion of many pixels keeps its contrast, but for the streaks of twelve views.
    assert rows["fbp"]["lesions"][0]["recovery"] == pytest.approx(100, abs=40)
    with (out / "lesions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["fbp", "conjugate"]
    page = (out / "report.html").read_text()
    assert "Lesions put in and taken out" in page
    assert "2: standard deviation over starts, not of the posterior" in page
    assert "calibrated on 1 of validation patients" in " ".join(page.split())


def test_a_lesion_without_room_is_said_and_fails_nothing(tmp_path):
    text = (
        TEXT.replace("[8.0]", "[300.0]").replace("128", "48").replace("[methods.conjugate]\nsteps = 2\n", "")
    )
    out = tmp_path / "out"
    assert run_study(written(tmp_path, text), out).whole
    assert "lesions of 300 mm fit at 0 places" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("places = 2", "places = 1"), "lesions.places is 1 and must be a whole number from 2 to 1000"),
        (("[8.0]", "[0.0]"), r"lesions.diameters_mm\[0\] is 0.0 and must be a number above 0"),
        (("lags = 3", "lag = 3"), "unknown key 'lag'; did you mean 'lags'"),
    ],
)
def test_what_a_test_cannot_be_asked(tmp_path, change, said):
    with pytest.raises(StudyError, match=said):
        written(tmp_path, TEXT.replace(*change))
