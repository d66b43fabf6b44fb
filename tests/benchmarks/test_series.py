"""The bench of a series on slices that take no time: every figure is measured."""

import json
import math
from importlib.util import find_spec

import numpy as np
import pytest

from ctflow.benchmarks import series


@pytest.fixture
def slices(training_data):
    """Small slices in place of those of 512²."""
    hu = np.random.default_rng(1).integers(-1000, 1000, size=(2, 32, 32)).astype(np.int16)
    np.savez(training_data / "large.npz", hu=hu)
    index = json.loads((training_data / "index.json").read_text())
    kind = {"file": "large.npz", "kind": "512", "pixel_spacing_mm": 0.8}
    (training_data / "index.json").write_text(json.dumps([*index, {**index[1], **kind}]))
    return training_data


def test_every_figure_is_measured(slices):
    seen = []
    found = series.measure(True, lambda fraction, what: seen.append(fraction), slices)
    assert len(found.bars) == 4 + 1 + bool(find_spec("SimpleITK"))
    assert all(math.isfinite(bar.value) for bar in found.bars)
    costs = [row for row in found.rows if isinstance(row, series.Cost)]
    assert [cost.name.partition(": ")[0] for cost in costs] == [series.FAST] + 4 * [series.WHOLE]
    assert all(cost.core_seconds > 0 for cost in costs)
    assert seen == sorted(seen)
