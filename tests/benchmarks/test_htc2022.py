"""The Helsinki challenge's own steps: hardening, arcs, segmentation and score."""

import math

import numpy as np
import pytest
import torch
from scipy.io import savemat

from ctflow.benchmarks import measure
from ctflow.benchmarks.htc2022 import hardening, limited, matthews
from ctflow.errors import UsageError
from ctflow.geometry import FanBeam, VolumeGeometry
from ctflow.operators import Radon
from ctflow.rawdata.htc2022 import read_htc2022

PIXEL = 0.2 * 410.66 / 553.74  # mm, at the axis
ANGLES = np.arange(721) / 2


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A solid disc of 70 mm whose rays harden: a length of L mm is measured as 0.04 L - 0.0001 L²."""
    folder = tmp_path_factory.mktemp("htc2022")
    place = (torch.arange(512) - 255.5) * PIXEL
    disc = torch.hypot(place[:, None] - 1, place + 2) < 35
    beam = FanBeam(tuple(np.radians(ANGLES)), bins=560, pitch=0.2, source_axis=410.66, source_detector=553.74)
    grid = VolumeGeometry((1, 512, 512), (1.0, PIXEL, PIXEL))
    some = Radon(grid, beam.subset(slice(0, None, 24)))(disc[None].float())
    length = torch.zeros(1, 721, 560)
    length[:, ::24] = some
    parameters = {
        "distanceUnit": "mm",
        "distanceSourceOrigin": 410.66,
        "distanceSourceDetector": 553.74,
        "pixelSizePost": 0.2,
        "angles": ANGLES,
    }
    y = (0.04 * length - 1e-4 * length**2)[0].numpy()
    file = folder / "htc2022_solid_disc_full.mat"
    savemat(file, {"CtDataFull": {"sinogram": y, "parameters": parameters}})
    savemat(folder / "htc2022_solid_disc_full_recon_fbp_seg.mat", {"reconFullFbpSeg": disc.numpy()})
    return file, some


def test_hardening_is_undone(scan):
    file, length = scan
    curve = hardening(file)
    y = 0.04 * length - 1e-4 * length**2
    found = sum(c * y ** (k + 1) for k, c in enumerate(curve))
    # A polynomial in place of a square root: up to 0.15 mm in 70.
    assert float((found - length).abs().max()) < 0.2
    assert float((y / 0.04 - length).abs().max()) > 10


@pytest.mark.parametrize(("arc", "start", "first"), [(30, 5, 5), (90, 700, 160)])
def test_an_arc_is_that_many_degrees_of_the_scan(scan, arc, start, first):
    problem = limited(read_htc2022(scan[0]), arc, start, np.array([1.0, 0.0, 0.0]))
    views = problem.A.beam.views
    assert len(views) == 2 * arc + 1
    assert math.degrees(views[-1] - views[0]) == pytest.approx(arc)
    assert math.degrees(views[0]) == pytest.approx(first / 2)


def test_matthews_is_that_of_the_four_counts():
    found, truth = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    found[:4], truth[2:8] = True, True
    tp, fp, fn, tn = 20, 20, 40, 20
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews(found, truth) == pytest.approx(expected)
    assert matthews(truth, truth) == pytest.approx(1)
    assert matthews(np.ones((10, 10), bool), truth) == 0


def test_without_scans_it_says_what_is_needed(scan, tmp_path):
    for folder in (None, tmp_path, scan[0].parent):  # the last holds the disc alone
        with pytest.raises(UsageError, match="Helsinki"):
            measure("htc2022", quick=True, **({} if folder is None else {"data": folder}))
