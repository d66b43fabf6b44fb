"""Running a study: the same figures as a bare loop, each unit once, nothing lost to kills or a full disk."""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ctflow import metrics, pipeline
from ctflow.cli import main
from ctflow.datasets.synthetic import toy_volume, write_toy_series
from ctflow.errors import OutputError, StudyUnfinishedError, UsageError
from ctflow.protocol import Protocol
from ctflow.studies import Study, run_one, run_study
from ctflow.studies.executors import Engine
from ctflow.studies.run import preview
from ctflow.studies.store import Store

from .test_study import PROTOCOL

SMALL = """# Small.
protocols = ["tiny.toml"]
cases = [{ phantoms = [0, 1, 2], size = 32, slices = 1 }]
[methods.fbp]
[methods.sirt]
iterations = 2
"""
KILLS = int(os.environ.get("CTFLOW_KILLS", "4"))  # of one study at random moments; more by hand


@pytest.fixture
def study(tmp_path):
    return written(tmp_path, SMALL)


def written(folder: Path, text: str) -> Study:
    """A study file beside its protocol."""
    (folder / "tiny.toml").write_text(PROTOCOL)
    (folder / "small.toml").write_text(text)
    return Study.load(folder / "small.toml")


@pytest.fixture(scope="module")
def processes():
    """Processes that can be killed, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ctflow.studies.run", "ctflow.recon.fbp", "ctflow.recon.sirt"])
    return context


def run_quietly(study: Study, out: Path, **options) -> None:
    """What a child process does."""
    os.environ["OMP_NUM_THREADS"] = "1"
    run_study(study, out, resume=True, **options)


def lines(out: Path) -> list[dict]:
    """The manifest, every line of it."""
    text = (out / "manifest.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def figures(out: Path) -> dict[str, float]:
    """RMSE by unit, to the last bit."""
    records = (json.loads(path.read_text()) for path in (out / "units").glob("*/unit.json"))
    return {record["unit"]: record["figures"] and record["figures"]["rmse_hu"] for record in records}


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


TUNED = (
    SMALL.replace(
        "[methods.fbp]",
        "tuning = { trials = 3 }\nsplit = { validation = ['phantom-0'], test = ['phantom-1', 'phantom-2'] }\n"
        "[methods.fbp]",
    )
    + "tune = { iterations = [1, 2, 30] }\n"
)


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


def test_a_manifest_cut_in_a_line_is_whole_again(study, tmp_path):
    out = tmp_path / "out"
    run_study(study, out)
    whole = (out / "manifest.jsonl").read_bytes()
    (out / "manifest.jsonl").write_bytes(whole[:-30])  # as a crash leaves it
    assert len(Store(out).manifest.entries()) == 5
    assert run_study(study, out, resume=True).whole
    assert (out / "manifest.jsonl").read_bytes() == whole


def test_a_full_disk_is_said_and_recovered_from(study, tmp_path, processes):
    out = tmp_path / "out"
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=on_a_full_disk, args=(study, out, sender))
    child.start()
    assert "more space than the disk" in receiver.recv()
    child.join()
    assert not [path for path in out.rglob(".*") if path.is_dir()]  # no half of anything
    assert run_study(study, out, resume=True).whole
    assert len(lines(out)) == 6


def on_a_full_disk(study: Study, out: Path, sender) -> None:
    """The operating system refuses to make a file longer than 3000 bytes, as it refuses on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    try:
        run_study(study, out)
    except OutputError as error:
        sender.send(str(error))


def test_a_disk_that_fills_up_within_a_line_leaves_whole_lines(study, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_study(study, out, shard=(1, 2))
    store, before = Store(out), (out / "manifest.jsonl").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.manifest.append({"unit": "x", "status": "done"})
    assert (out / "manifest.jsonl").read_bytes() == before


def test_a_lock_dies_with_its_owner(tmp_path, processes):
    store = Store(tmp_path / "out")
    store.create()
    ready = processes.Event()
    child = processes.Process(target=hold, args=(tmp_path / "out", ready))
    child.start()
    assert ready.wait(60)
    with pytest.raises(TimeoutError):
        store.lock("unit").acquire(blocking=False)
    child.kill()
    child.join()
    with store.lock("unit").acquire(timeout=5):
        pass


def hold(out: Path, ready) -> None:
    """Hold a lock until killed."""
    with Store(out).lock("unit"):
        ready.set()
        time.sleep(600)


def test_two_processes_do_every_unit_once(tmp_path, processes):
    study = written(tmp_path, SMALL.replace("[0, 1, 2]", "[0, 1, 2, 3, 4, 5, 6, 7]"))
    out = tmp_path / "out"
    children = [processes.Process(target=run_quietly, args=(study, out)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert Counter(line["unit"] for line in lines(out)) == Counter(figures(out).keys())
    assert len(figures(out)) == 16


def test_a_kill_at_any_moment_loses_nothing(tmp_path, processes):
    more = ", ".join(f"'phantom-{k}'" for k in range(2, 6))
    text = TUNED.replace("'phantom-2']", f"{more}]").replace("[0, 1, 2]", "[0, 1, 2, 3, 4, 5]")
    study = written(tmp_path, text)
    started = time.perf_counter()
    run_quietly(study, tmp_path / "whole")
    seconds = time.perf_counter() - started
    out, draw, done = tmp_path / "out", random.Random(7), {}
    for kill in range(KILLS):
        child = processes.Process(target=run_quietly, args=(study, out))
        child.start()
        # A share of what is left, so that the last kill too finds work; 1.5: it also starts up.
        child.join(1.5 * seconds * draw.random() / max(1, KILLS - kill) ** 0.5)
        child.kill()
        child.join()
        now = figures(out)
        assert done.items() <= now.items()
        done = now
    assert run_study(study, out, resume=True).whole
    assert figures(out) == figures(tmp_path / "whole")
    assert not [path for path in (out / "units").iterdir() if path.name.startswith(".")]
    counts = Counter(line["unit"] for line in lines(out) if line["trial"] is None)
    assert counts == Counter(figures(out).keys())


@pytest.mark.slow
def test_a_dead_worker_is_said_and_no_worker_outlives_its_parent(tmp_path, processes):
    study = written(tmp_path, SMALL.replace("iterations = 2", "iterations = 3000"))
    out = tmp_path / "out"
    receiver, sender = processes.Pipe(duplex=False)
    parent = processes.Process(target=with_two_workers, args=(study, out, sender))
    parent.start()
    os.kill(workers(parent.pid)[0], signal.SIGKILL)
    assert "a process died" in receiver.recv()
    parent.join()
    parent = processes.Process(target=with_two_workers, args=(study, out, sender))
    parent.start()
    orphans = workers(parent.pid)
    parent.kill()
    parent.join()
    limit = time.monotonic() + 60
    while any(alive(pid) for pid in orphans) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in orphans)


def with_two_workers(study: Study, out: Path, sender) -> None:
    """A study in two processes beside this one."""
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        run_study(study, out, resume=True, engine=Engine(jobs=2))
    except StudyUnfinishedError as error:
        sender.send(str(error))


def workers(parent: int) -> list[int]:
    """The two workers of a process, once they are there; they are spawned by name."""
    while True:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        spawned = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if len(spawned) == 2:
            return spawned
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs, and is not waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
