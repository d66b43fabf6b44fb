"""FBP of measured fan-beam scans against the reference of the Helsinki Tomography Challenge 2022."""

import json

import numpy as np
import pytest
import torch
from scipy.io import loadmat
from scipy.ndimage import gaussian_filter

from ctflow.cli import main
from ctflow.dicom import read_series
from ctflow.geometry import FanBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.problem import InverseProblem
from ctflow.recon import FBP

PIXEL = 0.2 * 410.66 / 553.74  # detector bins of 0.2 mm seen at the axis, mm


SCANS = ["solid_disc", "ta", "tb", "tc", "td"]


def test_fbp_agrees_with_the_challenge(data_dir):
    folder = data_dir / "sinograms" / "htc2022"
    if not folder.is_dir():
        pytest.skip("no HTC 2022 scans here")
    scans = [
        loadmat(folder / f"htc2022_{scan}_full.mat", simplify_cells=True)["CtDataFull"] for scan in SCANS
    ]
    # The last of 721 views repeats the first: they share one weight.
    angles = np.radians(scans[0]["parameters"]["angles"])
    beam = FanBeam(tuple(angles), bins=560, pitch=0.2, source_axis=410.66, source_detector=553.74)
    A = Radon(VolumeGeometry((1, 512, 512), (1.0, PIXEL, PIXEL)), beam, "astra")
    y = torch.stack([torch.tensor(scan["sinogram"], dtype=torch.float32)[None] for scan in scans])
    found = FBP()(InverseProblem(A, y, Gaussian(1.0)), None, torch.Generator(), lambda step, steps: None)
    for name, image in zip(SCANS, PIXEL * found[:, 0].numpy(), strict=True):
        reference = loadmat(folder / f"htc2022_{name}_full_recon_fbp.mat")["reconFullFbp"]
        correlation = np.corrcoef(image.ravel(), reference.ravel())[0, 1]
        slope = (image * reference).sum() / (reference**2).sum()
        print(f"{name}: correlation {correlation:.6f}, slope {slope:.5f}")
        # Measured 0.999976 and 1.00006 at worst; a wrong turn, scale or bin offset cannot pass.
        assert correlation > 0.9999
        assert abs(slope - 1) < 1e-3


PROTOCOL = """# Every twelfth view of a measured fan.
geometry = { name = "fan-beam", angles = 60 }
noise = { name = "poisson", photons = 1e5 }
method = { name = "fbp", filter = "hann" }
reference = { name = "fbp" }
"""


@pytest.mark.parametrize("scan", SCANS[::2])
def test_run_takes_the_scan_as_it_is(data_dir, scan, tmp_path, capsys):
    folder = data_dir / "sinograms" / "htc2022"
    if not folder.is_dir():
        pytest.skip("no HTC 2022 scans here")
    (tmp_path / "sparse.toml").write_text(PROTOCOL)
    out = tmp_path / "out"
    file = folder / f"htc2022_{scan}_full.mat"
    assert main(["run", str(tmp_path / "sparse.toml"), str(file), "-o", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert "no ground truth" in figures["warnings"][0]
    assert "60 views" in figures["measurement"]  # the 721st repeats the first
    written = read_series(out / "fbp-2")
    assert written.data.shape == (1, 512, 512)
    reference = loadmat(folder / f"htc2022_{scan}_full_recon_fbp.mat")["reconFullFbp"]
    # Both from the same rays, one with 60 views: streaks, no shift, no turn and no other scale.
    image = (written.data[0].numpy() / 1000 + 1) * 0.0192 * PIXEL
    smooth_image, smooth_reference = (gaussian_filter(x, 4) for x in (image, reference))
    correlation = np.corrcoef(smooth_image.ravel(), smooth_reference.ravel())[0, 1]
    print(f"{scan}: {figures['methods']['fbp-2']['rmse_hu']:.0f} HU from all views, {correlation:.5f}")
    assert correlation > 0.99
