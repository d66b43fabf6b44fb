"""What a study's report says of lesions, and of itself, from the records of its units."""

import csv
import json

from ctflow.experiments.report import write_report
from tests.experiments.test_report import content
from tests.experiments.written_study import write_study


def test_lesions_are_means_over_patients_with_their_signs(tmp_path):
    write_study(tmp_path, 2, sd=False)
    values = dict.fromkeys(("recovery", "recovery_sd", "false_rate", "detectability", "auc"), 0.5)
    for case, false in ((0, -30.0), (1, -10.0)):
        place = tmp_path / "units" / f"{case:02d}-tv" / "unit.json"
        record = json.loads(place.read_text())
        row = {"diameter_mm": 8.0, "contrast_hu": -50.0, "false_signal_hu": false, **values}
        record["figures"]["lesions"] = {"rows": {"8 mm -50 HU": row}}
        place.write_text(json.dumps(record))
    page = write_report(tmp_path).read_text()
    (lesion,) = content(tmp_path)["protocols"]["sparse-view-60"]["tv"]["lesions"]
    assert lesion == {"diameter_mm": 8, "contrast_hu": -50, "false_signal_hu": -20, **values, "patients": 2}
    assert "<td>-50</td>" in page
    assert "<td>-20.0</td>" in page
    with (tmp_path / "lesions.csv").open(newline="") as file:
        assert [float(line["false_signal_hu"]) for line in csv.DictReader(file)] == [-30, -10]


def answers(study):
    return {entry["item"]: entry["state"] for entry in content(study)["checklist"]}


def test_the_checklist_says_what_the_files_know(tmp_path):
    write_study(tmp_path, 2, sd=False)
    write_report(tmp_path)
    met = "Every unit is reported", "One version of the software", "Patients are on one side of the split"
    assert {answers(tmp_path)[item] for item in met} == {"met"}
    assert answers(tmp_path)["Enough patients for the statistics"] == "not met"
    for name, changes in {"00-tv": {"ctflow": "0.0.9"}, "01-tv": {"status": "failed"}}.items():
        place = tmp_path / "units" / name / "unit.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))
    write_report(tmp_path)
    assert answers(tmp_path)["Every unit is reported"] == "not met"
    assert answers(tmp_path)["One version of the software"] == "not met"
