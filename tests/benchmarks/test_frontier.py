"""The frontier compares at equal evaluations, and its picture shows every method of every task."""

import pytest

from ctflow.benchmarks.frontier import EVALUATIONS, Point, _tables, draw
from ctflow.registry import build
from ctflow.runs.protocol import Protocol


@pytest.mark.parametrize("name", ["sparse-view-20", "sparse-view-60-fan", "limited-angle"])
def test_every_method_spends_what_is_asked(name):
    tables = _tables(Protocol.load(name))
    counts = [build("method", table).evaluations[0] for table in tables]
    assert set(counts) == set(EVALUATIONS)
    pure = [table["name"] for table in tables if "refine" not in table]
    assert all(pure.count(method) == len(EVALUATIONS) for method in pure)


def test_the_picture_names_every_method(tmp_path):
    points = [
        Point("CT 20", name, spent, [100.0 / spent], [30.0], [float(spent)])
        for name in ("ms-flow", "ms-flow + refinement")
        for spent in EVALUATIONS
    ]
    draw(points, tmp_path / "frontier.svg")
    text = (tmp_path / "frontier.svg").read_text(encoding="utf-8")
    assert "ms-flow + refinement" in text
    assert "core seconds" in text
