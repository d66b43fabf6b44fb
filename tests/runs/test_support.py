"""A run's support: that of its middle slice, whether slices are solved for one by one or as a volume."""

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from ctflow.evidence.support import support_map
from ctflow.problem import simulate
from ctflow.runs import run as pipeline
from ctflow.runs.preparation import prepare
from ctflow.runs.protocol import Protocol
from ctflow.runs.support import PRIOR_SD_HU, middle_support
from tests.dicom.files import cylinder

FEW = """# few views
geometry = { name = "parallel-beam", angles = 12, bins = 48, pitch = 1.3 }
noise = { name = "gaussian", sigma = 0.01 }
method = { name = "fbp" }
reference = { name = "fbp" }
"""
CONE = """# a cone of few rays
[geometry]
name = "cone-beam"
angles = 3
bins = 12
rows = 8
pitch = 12.0
row_pitch = 6.0
source_axis = 500.0
source_detector = 1000.0
[noise]
name = "gaussian"
sigma = 0.01
[method]
name = "cgls"
[reference]
name = "fdk"
"""


def test_the_support_is_that_of_the_middle_slice():
    protocol, volume = Protocol.parse("few", FEW), cylinder(3)
    found = pipeline.run(protocol, volume, support=True, seed=5).support
    one = volume.slices(1, 2)
    mu = one.to_attenuation(protocol.mu_water).data
    problem = simulate(protocol.operator(one.geometry), mu, protocol.noise(), 5)
    expected = support_map(problem, PRIOR_SD_HU / 1000 * protocol.mu_water, 2, 5)[0].double().numpy()
    assert found.place == 1
    assert found.share == pytest.approx(uniform_filter(expected, 9).clip(0, 1), abs=1e-6)
    assert pipeline.run(protocol, volume).support is None


def test_the_support_of_a_volume_is_its_middle_chosen_slice():
    """More is determined where rays cross than at the rim of the panel's slices."""
    measurement = prepare(Protocol.parse("cone", CONE), cylinder(6))
    found = middle_support(measurement, measurement.problem(0), 0)
    assert measurement.unknown.beyond > 0
    assert (found.place, found.share.shape) == (3, tuple(measurement.grid.shape[1:]))
    assert torch.from_numpy(found.share).isfinite().all()
    assert 0 < np.mean(found.share) < 1
