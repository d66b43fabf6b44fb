"""The cache: what was stored comes back, and what was damaged is noticed and computed again."""

import logging
import os

import numpy as np
import pytest

from ctflow.system.cache import cached, folder


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("CTFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"values": np.linspace(0, 1, 1000, dtype=np.float32), "order": np.arange(12).reshape(3, 4)}


def test_a_second_call_reads_what_the_first_one_wrote(store):
    build = Builder()
    first, second = (cached("gram", "a beam", build) for _ in range(2))
    assert build.calls == 1
    assert first.keys() == second.keys() == {"values", "order"}
    assert all(np.array_equal(first[k], second[k]) and first[k].dtype == second[k].dtype for k in first)
    cached("gram", "another beam", build)
    assert build.calls == 2
    assert folder() == store
    assert len(list(store.iterdir())) == 2  # no leftovers of writing


def test_the_folder_is_kept_below_its_limit(store, monkeypatch):
    build = Builder()
    cached("gram", "old", build)
    cached("gram", "read again", build)
    size = next(store.iterdir()).stat().st_size
    for age, path in enumerate(sorted(store.iterdir(), key=lambda file: file.stat().st_mtime_ns)):
        os.utime(path, (1000 + age, 1000 + age))
    cached("gram", "read again", build)
    monkeypatch.setattr("ctflow.system.cache._LIMIT", 2.5 * size)
    cached("gram", "new", build)
    assert build.calls == 3
    cached("gram", "read again", build)
    assert build.calls == 3
    cached("gram", "old", build)
    assert build.calls == 4


def truncate(path):
    path.write_bytes(path.read_bytes()[:-300])


def flip_one_bit(path):
    data = bytearray(path.read_bytes())
    data[data.find(b"values.npy") + 1000] ^= 1  # inside the first array
    path.write_bytes(bytes(data))


def empty(path):
    path.write_bytes(b"")


def of_another_key(path):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **{**arrays, "key": np.array("a beam of an older version")})


@pytest.mark.parametrize("harm", [truncate, flip_one_bit, empty, of_another_key])
def test_a_damaged_file_is_rebuilt_with_a_notice(store, harm, caplog):
    build = Builder()
    good = cached("gram", "a beam", build)
    (path,) = store.iterdir()
    harm(path)
    with caplog.at_level(logging.WARNING):
        again = cached("gram", "a beam", build)
    assert build.calls == 2
    assert "computed again" in caplog.text
    assert np.array_equal(again["values"], good["values"])
    cached("gram", "a beam", build)
    assert build.calls == 2  # the rebuilt file is whole


def test_a_folder_that_cannot_be_written_costs_a_notice_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CTFLOW_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert cached("gram", "a beam", Builder())["order"].shape == (3, 4)
    assert "not cached" in caplog.text
