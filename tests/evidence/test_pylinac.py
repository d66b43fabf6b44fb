"""NPS and MTF against pylinac's, on the same images."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from scipy.special import erf

from ctflow.evidence.mtf import edge_mtf
from ctflow.evidence.nps import noise_power

SPACING, SIGMA, ANGLE, SIZE = 0.5, 0.7, math.radians(3), 96
PEER = """
import json, sys
import numpy as np
from pylinac.core.mtf import EdgeSpreadFunctionMTF
from pylinac.core.nps import noise_power_spectrum_1d, noise_power_spectrum_2d
given = np.load(sys.argv[1])
nps = noise_power_spectrum_2d(float(given["spacing"]), list(given["regions"]))
mtf = EdgeSpreadFunctionMTF([given["esf"]], float(given["step"]))
widths = {f"f{share}": mtf.relative_resolution(share) for share in (50, 10)}
print(json.dumps({"nps": np.fft.ifftshift(nps).tolist(), **widths}))
"""


@pytest.fixture(scope="module")
def images():
    noise = np.random.default_rng(0).standard_normal((20, 48, 48))
    smooth = np.fft.ifft2(
        np.fft.fft2(noise) * np.exp(-np.add.outer(*2 * [np.fft.fftfreq(48) ** 2]) / 0.02)
    ).real
    y, x = (np.arange(SIZE)[:, None] - 47.3) * SPACING, (np.arange(SIZE) - 47.8) * SPACING
    distance = x * math.cos(ANGLE) + y * math.sin(ANGLE)
    return 30 * smooth, 50 * (1 + erf(distance / (SIGMA * math.sqrt(2)))), distance


@pytest.fixture(scope="module")
def peer(images, tmp_path_factory):
    """What pylinac finds; it pins an older pydicom than ours, so it may live in an environment of its own."""
    python = os.environ.get("CTFLOW_PYLINAC", sys.executable if find_spec("pylinac") else "")
    if not python:
        pytest.skip("no pylinac here; name the Python of an environment that has it in $CTFLOW_PYLINAC")
    regions, edge, distance = images
    step = SPACING / 4
    # The edge as pylinac wants it, one profile: pixels in the order of their distance, evenly spaced.
    order = np.argsort(distance, axis=None)
    esf = np.interp(np.arange(-16, 16, step), distance.ravel()[order], edge.ravel()[order])
    given = tmp_path_factory.mktemp("peer") / "given.npz"
    np.savez(given, regions=regions, spacing=SPACING, esf=esf, step=step)
    ran = subprocess.run(
        [python, "-W", "ignore", "-c", PEER, given], capture_output=True, text=True, check=True
    )
    return json.loads(ran.stdout)


def test_the_noise_power_is_pylinacs(images, peer):
    assert noise_power(images[0], SPACING).power == pytest.approx(np.array(peer["nps"]), rel=1e-9, abs=1e-12)


def test_the_edges_resolution_is_pylinacs(images, peer):
    found = edge_mtf(images[1], SPACING, (47.3 * SPACING, 47.8 * SPACING), ANGLE, 16.0)
    # pylinac's central difference and Hann window: sinc(f step) and (0.7 / 16)² of the width, below 1 %.
    assert found.f50 == pytest.approx(peer["f50"], rel=0.01)
    assert found.f10 == pytest.approx(peer["f10"], rel=0.02)
