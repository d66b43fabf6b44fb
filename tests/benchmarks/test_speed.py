"""The bench of speed on problems that take no time: what it reports, and what it leaves out."""

import json
import math
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from ctflow.benchmarks import against_rtk, bars, speed
from ctflow.benchmarks.bars import exponent, interleaved, one_thread
from tests.house.test_floors import ROOT


@pytest.fixture
def small(monkeypatch):
    """The same bench on a few pixels."""
    monkeypatch.setattr(speed, "_SIDE", 32)
    monkeypatch.setattr(speed, "_VIEWS", (9, 12))
    monkeypatch.setattr(speed, "_BATCHES", (1, 3))
    monkeypatch.setattr(speed, "_SIDES", (16, 24))
    monkeypatch.setattr(speed, "_SLICES", (1, 2))
    monkeypatch.setattr(speed, "_ARCS", (9, 18))
    monkeypatch.setattr(speed, "_CUBES", (8, 12))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_exponents_are_those_of_a_power_law(power):
    sizes = [3.0, 10.0, 70.0]
    assert exponent(sizes, [0.2 * size**power for size in sizes]) == pytest.approx(power, abs=1e-12)


def test_time_of_the_processor_is_taken_where_it_is_asked_for(monkeypatch):
    clocks = SimpleNamespace(perf_counter=iter([0.0, 5.0]).__next__, process_time=iter([0.0, 2.0]).__next__)
    monkeypatch.setattr(bars, "time", clocks)
    assert interleaved({"work": lambda: None}, 1, processor=True) == {"work": [2.0]}
    assert interleaved({"work": lambda: None}, 1) == {"work": [5.0]}


def test_one_thread_is_for_the_block_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_every_figure_is_measured_and_absent_peers_are_named(small, monkeypatch):
    monkeypatch.setattr(speed, "against_rtk", list)
    found = speed.measure(True, lambda fraction, what: None)
    names = [bar.name for bar in found.bars]
    assert len(set(names)) == len(names) == 2 + 2 + 2 * 2 + 4 * 3
    assert all(bar.at_most and math.isfinite(bar.value) for bar in found.bars)
    assert "no itk-rtk is installed" in str(found)


def test_rtk_is_left_out_where_it_is_not_installed(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(against_rtk, "import_module", absent)
    assert against_rtk.against_rtk(8, 4) == []


def test_rtk_is_measured_where_it_is_installed():
    if find_spec("itk") is None:
        pytest.skip("itk-rtk is not installed")
    # In a process of its own: ITK breaks where another build of it, SimpleITK, is loaded before.
    command = [sys.executable, "-c", BESIDE_RTK]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    times, accuracy = json.loads(done.stdout)
    assert [bound for _, bound in times] == [0.5] * 3
    assert all(value > 0 for value, _ in times)
    # Measured 0.88 of RTK's error, and 0.0004 HU between both FDK.
    assert [value <= bound for value, bound in accuracy] == [True, True]


BESIDE_RTK = """
import json
from ctflow.benchmarks.against_rtk import accuracy_against_rtk, against_rtk
from ctflow.benchmarks.volumes import _BEAMS, _GRID, _PARTS
from ctflow.operators import Radon

found = against_rtk(8, 4), accuracy_against_rtk(_PARTS, Radon(_GRID, _BEAMS["cone"]))
print(json.dumps([[(bar.value, bar.bound) for bar in bars] for bars in found]))
"""
