"""Running a study: the same figures as a bare loop, refused cases said, tuning frozen before the test."""

import json
import logging
import re
from collections import Counter
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ctflow import metrics
from ctflow.cli import main
from ctflow.datasets.synthetic import toy_volume, write_toy_series
from ctflow.errors import OutputError, StudyError, UsageError
from ctflow.experiments import run_one, run_study
from ctflow.experiments.cases import cases
from ctflow.experiments.findings import read
from ctflow.experiments.plan import Planner
from ctflow.experiments.run import preview
from ctflow.experiments.worker import Worker, attempt
from ctflow.runs import run as pipeline
from ctflow.runs.protocol import Protocol
from ctflow.solving import solve
from ctflow.system import version
from tests.experiments.small_study import SMALL, TUNED, figures, lines, written
from tests.experiments.test_study import PROTOCOL


@pytest.fixture
def study(tmp_path):
    return written(tmp_path, SMALL)


def test_figures_are_those_of_a_bare_loop(study, tmp_path):
    found = run_study(study, tmp_path / "out")
    assert found.whole
    assert found.test == Counter(done=6)
    for seed in range(3):
        protocol = Protocol.parse("tiny", PROTOCOL)
        measurement = pipeline.prepare(protocol, toy_volume(1, 32, seed))
        truth = measurement.truth
        # Step by step, without the function that runs and studies share.
        x = solve(measurement.problem(0), protocol.methods()["fbp"]).mean[:, 0]
        volume = measurement.mu.with_data(x).to_hu()
        fov = metrics.fov_mask(truth)
        bare = metrics.evaluate(volume.data, truth.data, fov, metrics.body_mask(truth.data, fov))
        unit = next(u for u in found.units if (u["case"], u["method"]) == (f"phantom-{seed}", "fbp"))
        assert figures(tmp_path / "out")[unit["unit"]] == bare["rmse_hu"]
        with np.load(tmp_path / "out" / "units" / unit["unit"] / "image.npz") as image:
            assert np.array_equal(image["hu"], volume.data.numpy())
        with np.load(tmp_path / "out" / "cases" / unit["truth"] / "truth.npz") as kept:
            assert np.array_equal(kept["hu"], truth.data.numpy())
            assert tuple(kept["spacing_mm"]) == truth.geometry.spacing


def test_done_units_are_skipped_and_a_begun_folder_needs_resume(study, tmp_path):
    out = tmp_path / "out"
    run_study(study, out)
    before = (out / "manifest.jsonl").read_bytes()
    with pytest.raises(OutputError, match="--resume"):
        run_study(study, out)
    assert run_study(study, out, resume=True).whole
    assert (out / "manifest.jsonl").read_bytes() == before
    with pytest.raises(OutputError, match="no study's"):
        run_study(study, tmp_path)


def test_a_dry_run_writes_nothing(study, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["study", "run", str(tmp_path / "small.toml"), "-o", str(out), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "6 pending" in text
    assert not out.exists()
    run_study(study, out)
    assert {unit["unit"] for unit in preview(study, out).units} == set(figures(out))
    assert all(unit in text for unit in figures(out))


def test_a_refused_case_fails_its_units_and_the_study_goes_on(tmp_path, capsys):
    write_toy_series(tmp_path / "Doe^Jane", slices=3, size=32)
    first = min((tmp_path / "Doe^Jane").iterdir())
    first.write_bytes(first.read_bytes()[:1500])  # cut short
    text = SMALL.replace(
        "{ phantoms = [0, 1, 2]", "{ folder = 'Doe^Jane' }, { folder = 'gone' }, { phantoms = [0]"
    )
    study, out = written(tmp_path, text), tmp_path / "out"
    assert main(["study", "run", str(tmp_path / "small.toml"), "-o", str(out)]) == 9
    said = capsys.readouterr()
    assert "4 failed" in said.out
    assert len(json.loads((out / "inputs.json").read_text())) == 1  # the folder that is there is hashed once
    assert "--retry-failed" in said.err
    failed = [line for line in lines(out) if line["status"] == "failed"]
    assert len(failed) == 4
    assert all(line["reason"] for line in failed)
    # No name, neither of a file nor of a patient, anywhere.
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"Doe" not in everything
    assert str(tmp_path).encode() not in everything
    assert "Doe" not in said.out + said.err
    before = (out / "manifest.jsonl").read_bytes()
    assert run_study(study, out, resume=True).test == Counter(failed=4, done=2)
    assert (out / "manifest.jsonl").read_bytes() == before  # failed ones are kept
    run_study(study, out, retry_failed=True)
    assert len(lines(out)) == 10  # four were tried again


def test_shards_are_the_whole_and_share_nothing(study, tmp_path):
    out = tmp_path / "out"
    one = run_study(study, out, shard=(1, 2))
    assert one.test == Counter(done=3, pending=3)
    assert not one.whole
    assert run_study(study, out, shard=(2, 2)).whole
    assert Counter(line["unit"] for line in lines(out)) == Counter(figures(out).keys())


def test_tuning_is_frozen_before_test_cases_are_touched(tmp_path):
    study, out = written(tmp_path, TUNED), tmp_path / "out"
    waiting = run_study(study, out, shard=(1, 2))
    assert waiting.test is None  # the other shard has tuning units left
    assert all(line["trial"] is not None for line in lines(out))
    assert not (out / "tuned.json").exists()
    run_study(study, out, shard=(2, 2))
    assert run_study(study, out, resume=True).whole
    tuned = json.loads((out / "tuned.json").read_text())["chosen"]["tiny"]["sirt"]
    scores = [trial["score"] for trial in tuned["trials"]]
    assert tuned["score"] == min(scores)
    reported = json.loads((out / "plan.json").read_text())["units"]
    assert {r["parameters"]["iterations"] for r in reported if r["method"] == "sirt"} == {
        tuned["parameters"]["iterations"]
    }
    stages = [line["trial"] is None for line in lines(out)]
    assert stages == sorted(stages)  # every trial came before every test unit
    assert {line["case"] for line in lines(out) if line["trial"] is not None} == {"phantom-0"}


SPREAD = """# A method with a spread, tuned on the case that calibrates it.
protocols = ["tiny.toml"]
samples = 2
prior = "ct-gaussian"
seeds = [0, 1]
cases = [{ phantoms = [0, 1], size = 48, slices = 1 }]
split = { validation = ["phantom-0"], test = ["phantom-1"] }
tuning = { trials = 4 }
[methods.fbp]
[methods.conjugate]
steps = 2
tune = { guidance = [0.5, 1.0], "refine.steps" = [1] }
"""


def test_one_result_serves_the_trial_and_the_unit_that_calibrates(tmp_path):
    study, out = written(tmp_path, SPREAD), tmp_path / "out"
    found = run_study(study, out)
    assert found.whole
    # Four trials draw one of two values, or the method's own; both seeds calibrate, of which one was tuned.
    planned = Counter(unit["unit"] for unit in found.units)
    done = Counter(line["unit"] for line in lines(out))
    assert planned.total() == 4 + 2 + 4
    assert done == Counter(planned.keys())
    assert len(done) < planned.total() - 1
    findings = read(out)
    assert len(findings.trials) == 4
    chosen = json.loads((out / "tuned.json").read_text())["chosen"]["tiny"]["conjugate"]
    twice = next(unit for unit in findings.calibrating if unit["seed"] == 0)
    trial = findings.trials[chosen["trial"]]
    assert (trial["unit"], trial["trial"], twice["trial"]) == (twice["unit"], chosen["trial"], None)
    assert twice["figures"]["rmse_hu"] == chosen["score"]
    # The image that was kept is the one that the figures are of.
    image, truth = findings.image(twice), findings.truth(twice)
    fov = metrics.fov_mask(truth)
    error = (image["hu"] - truth.data.double().numpy())[metrics.body_mask(truth.data, fov)]
    assert np.sqrt(np.mean(error**2)) == pytest.approx(chosen["score"], rel=1e-4)  # float32
    assert image["sd"].max() > 1


def test_a_trial_that_keeps_no_image_is_another_unit_than_one_that_does(tmp_path):
    """A patient who changes sides between two runs leaves no unit without its image."""
    study, out = written(tmp_path, TUNED), tmp_path / "out"
    run_study(study, out)
    swapped = TUNED.replace("['phantom-0']", "['x']").replace("'phantom-1'", "'phantom-0'")
    run_study(written(tmp_path, swapped.replace("'x'", "'phantom-1'")), out, resume=True)
    planned = json.loads((out / "plan.json").read_text())["units"]
    assert {unit["case"] for unit in planned} == {"phantom-0", "phantom-2"}
    assert all((out / "units" / unit["unit"] / "image.npz").is_file() for unit in planned)


def test_other_code_does_all_again_and_says_so(tmp_path, monkeypatch, caplog):
    study, out = written(tmp_path, SPREAD), tmp_path / "out"
    before = {unit["unit"] for unit in run_study(study, out).units}
    assert run_study(study, out, resume=True).whole
    said = [record.getMessage() for record in caplog.records]
    assert not [text for text in said if "other software" in text]
    assert all("calibrated on" in text for text in said)  # few patients calibrate
    caplog.clear()
    monkeypatch.setattr(version, "source_sha256", lambda *folders: "f" * 64)
    listed = preview(study, out)
    assert listed.counts["done"] == 0
    changed = run_study(study, out, resume=True)
    assert changed.whole
    assert not before & {unit["unit"] for unit in changed.units}
    said = [text for text in map(logging.LogRecord.getMessage, caplog.records) if "calibrated" not in text]
    assert len(said) == 2  # the preview's and the run's
    assert said[0] == said[1]
    assert f"are done again, for they are of other software: ctflow {version.release()}+" in said[0]
    assert said[0].endswith(f" -> {version.release()}+ffffffffffff")
    records = [json.loads((out / "units" / unit["unit"] / "unit.json").read_text()) for unit in changed.units]
    assert {record["ctflow"] for record in records} == {f"{version.release()}+ffffffffffff"}
    assert {record["libraries"]["torch"] for record in records} == {metadata.version("torch")}
    assert {record["machine"] for record in records} == {f"CPU, {torch.get_num_threads()} threads"}
    assert len(list((out / "cases").iterdir())) == 4  # as each code reads them
    monkeypatch.undo()
    assert {unit["unit"] for unit in run_study(study, out, resume=True).units} == before
    assert len(lines(out)) == len(before) + len({unit["unit"] for unit in changed.units})


def test_a_worker_with_other_software_or_another_prior_refuses(tmp_path, monkeypatch):
    study = written(tmp_path, SPREAD)
    units = [unit for unit in Planner(study, cases(study, {})).test({}) if unit.prior_sha256]
    with pytest.raises(StudyError, match=r"prior was planned with SHA-256 0{12} and its files now have"):
        Worker().compute(replace(units[0], prior_sha256="0" * 64))
    monkeypatch.setattr(version, "_libraries", lambda: {"torch": "1.0"})
    with pytest.raises(StudyError, match=rf"torch {re.escape(metadata.version('torch'))} -> 1\.0"):
        Worker().compute(units[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_each_units_reason(tmp_path):
    found = run_study(written(tmp_path, "device = 'cuda'\n" + SMALL), tmp_path / "out")
    assert found.test == Counter(failed=6)
    (reason,) = found.reasons
    assert reason.startswith("device 'cuda' is not on this machine, which has cpu")


def test_seconds_are_those_of_the_unit_alone(study, monkeypatch):
    (unit, *_), now = Planner(study, cases(study, {})).test({}), iter([100.0, 107.25])
    monkeypatch.setattr("ctflow.experiments.worker.time", SimpleNamespace(perf_counter=lambda: next(now)))
    record, _ = attempt(Worker(), unit)
    assert record["seconds"] == 7.25


def test_one_unit_by_its_hash(study, tmp_path, capsys):
    unit = preview(study, tmp_path / "out").units[0]["unit"]
    assert main(["study", "unit", unit, str(tmp_path / "small.toml"), "-o", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["unit"] == unit
    assert set(figures(tmp_path / "out")) == {unit}
    with pytest.raises(UsageError, match="--dry-run lists all 6"):
        run_one(study, tmp_path / "out", "0" * 16)
