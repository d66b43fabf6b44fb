"""Requests to stop: SIGTERM and SIGHUP end every command as Ctrl-C does, and leave nothing that is half."""

import contextlib
import os
import signal
import sys
import threading
import time

import pytest

from ctflow.system.interruption import interruptible, uninterrupted
from tests.dicom.files import toy_series
from tests.experiments.small_study import SMALL, written

REQUESTS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


def as_on_a_terminal():
    """What a terminal sends is not ignored, as it is where the tests run under nohup or in the background."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def terminal():
    """The tests of this file as on a terminal."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    as_on_a_terminal()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stopped(processes, command, request, folder):
    """Exit status of a command that is told to stop at a known point, and what it says."""
    begun, said = processes.Event(), folder.with_name(f"{folder.name}.txt")
    child = processes.Process(target=command, args=(begun, folder, said))
    child.start()
    assert begun.wait(120)
    os.kill(child.pid, request)
    child.join()
    return child.exitcode, said.read_text()


def words(said, *arguments):
    """Run a command line in this process; its last words go to a file."""
    from ctflow.cli import main

    as_on_a_terminal()
    with said.open("w") as sys.stderr:
        status = main([*map(str, arguments)])
    sys.exit(status)


def waits(begun):
    """Say that the point is reached, and stay there."""

    def wait(*arguments, **keywords):
        begun.set()
        time.sleep(600)

    return wait


def run(begun, folder, said):
    """Stop while a method reconstructs."""
    import ctflow.runs.run

    series = folder.with_name("series")
    ctflow.runs.run.reconstruct = waits(begun)
    words(said, "run", "sparse-view-60", series, "-o", folder / "out", "--set", "beside=[]")


def run_writing(begun, folder, said):
    """Stop between the third file of a series and the fourth."""
    import pydicom

    save, calls = pydicom.Dataset.save_as, []

    def third(self, *arguments, **keywords):
        calls.append(1)
        return (waits(begun) if len(calls) == 4 else save)(self, *arguments, **keywords)

    pydicom.Dataset.save_as = third
    series = folder.with_name("series")
    options = ["--set", "beside=[]", "--set", "method={name='fbp'}"]
    words(said, "run", "sparse-view-60", series, "-o", folder / "out", *options)


def convert(begun, folder, said):
    """Stop while the volume is written."""
    import ctflow.nifti

    pytest.importorskip("nibabel")
    image = ctflow.nifti._image

    class Slow:
        def __init__(self, volume):
            self.image = image(volume)

        def to_filename(self, path):
            path.write_bytes(self.image.to_bytes()[:1000])
            waits(begun)()

    ctflow.nifti._image = Slow
    words(said, "convert", folder.with_name("series"), folder / "out.nii")


def pull(begun, folder, said):
    """Stop when half of a series has arrived."""
    from ctflow.dicom.pacs import retrieve

    @contextlib.contextmanager
    def half(peer, keys, inbox):
        (inbox.folder / "IM0001.dcm").write_bytes(b"half")
        waits(begun)()
        yield

    retrieve.find = lambda *arguments: [{"images": 2, "study": "1.2"}]
    retrieve._get = half
    words(said, "pacs", "pull", "A@localhost:11112", "1.2.3", "-o", folder / "pulled")


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("command", [run, run_writing, convert, pull])
def test_a_request_to_stop_is_an_interruption_and_leaves_nothing(tmp_path, processes, command, request_):
    if command is pull:
        pytest.importorskip("pynetdicom")
    toy_series(tmp_path / "series")
    (tmp_path / "here").mkdir()
    status, said = stopped(processes, command, request_, tmp_path / "here")
    assert status == 130
    assert said.splitlines()[-1] == "error: interrupted; nothing incomplete was written"
    assert list((tmp_path / "here").iterdir()) == []


def study(begun, folder, said):
    """Stop two workers that are in the middle of a unit."""
    written(folder.parent, SMALL.replace("iterations = 2", "iterations = 100000"))
    os.environ["OMP_NUM_THREADS"] = "1"

    def watch():
        # The worker that has done fbp goes on to sirt, which does not end.
        while not list((folder / "out" / "units").glob("*/unit.json")):
            time.sleep(0.05)
        begun.set()

    threading.Thread(target=watch, daemon=True).start()
    words(said, "study", "run", folder.parent / "small.toml", "-o", folder / "out", "--jobs", "2")


def test_a_study_stops_its_workers_and_goes_on_later(tmp_path, processes):
    (tmp_path / "here").mkdir()
    status, said = stopped(processes, study, signal.SIGTERM, tmp_path / "here")
    assert status == 130
    assert said.splitlines()[-1] == "error: interrupted; nothing incomplete was written"
    assert "Traceback" not in said
    out = tmp_path / "here" / "out"
    assert [path for path in out.rglob(".ctflow-*")] == []
    assert all((unit / "unit.json").is_file() for unit in (out / "units").iterdir())


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_change_that_must_be_whole_ends_first(request_):
    done = []

    def change():
        with interruptible(), uninterrupted():
            signal.raise_signal(request_)
            done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        change()
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
