"""The figures of lesions on methods known by heart: one that is perfect, one that blurs, one linear."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ctflow.benchmarks.inserted import INSERTIONS, place_lesions
from ctflow.benchmarks.lesions import run_task
from ctflow.benchmarks.shown import Tally
from ctflow.evidence.discs import EDGE_MM, distance, on_grid
from ctflow.geometry import VolumeGeometry
from ctflow.runs.protocol import Protocol
from ctflow.volume import Volume
from tests.evidence.test_discs import overlap

SIZE = 160
GRID = VolumeGeometry((1, SIZE, SIZE), (1.0, 1.0, 1.0))


def body_of(lung):
    """A body of 40 HU in air, with or without a lung."""
    y, x = np.arange(SIZE)[:, None] - 80.0, np.arange(SIZE) - 80.0
    body = (y / 70) ** 2 + (x / 76) ** 2 < 1
    hu = np.where(body, 40.0, -1000.0)
    if lung:
        hu[np.hypot(y, x - 44) < 22] = -850
    return Volume(torch.from_numpy(hu.astype(np.float32))[None], GRID, "HU"), body


@pytest.fixture(scope="module")
def patient():
    volume, body = body_of(lung=True)
    return place_lesions(volume, 0), body


def shown_by(method, patient):
    """Rows of a method that is a function of the true image."""
    placed, body = patient
    truth, tally = placed.volume.data[0].double().numpy(), Tally(psnr=[30.0])
    tally.add(placed, body, method(truth), {k: method(truth + placed.added(k)) for k in placed.insertions})
    bounds = {(d, k.contrast_hu): [1.0] * 4 for k in INSERTIONS for d in k.diameters_mm}
    rows = tally.shown("task", "method", bounds)
    return {(row.diameter_mm, row.contrast_hu): row for row in rows}, tally.inventions("task", "method")


def test_a_perfect_method_shows_all_and_invents_nothing(patient):
    rows, invented = shown_by(lambda truth: truth, patient)
    assert len(rows) == 13
    for row in rows.values():
        assert row.recovery == pytest.approx(1, abs=1e-9)
        assert (row.false_signal_hu, row.visibility) == (0, np.inf)
    assert (invented.above_50, invented.above_100, invented.largest_hu) == (0, 0, 0)


@pytest.mark.parametrize("blur", [1.0, 2.0])
def test_a_method_that_blurs_recovers_what_is_left_of_a_blurred_disc(patient, blur):
    rows, _ = shown_by(lambda truth: gaussian_filter(truth, blur), patient)
    for (diameter, _), row in rows.items():
        shares = [overlap(diameter / 2, sigma) for sigma in (np.hypot(blur, EDGE_MM), EDGE_MM)]
        # Pixels of 1 mm: 13 for the 12.6 mm² of a disc of 4 mm.
        assert row.recovery == pytest.approx(shares[0] / shares[1], abs=0.03)


def test_false_signal_of_white_noise_is_that_of_a_mean_of_its_pixels(patient):
    noise = 20 * np.random.default_rng(0).standard_normal((SIZE, SIZE))
    rows, _ = shown_by(lambda truth: truth + noise, patient)
    for diameter, pixels in ((4.0, 13), (6.0, 29), (8.0, 49)):
        # Some 8000 mm² of places: 600, 280 and 160 discs side by side; four standard errors, 1 / √(2 discs).
        assert rows[diameter, 60.0].false_signal_hu == pytest.approx(20 / np.sqrt(pixels), rel=0.22)
    assert rows[8.0, 60.0].recovery == pytest.approx(1)
    assert rows[8.0, 60.0].auc > rows[4.0, 30.0].auc > 0.5


def test_a_planted_blob_is_counted(patient):
    inside = on_grid(patient[1], GRID, 8.0)
    blob = distance(GRID, inside[len(inside) // 2]) <= 4
    honest = shown_by(lambda truth: truth, patient)[1]
    liar = shown_by(lambda truth: truth + 150 * blob, patient)[1]
    assert honest.above_100 == 0 < liar.above_100 == liar.above_50 < 0.01  # one of some 200 discs
    assert liar.largest_hu == pytest.approx(150)


def test_a_slice_without_lung_says_so():
    placed = place_lesions(body_of(lung=False)[0], 0)
    assert [size for size in placed.sites if size[0] == "lung"] == []
    assert len(placed.refusals) == 1
    assert "6 mm fits nowhere in lung" in placed.refusals[0]
    assert {insertion.tissue.name for insertion in placed.insertions} == {"soft tissue"}


PROTOCOL = """# A linear method at two sharpnesses.
geometry  = { name = "parallel-beam", angles = 40 }
noise     = { name = "poisson", photons = 1e5 }
method    = { name = "fbp", filter = "hann" }
reference = { name = "fbp" }
"""


def test_a_linear_method_shows_the_same_share_of_every_contrast(patient):
    """Only with the very noise of the twin: photons drawn anew would move a recovery by tens of per cent."""
    linear = Protocol.parse("linear", PROTOCOL)
    alike = Protocol.parse("alike", PROTOCOL)
    result = run_task("40 views", linear, [patient[0]], alike=[alike])
    by_size = {}
    for row in result.shown:
        by_size.setdefault((row.method, row.diameter_mm), []).append(row.recovery)
    for shares in by_size.values():
        # float32 attenuation of 0.02 per mm: 1e-4 HU of 30; the nodule of 6 mm lies elsewhere.
        assert shares[:3] == pytest.approx([shares[0]] * 3, abs=1e-3)
    soft, sharp = (by_size[name, 6.0][0] for name in (result.main, "fbp"))
    assert 0.3 < soft < sharp < 1.1
    assert by_size["alike", 6.0] == by_size[result.main, 6.0]
    bounds = result.bounds
    assert bounds[12.0, 30.0] > bounds[4.0, 30.0]
    assert len(bounds[8.0, -50.0]) == 4
