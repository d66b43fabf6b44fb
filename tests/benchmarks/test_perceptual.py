"""The perceptual distance against its definition, written out once more with SciPy."""

import numpy as np
import torch
from scipy.ndimage import prewitt

from ctflow.benchmarks.perceptual import gmsd


def test_it_is_the_paper_s_formula():
    """On the range 0 to 255 with the constant 170; edges of the image are left out by both."""
    random = np.random.default_rng(0)
    truth = random.uniform(-500, 500, (40, 40))
    image = truth + random.uniform(-300, 300, truth.shape)
    framed = [np.pad(hu, 4, constant_values=-1000.0) + 1000 for hu in (image, truth)]
    halved = [hu.reshape(24, 2, 24, 2).mean((1, 3)) * 255 / 2000 for hu in framed]
    edges = [np.hypot(prewitt(hu, 0, mode="constant"), prewitt(hu, 1, mode="constant")) / 3 for hu in halved]
    similarity = (2 * edges[0] * edges[1] + 170) / (edges[0] ** 2 + edges[1] ** 2 + 170)
    ours = gmsd(*(torch.from_numpy(hu - 1000)[None] for hu in framed))
    # float32 convolutions; the frame of air is what SciPy's zero padding stands for.
    assert abs(ours - similarity.std()) < 1e-4


def test_equal_images_are_at_no_distance_and_blur_is_further_than_a_shift_in_level():
    truth = 1000 * torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) - 500
    blurred = torch.nn.functional.avg_pool2d(truth, 3, stride=1, padding=1)
    assert gmsd(truth, truth) == 0
    assert gmsd(blurred, truth) > gmsd(truth + 50, truth)
