"""What befalls a running study: kills, full disks, cut lines, two owners; nothing is lost or done twice."""

import errno
import os
import random
import resource
import select
import signal
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from ctflow.errors import OutputError, StudyUnfinishedError
from ctflow.experiments import Study, run_study
from ctflow.experiments.cases import cases
from ctflow.experiments.executors import Engine
from ctflow.experiments.plan import Planner
from ctflow.experiments.store import Store
from tests.experiments.small_study import SMALL, TUNED, figures, lines, run_quietly, written

KILLS = int(os.environ.get("CTFLOW_KILLS", "4"))  # of one study at random moments; more by hand


@pytest.fixture
def study(tmp_path):
    return written(tmp_path, SMALL)


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
    child, receiver = started(processes, on_a_full_disk, study, out)
    assert "more space than the disk" in receiver.recv()
    child.join()
    assert not [path for path in out.rglob(".*") if path.is_dir()]  # no half of anything
    assert run_study(study, out, resume=True).whole
    assert len(lines(out)) == 6


def started(processes, target, *arguments):
    """A child, and the end of a pipe that it sends to; reading raises EOFError if it ended in silence."""
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=target, args=(*arguments, sender))
    child.start()
    sender.close()
    return child, receiver


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
    child, receiver = started(processes, hold, tmp_path / "out")
    assert receiver.recv() == "held"
    with pytest.raises(TimeoutError):
        store.lock("unit").acquire(blocking=False)
    child.kill()
    child.join()
    with store.lock("unit").acquire(blocking=False):
        pass


def hold(out: Path, sender) -> None:
    """Hold a lock until killed."""
    with Store(out).lock("unit"):
        sender.send("held")
        signal.pause()


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
    child, receiver = started(processes, run_until, study, tmp_path / "whole", 0)
    share = receiver.recv() // KILLS  # so that the last kill too finds work
    child.join()
    out, draw, done = tmp_path / "out", random.Random(7), {}
    for _ in range(KILLS):
        child, _ = started(processes, run_until, study, out, draw.randint(1, share))
        child.join()
        assert child.exitcode == -signal.SIGKILL
        now = figures(out)
        assert done.items() <= now.items()
        done = now
    assert run_study(study, out, resume=True).whole
    assert figures(out) == figures(tmp_path / "whole")
    assert not [path for path in (out / "units").iterdir() if path.name.startswith(".")]
    assert Counter(line["unit"] for line in lines(out)) == Counter(figures(out).keys())


def run_until(study: Study, out: Path, moment: int, sender) -> None:
    """Run a study until it touches the disk so often, 0 for to its end; send how often that was."""
    touched = 0

    def touch(event: str, arguments: tuple) -> None:
        nonlocal touched
        if event in ("open", "os.mkdir", "os.rename", "os.truncate") and str(out) in str(arguments[0]):
            touched += 1
            if touched == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(touch)
    run_quietly(study, out)
    sender.send(touched)


@pytest.mark.slow
def test_a_dead_worker_is_said_and_no_worker_outlives_its_parent(study, tmp_path, processes):
    out = tmp_path / "out"
    store = Store(out)
    store.create()
    with ExitStack() as stack:  # no case can be kept, so that every worker waits in its first unit
        for truth in {unit.truth for unit in Planner(study, cases(study, {})).test({})}:
            stack.enter_context(store.lock(f"cases-{truth}"))
        parent, receiver = started(processes, with_two_workers, study, out)
        os.kill(workers(parent.pid)[0], signal.SIGKILL)
        assert "a process died" in receiver.recv()
        parent.join()
        parent, receiver = started(processes, with_a_kill_while_the_pool_starts, study, out)
        assert "a process died" in receiver.recv()
        parent.join()
        parent, _ = started(processes, with_two_workers, study, out)
        orphans = [os.pidfd_open(pid) for pid in workers(parent.pid)]
        parent.kill()
        for orphan in orphans:  # readable once it has ended
            select.select([orphan], [], [])
            os.close(orphan)
    assert not figures(out)
    assert run_study(study, out, resume=True).whole


def with_two_workers(study: Study, out: Path, sender) -> None:
    """A study in two processes beside this one."""
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        run_study(study, out, resume=True, engine=Engine(jobs=2))
    except StudyUnfinishedError as error:
        sender.send(str(error))


def with_a_kill_while_the_pool_starts(study: Study, out: Path, sender) -> None:
    """The same, where the first process is killed before the pool has noted the second."""
    begun: list[SpawnProcess] = []
    given_up = threading.Event()
    start, terminate = SpawnProcess.start, SpawnProcess.terminate

    def start_and_kill(process: SpawnProcess) -> None:
        start(process)
        begun.append(process)
        if len(begun) == 2:
            begun[0].kill()
            given_up.wait()

    def terminate_and_note(process: SpawnProcess) -> None:
        terminate(process)
        given_up.set()

    SpawnProcess.start, SpawnProcess.terminate = start_and_kill, terminate_and_note  # type: ignore[method-assign]
    with_two_workers(study, out, sender)


def workers(parent: int) -> list[int]:
    """The two workers of a process, once they are there; they are spawned by name."""
    while True:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        spawned = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if len(spawned) == 2:
            return spawned


def test_of_two_studies_that_begin_at_once_one_is_refused(study, tmp_path, monkeypatch):
    read = "ctflow.experiments.run.cases"
    from ctflow.experiments.run import cases

    def meanwhile(*arguments):
        monkeypatch.setattr(read, cases)
        with pytest.raises(OutputError, match="another run"):
            run_study(study, tmp_path / "out")
        return cases(*arguments)

    monkeypatch.setattr(read, meanwhile)
    assert run_study(study, tmp_path / "out").whole
    assert not list((tmp_path / "out").glob(".ctflow-*"))
