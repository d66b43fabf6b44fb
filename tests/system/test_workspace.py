"""Who owns an output: two runs, kills at every step, leftovers of the dead, links that others have laid."""

import errno
import multiprocessing
import os
import sys

import pytest

from ctflow.errors import OutputError
from ctflow.system import files
from ctflow.system.files import remove_leftovers, reserved, scratch, whole_file, whole_folder
from tests.system.test_files import content, fill, whole


def test_a_target_is_one_run_s(tmp_path, processes):
    with reserved(tmp_path / "out") as place:
        with pytest.raises(OutputError, match="another run"), whole_folder(tmp_path / "out"):
            pass
        with whole_folder(tmp_path / "other") as new:  # sweeps, and finds this one's owner alive
            fill(new, "y")
        with place.folder() as new:
            fill(new, "x")
    assert content(tmp_path / "out") == whole("x")
    child, free = held(processes, tmp_path / "new")
    with pytest.raises(OutputError, match="another run"), whole_folder(tmp_path / "new"):
        pass
    free.set()
    child.join()
    assert child.exitcode == 0
    assert content(tmp_path / "new") == whole("theirs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "other", "out"]


def held(processes, target):
    """A process that keeps a target until it is told to write it."""
    begun, free = processes.Event(), processes.Event()
    child = processes.Process(target=hold, args=(target, begun, free))
    child.start()
    assert begun.wait(60)
    return child, free


def hold(target, begun, free):
    """Write half, wait, write the rest."""
    with whole_folder(target) as new:
        (new / "a").write_text("theirs")
        begun.set()
        free.wait()
        (new / "inner").mkdir()
        (new / "inner" / "b").write_text("theirs")


def test_the_next_run_sweeps_what_the_dead_left_and_nothing_of_the_living(tmp_path, processes):
    dead, _ = held(processes, tmp_path / "dead")
    living, free = held(processes, tmp_path / "living")
    dead.kill()
    dead.join()
    (tmp_path / ".ctflow-mine").mkdir()  # not by this pattern
    assert len(list(tmp_path.glob(".ctflow-*"))) == 3
    with whole_folder(tmp_path / "out") as new:
        fill(new, "x")
    assert len(list(tmp_path.glob(".ctflow-*"))) == 2
    free.set()
    living.join()
    assert content(tmp_path / "living") == whole("theirs")
    again, free = held(processes, tmp_path / "dead")  # taken over by name, without a sweep
    free.set()
    again.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ctflow-mine", "dead", "living", "out"]


def test_scratch_goes_with_its_owner_or_after_it(tmp_path, processes):
    begun = processes.Event()
    child = processes.Process(target=hold_scratch, args=(tmp_path, begun))
    child.start()
    assert begun.wait(60)
    assert len(list(tmp_path.iterdir())) == 1
    with scratch(tmp_path):
        assert len(list(tmp_path.iterdir())) == 2
    child.kill()
    child.join()
    assert len(list(tmp_path.iterdir())) == 1
    with scratch(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder.parent]
        assert folder.parent.stat().st_mode & 0o077 == 0  # an unpacked archive names patients
    assert list(tmp_path.iterdir()) == []


def hold_scratch(parent, begun):
    """Unpack something, and wait to be killed."""
    with scratch(parent) as folder:
        (folder / "a").write_text("theirs")
        begun.set()
        multiprocessing.Event().wait()


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_at_any_step_leaves_the_old_or_the_new(tmp_path, processes, exchanges):
    target, step, seen = tmp_path / "out", 0, set()
    while True:
        if target.exists():
            for folder in (target / "inner", target):
                for file in [path for path in folder.iterdir() if path.is_file()]:
                    file.unlink()
            (target / "inner").rmdir()
        target.mkdir(exist_ok=True)
        fill(target, "old")
        child = processes.Process(target=replace_until, args=(target, step, exchanges))
        child.start()
        child.join()
        if exchanges:
            assert content(target) in (whole("old"), whole("new"))
        remove_leftovers(tmp_path)
        found = content(target)
        assert found in (whole("old"), whole("new"))
        seen.add(found["a"])
        if child.exitcode == 0:
            break
        assert child.exitcode == 9
        assert [path.name for path in tmp_path.iterdir() if path != target] == []
        step += 1
    assert seen == {"old", "new"}
    assert step > 20  # system calls
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def replace_until(target, step, exchanges):
    """Replace a folder, and die at the n-th call of the operating system."""
    left = step

    def die(event, arguments):
        nonlocal left
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "fcntl.flock"):
            if left == 0:
                os._exit(9)
            left -= 1

    if not exchanges:
        files._exchanged = lambda new, target: False
    sys.addaudithook(die)
    with whole_folder(target, lambda path: True) as new:
        fill(new, "new")
    os._exit(0)


def test_a_link_in_a_shared_place_leads_nowhere(tmp_path):
    (tmp_path / "documents").mkdir()
    fill(tmp_path / "documents", "theirs")
    (tmp_path / "documents" / "lock").write_text("out")
    with reserved(tmp_path / "out"):
        hidden = next(tmp_path.glob(".ctflow-*"))
    hidden.symlink_to("documents")
    with pytest.raises(OutputError, match="Not a directory"), whole_folder(tmp_path / "out") as new:
        fill(new, "x")
    with whole_file(tmp_path / "other") as new:  # sweeps
        new.write_text("x")
    assert content(tmp_path / "documents") == {**whole("theirs"), "lock": "out"}


def test_where_nothing_can_be_locked_only_a_folder_of_one_s_own_is_used(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with reserved(tmp_path / "out") as place:
        with pytest.raises(OutputError, match="another run"), whole_folder(tmp_path / "out"):
            pass
        with whole_folder(tmp_path / "other") as new:  # sweeps nothing that may be alive
            fill(new, "y")
        with place.folder() as new:
            fill(new, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]
