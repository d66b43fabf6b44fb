"""The prior's bench: its measures are checked where their values are known."""

import json
import math

import numpy as np
import pytest
import torch

from ctflow.benchmarks import Findings, prior
from ctflow.benchmarks.copies import Library
from ctflow.cli import main
from ctflow.errors import UsageError
from ctflow.experiments.patients import patients
from ctflow.priors import GaussianPrior, Prior


def slices(number=3, size=64):
    return list(300 * torch.randn(number, size, size, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("change", [lambda x: x.T, lambda x: x.flip(0), lambda x: x.roll((5, -9), (0, 1))])
def test_a_turned_or_shifted_copy_is_found(change):
    library = Library(slices())
    copy = change(slices()[1])[None]
    # ‖a‖² + ‖b‖² − 2 a·b loses half the digits of float32: about 3e-4 of 300 √2 HU.
    assert library.nearest(copy).item() < 0.5


def test_distances_are_root_mean_squares_in_hu():
    a, b = torch.zeros(64, 64), torch.full((64, 64), 30.0)
    library = Library([a, b])
    assert library.between_neighbours().tolist() == pytest.approx([30.0])
    assert library.nearest(torch.full((2, 64, 64), 40.0)).tolist() == pytest.approx([10.0, 10.0], rel=1e-3)
    # Four pixels become one: white noise of 300 HU is half that after pooling, and nothing is near it.
    fine = torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(1)) * 300
    assert Library([a]).nearest(fine).item() == pytest.approx(150, rel=0.05)


class Shifted(Prior):
    """A denoiser whose Jacobian R moves the image by a pixel: R − Rᵀ is as large as R + Rᵀ."""

    spacing = math.nan

    def _denoise(self, x, t):
        return x.roll(1, -1)


@pytest.mark.parametrize(("denoiser", "defect"), [(GaussianPrior.example(), 0.0), (Shifted(), 1.0)])
def test_asymmetry_of_known_jacobians(denoiser, defect):
    found = prior._asymmetry(denoiser, [(torch.zeros(64, 64), 1.0)] * 4, 0.5)
    # Rounding of float32 through a Fourier transform; the scatter of two norms over 4 × 64² pixels.
    assert found.value == pytest.approx(defect, abs=1e-5 if defect == 0 else 0.05)


def test_psnr_and_the_choice_of_strength():
    truth = torch.zeros(8, 8)
    # A constant error of 20 HU is 40 dB below a range of 2000 HU.
    assert prior._psnr(truth + 20 / 500, truth) == pytest.approx(40.0)
    images = [np.full((8, 8), value, np.float32) for value in (0.3, -0.1, 0.2)]
    assert prior._best(images, truth.numpy()) is images[1]


def test_peers_denoise_and_the_true_prior_is_ahead(monkeypatch):
    """On images that a Gaussian prior draws, nothing has a lower error than that prior."""
    monkeypatch.setattr(prior, "find_spec", lambda name: None)
    gaussian = GaussianPrior(torch.logspace(1, -3, 64))
    white = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(2))
    u = gaussian.covariance_product(white, "sqrt")
    found = Findings()
    prior._judge(100, prior._denoise(gaussian, [(u[0], 1.0), (u[1], 1.0)], 100), found)
    assert [bar.name for bar in found.bars] == [
        f"100 HU: network over {peer}, dB" for peer in ("Gaussian prior", "TV", "NLM")
    ]
    assert not found.missed
    psnr = {row.name: row.value for row in found.rows}
    noisy = 20 * math.log10(2000 / 100)
    assert all(psnr[f"100 HU: {peer}"] > noisy for peer in ("network", "TV", "NLM"))
    assert math.isnan(psnr["100 HU: BM3D"])
    assert "pip install bm3d" in str(found)
    assert {row["value"] for row in found.as_json()["rows"] if row["name"] == "100 HU: BM3D"} == {None}
    json.dumps(found.as_json(), allow_nan=False)


def test_absent_patients_and_foreign_options_are_explained(tmp_path, capsys):
    with pytest.raises(UsageError, match=r"no index\.json of them; give their folder"):
        patients(tmp_path)
    assert main(["bench", "prior", "--data", str(tmp_path)]) == 2
    assert main(["bench", "operators", "--data", str(tmp_path)]) == 2
    assert "bench 'operators' takes no data" in capsys.readouterr().err
