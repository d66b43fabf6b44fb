"""Running a study: the same figures as a bare loop, refused cases said, tuning frozen before the test."""

import json
from collections import Counter

import numpy as np
import pytest

from ctflow import metrics, pipeline
from ctflow.cli import main
from ctflow.datasets.synthetic import toy_volume, write_toy_series
from ctflow.errors import OutputError, UsageError
from ctflow.protocol import Protocol
from ctflow.studies import run_one, run_study
from ctflow.studies.run import preview
from tests.small_study import SMALL, TUNED, figures, lines, written
from tests.test_study import PROTOCOL


@pytest.fixture
def study(tmp_path):
    return written(tmp_path, SMALL)


def test_figures_are_those_of_a_bare_loop(study, tmp_path):
    found = run_study(study, tmp_path / "out")
    assert found.whole
    assert found.test == Counter(done=6)
    for seed in range(3):
        job = pipeline.prepare(Protocol.parse("tiny", PROTOCOL), toy_volume(1, 32, seed))
        problem = pipeline.measure(job, 0)
        volume, _ = pipeline.reconstruct(
            job, job.methods["fbp"], problem, samples=1, seed=0, progress=lambda fraction: None
        )
        fov = metrics.fov_mask(job.truth)
        bare = metrics.evaluate(volume.data, job.truth.data, fov, metrics.body_mask(job.truth.data, fov))
        unit = next(u for u in found.units if (u["case"], u["method"]) == (f"phantom-{seed}", "fbp"))
        assert figures(tmp_path / "out")[unit["unit"]] == bare["rmse_hu"]
        with np.load(tmp_path / "out" / "units" / unit["unit"] / "image.npz") as image:
            assert np.array_equal(image["hu"], volume.data.numpy())
        with np.load(tmp_path / "out" / "cases" / unit["case_hash"] / "truth.npz") as truth:
            assert np.array_equal(truth["hu"], job.truth.data.numpy())
            assert tuple(truth["spacing_mm"]) == job.truth.geometry.spacing


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
    assert not list((out / "units").iterdir())
    assert not (out / "tuned.json").exists()
    run_study(study, out, shard=(2, 2))
    assert run_study(study, out, resume=True).whole
    tuned = json.loads((out / "tuned.json").read_text())["chosen"]["tiny"]["sirt"]
    scores = [trial["score"] for trial in tuned["trials"]]
    assert tuned["score"] == min(scores)
    records = [json.loads(path.read_text()) for path in (out / "units").glob("*/unit.json")]
    assert {r["parameters"]["iterations"] for r in records if r["method"] == "sirt"} == {
        tuned["parameters"]["iterations"]
    }
    stages = [line["trial"] is None for line in lines(out)]
    assert stages == sorted(stages)  # every trial came before every test unit
    assert {line["case"] for line in lines(out) if line["trial"] is not None} == {"phantom-0"}


def test_one_unit_by_its_hash(study, tmp_path, capsys):
    unit = preview(study, tmp_path / "out").units[0]["unit"]
    assert main(["study", "unit", unit, str(tmp_path / "small.toml"), "-o", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["unit"] == unit
    assert set(figures(tmp_path / "out")) == {unit}
    with pytest.raises(UsageError, match="--dry-run lists all 6"):
        run_one(study, tmp_path / "out", "0" * 16)
