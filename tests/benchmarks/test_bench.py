"""The bench: what it measures is checked on things whose cost is known, and a missed bar is said aloud."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from ctflow.benchmarks import Bar, Findings, bars, operators
from ctflow.benchmarks.bars import interleaved, median_ratio
from ctflow.cli import main
from ctflow.geometry import FanBeam, ParallelBeam, VolumeGeometry
from ctflow.operators import Radon
from ctflow.registry import names
from tests.house.test_floors import ROOT


@pytest.mark.parametrize(
    ("value", "at_most", "holds"),
    [(12.0, False, True), (11.9, False, False), (12.0, True, True), (12.1, True, False)]
    + [(math.nan, at_most, False) for at_most in (False, True)],
)
def test_a_bar_holds_on_its_side_of_the_bound(value, at_most, holds):
    bar = Bar("something", value, 12, at_most)
    assert bar.holds == holds
    assert ("MISSED" in str(bar)) != holds
    assert Findings([bar]).missed == ([] if holds else [bar])


def test_calls_take_turns_and_are_compared_turn_by_turn(monkeypatch):
    order, now = [], [0.0]

    def call(name, seconds):
        order.append(name)
        now[0] += seconds

    monkeypatch.setattr(bars, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    times = interleaved({"slow": lambda: call("slow", 2.0), "fast": lambda: call("fast", 0.5)}, 5)
    assert order == ["slow", "fast"] * 5
    assert times == {"slow": [2.0] * 5, "fast": [0.5] * 5}
    assert median_ratio([3, 30, 8], [1, 10, 2]) == 3


def in_a_fresh_process(code: str) -> float:
    """The number that an interpreter prints whose heap holds nothing yet that it could use again."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return float(done.stdout)


THRICE = """
import torch
from ctflow.system.memory import peak_memory

with peak_memory({of!r}) as held:
    for _ in range(3):
        torch.ones(2**26, dtype=torch.uint8)
print(held["bytes"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("of", "rel"), [("process", 0.1), ("tensors", 1e-6)])
def test_peak_memory_counts_what_was_freed_again(of, rel):
    # Of the process: pages of other threads, and what an allocator keeps ready. Tensors are counted exactly.
    assert in_a_fresh_process(THRICE.format(of=of)) == pytest.approx(2**26, rel=rel)


def test_every_operator_and_backend_has_its_gap_measured():
    titles = [name for name, _ in operators.every()]
    assert set(names("operator")) <= set(titles)
    assert {
        "fan beam, joseph",
        "curved fan beam, matrix",
        "parallel beam, astra",
        "cone beam, joseph",
    } <= set(titles)


def test_memory_at_720_views_is_far_below_the_bound():
    code = "from ctflow.benchmarks import operators; print(operators._memory().value)"
    # Two copies of image and data with lanes, and three tables of the rays: 90 MB.
    assert 0.03 < in_a_fresh_process(code) < 0.3


@pytest.fixture
def small(monkeypatch):
    """The same bench on 48 × 48 pixels, where it takes no time and misses its bars."""
    monkeypatch.setattr(operators, "_SLICE", VolumeGeometry((1, 48, 48), (1.0, 7.0, 7.0)))
    speeds = (
        operators.Speed("parallel", ParallelBeam(9), 3, 1e9, 0.0, (2, 2)),
        operators.Speed("fan", FanBeam(9), 1, 0.0, 0.0, (2, 2)),
    )
    monkeypatch.setattr(operators, "SPEEDS", speeds)
    monkeypatch.setattr(operators, "_memory", lambda: Bar("memory", 0.1, 1.0, at_most=True))


def test_the_file_holds_the_bars_and_a_missed_one_is_reported(small, tmp_path, capsys):
    assert main(["bench", "operators", "--quick", "--json", str(tmp_path / "bench.json")]) == 0
    written, printed = json.loads((tmp_path / "bench.json").read_text()), capsys.readouterr()
    found = {bar["name"]: bar for bar in written["bars"]}
    assert all(set(bar) == {"name", "value", "bound", "holds"} for bar in written["bars"])
    assert not found["parallel: forward"]["holds"]
    assert found["fan: adjoint"]["holds"]
    assert "missed: parallel: forward is " in printed.err
    assert "MISSED" in printed.out
    assert all(bar["holds"] for name, bar in found.items() if "gap" in name or "error" in name)
    assert {row["name"] for row in written["rows"]} >= {"fan: forward, astra", "fan: forward, auto"}
    assert written["machine"]["threads"] == torch.get_num_threads()


def test_unknown_benches_and_absent_folders_are_refused(tmp_path, capsys):
    assert main(["bench", "astrology"]) == 2
    assert "there are operators" in capsys.readouterr().err
    assert main(["bench", "operators", "--json", str(tmp_path / "nowhere" / "b.json")]) == 6
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "thesis.json").write_text('{"chapters": 7}')
    assert main(["bench", "operators", "--json", str(tmp_path / "thesis.json")]) == 6
    assert (tmp_path / "thesis.json").read_text() == '{"chapters": 7}'


def test_the_bench_times_what_users_get():
    assert Radon(operators._SLICE, ParallelBeam(60)).backend == "matrix"
    assert Radon(operators._SLICE, ParallelBeam(720)).backend == "joseph"
