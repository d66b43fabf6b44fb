"""Outputs are whole or not there, and what must never be replaced; who owns them is in test_workspace."""

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from ctflow.datasets.raw_phantom import measure_phantom, raw_phantom, scanner
from ctflow.dicom import write_series
from ctflow.dicom.projections.writing import write_projections
from ctflow.errors import OutputError
from ctflow.experiments.store import Store
from ctflow.geometry import ConeBeam
from ctflow.nifti import write_nifti
from ctflow.priors.network import save
from ctflow.rawdata import write_rtk
from ctflow.scan import Scan
from ctflow.system import files
from ctflow.system.files import check_target, whole_file, whole_folder
from tests.dicom.files import cylinder


def fill(folder, text):
    """Two files and a folder of the same text."""
    (folder / "a").write_text(text)
    (folder / "inner").mkdir()
    (folder / "inner" / "b").write_text(text)


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def whole(text):
    return {"a": text, "inner/b": text}


def fails(target, error, kind=whole_folder):
    with kind(target) as new:
        if kind is whole_folder:
            fill(new, "half")
        else:
            new.write_text("half")
        raise error


@pytest.mark.parametrize("kind", [whole_file, whole_folder])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError(), ValueError),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (OSError(errno.EROFS, "Read-only file system"), OutputError),
    ],
)
def test_a_failure_leaves_nothing_not_even_the_folders_above(tmp_path, kind, error, expected):
    with pytest.raises(expected):
        fails(tmp_path / "deep" / "er" / "out", error, kind)
    assert list(tmp_path.iterdir()) == []


def test_what_is_whole_appears_alone(tmp_path):
    with whole_folder(tmp_path / "deep" / "out") as new:
        fill(new, "x")
        assert list((tmp_path / "deep").glob("out")) == []
    with whole_file(tmp_path / "deep" / "image.nii.gz") as new:
        assert new.name.endswith(".nii.gz")  # writers go by the ending
        new.write_text("x")
    assert content(tmp_path / "deep" / "out") == whole("x")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["image.nii.gz", "out"]


def test_a_long_name_is_written_and_a_longer_one_refused(tmp_path):
    with whole_folder(tmp_path / ("n" * 255)) as new:
        fill(new, "x")
    with pytest.raises(OutputError, match="name too long"):
        check_target(tmp_path / ("n" * 256))
    assert content(tmp_path / ("n" * 255)) == whole("x")


def file_for_parent(tmp_path):
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out"


def link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    return tmp_path / "out"


def dangling_link(tmp_path):
    (tmp_path / "out").symlink_to("nowhere")
    return tmp_path / "out"


def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def above_home(tmp_path):
    return home(tmp_path).parent


def working_folder(tmp_path):
    (tmp_path / "working").mkdir()
    return tmp_path / "working"


def mount_point(tmp_path):
    return Path("/proc")


def below_what_takes_no_folder(tmp_path):
    return Path("/proc/out")


PLACES = [file_for_parent, link, dangling_link, home, above_home, working_folder, mount_point]
PLACES += [below_what_takes_no_folder]


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_must_not_be_replaced_is_refused_whoever_asks(tmp_path, monkeypatch, place):
    target = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if place is working_folder:
        monkeypatch.chdir(target)
        target = Path()
    with pytest.raises(OutputError) as caught, whole_folder(target, lambda path: True) as new:
        fill(new, "x")
    assert caught.value.exit_code == 6
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folder_above_may_be_named_by_dots_and_links(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    monkeypatch.chdir(tmp_path / "a")
    with whole_file(Path("../b/x")) as new:
        new.write_text("x")
    assert (tmp_path / "a" / "x").read_text() == "x"


def rival(target, kind):
    """Somebody else makes what this run is computing."""
    with kind(target) as new:
        if new.is_dir():
            fill(new, "ours")
            target.mkdir()
            fill(target, "theirs")
        else:
            new.write_text("ours")
            target.write_text("theirs")


@pytest.mark.parametrize("ours", [None, lambda path: False])
def test_what_appears_meanwhile_is_kept(tmp_path, ours):
    for kind in (whole_folder, whole_file):
        with pytest.raises(OutputError):
            rival(tmp_path / kind.__name__, lambda target, kind=kind: kind(target, ours))
    assert content(tmp_path / "whole_folder") == whole("theirs")
    assert (tmp_path / "whole_file").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_appears_in_the_last_moment_is_kept(tmp_path, monkeypatch):
    """Between the last look and the renaming, the system itself refuses."""
    monkeypatch.setattr(files, "check_target", lambda *arguments: None)
    monkeypatch.setattr(files, "exists", lambda path: False)
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "theirs")
    (tmp_path / "file").write_text("theirs")
    with pytest.raises(OutputError, match="not empty"), whole_folder(tmp_path / "out") as new:
        fill(new, "ours")
    with pytest.raises(OutputError, match="exists"), whole_file(tmp_path / "file") as new:
        new.write_text("ours")
    assert content(tmp_path) == {"file": "theirs", **{f"out/{k}": v for k, v in whole("theirs").items()}}


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_replacement_keeps_the_old_until_the_new_is_whole(tmp_path, monkeypatch, exchanges):
    if not exchanges:  # as on network file systems
        monkeypatch.setattr(files, "_exchanged", lambda new, target: False)
    out = tmp_path / "out"
    for text in ("old", "new"):
        with whole_folder(out, lambda path: content(path) == whole("old")) as new:
            fill(new, text)
            assert content(out) == whole("old") if text == "new" else not out.exists()
    assert content(out) == whole("new")
    with pytest.raises(OutputError, match="other files"), whole_folder(out, lambda path: False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_and_names_are_on_the_disk_before_and_after_the_renaming(tmp_path, monkeypatch):
    synchronised, fsync = [], os.fsync

    def noted(descriptor):
        synchronised.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "out").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with whole_folder(tmp_path / "out") as new:
        fill(new, "x")
    before = [Path(path).relative_to(new).as_posix() for path, there in synchronised if not there]
    assert sorted(before) == [".", "a", "inner", "inner/b"]
    assert [path for path, there in synchronised if there] == [str(tmp_path)]


WRITERS = {
    "series": lambda folder: write_series(cylinder(2, 64), folder / "out", like=None, description="x"),
    "nifti": lambda folder: write_nifti(cylinder(2, 64), folder / "out.nii"),
    "prior": lambda folder: save(folder / "p.safetensors", {"a": torch.zeros(9999)}, {"kind": "gaussian"}),
    "projections": lambda folder: write_projections(
        measure_phantom(raw_phantom(), scanner(views=2, turns=1, bins=46, rows=64)), folder / "scan"
    ),
    "rtk": lambda folder: write_rtk(
        Scan(torch.zeros(4, 20, 50), ConeBeam(20, 50, 1.0, rows=4, row_pitch=1.0), "x"), folder / "scan"
    ),
    "study": lambda folder: Store(folder).keep("unit", {"a.npz": {"a": np.zeros(9999)}}, {}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, processes, name):
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=on_a_full_disk, args=(name, tmp_path, sender))
    child.start()
    sender.close()
    assert "more space than the disk" in receiver.recv()
    child.join()
    assert list(tmp_path.iterdir()) == []


def on_a_full_disk(name, folder, sender):
    """The operating system refuses to make a file longer than 3000 bytes, as it refuses on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    try:
        WRITERS[name](folder)
    except OutputError as error:
        sender.send(str(error))


def test_a_file_is_named_where_hard_links_are_unknown(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    with whole_file(tmp_path / "out") as new:
        new.write_text("x")
    assert content(tmp_path) == {"out": "x"}


def test_a_replacement_is_advised_only_where_it_would_be_granted(tmp_path):
    fill(tmp_path, "x")
    with pytest.raises(OutputError, match=r"give another, or --overwrite$"):
        check_target(tmp_path / "a", Path.is_file, "--overwrite")
    for target in (tmp_path / "inner", mount_point(tmp_path)):
        with pytest.raises(OutputError, match=r"it exists; give another$"):
            check_target(target, Path.is_file, "--overwrite")
