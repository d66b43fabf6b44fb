"""Flow priors against the Gaussians that they are, and prior files against what can go wrong with them."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ctflow.errors import UnreadableError, UsageError
from ctflow.priors import FlowPrior, GaussianPrior, MixturePrior
from ctflow.priors._unet import UNet
from ctflow.priors.gaussian import fit_spectrum
from ctflow.priors.network import save
from ctflow.system.counters import counting
from tests.dense import stationary_prior

SMALL = {"channels": [8, 16], "blocks": 1, "embedding": 16}
MANIFEST = {
    "kind": "network",
    "name": "small",
    "network": SMALL,
    "hu_centre": -300.0,
    "hu_width": 500.0,
    "mean": -1.0,
    "denoiser_error": [[0.02, 0.015], [1.0, 0.2], [20.0, 0.8]],
}


@pytest.fixture
def small_prior(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    save(path, UNet(**SMALL).state_dict(), MANIFEST)
    return path


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_gaussian_denoiser_is_the_conditional_expectation(t):
    prior, values, vectors = stationary_prior()
    covariance = vectors @ torch.diag(values) @ vectors.T
    x = torch.randn(1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    joint = t**2 * covariance + (1 - t) ** 2 * torch.eye(36, dtype=torch.float64)
    expected = prior.mean + t * covariance @ torch.linalg.solve(joint, x.flatten() - t * prior.mean)
    torch.testing.assert_close(prior.denoise(x, t).flatten(), expected, rtol=1e-10, atol=1e-10)


def test_gaussian_flow_carries_noise_to_the_prior():
    # The exact flow maps z to mean + sqrt(C) z; Euler's error at 1000 steps is about 5e-3.
    prior, *_ = stationary_prior()
    z = torch.randn(1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, steps = z.clone(), 1000
    for k in range(steps):
        x = x + prior.velocity(x, k / steps) / steps
    torch.testing.assert_close(x, prior.mean + prior.covariance_product(z, "sqrt"), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("t", [0.2, 0.8])
def test_gaussian_residual_variance_is_the_denoiser_error(t):
    prior = GaussianPrior(torch.exp(-5 * torch.linspace(0, 1, 32, dtype=torch.float64)), 0.1)
    generator = torch.Generator().manual_seed(2)
    u = prior.mean + prior.covariance_product(
        torch.randn(400, 1, 64, 64, generator=generator).double(), "sqrt"
    )
    x = t * u + (1 - t) * torch.randn(u.shape, generator=generator).double()
    # 400 × 4096 pixels: the standard error of the mean square is about 0.1 %.
    assert ((prior.denoise(x, t) - u) ** 2).mean().item() == pytest.approx(
        prior.residual_variance(t), rel=0.01
    )


def test_mixture_denoiser_is_the_conditional_expectation():
    # One pixel, so the expectation is a one-dimensional integral over u.
    means = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    variances = torch.tensor([0.1, 0.3, 0.05], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    prior = MixturePrior(means, variances, weights)
    u = torch.linspace(-8, 8, 200_001, dtype=torch.float64)[:, None]
    density = (weights / variances.sqrt() * torch.exp(-((u - means.flatten()) ** 2) / (2 * variances))).sum(1)
    for x, t in ((0.4, 0.3), (-1.2, 0.7)):
        likelihood = torch.exp(-((x - t * u[:, 0]) ** 2) / (2 * (1 - t) ** 2))
        expected = (u[:, 0] * density * likelihood).sum() / (density * likelihood).sum()
        found = prior.denoise(torch.full((1, 1, 1), x, dtype=torch.float64), t)
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_vjp_is_the_transposed_jacobian_and_costs_one_backward_pass():
    prior, *_ = stationary_prior()
    x = torch.randn(1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    c = torch.randn(1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    denoised, pulled = prior.denoise_vjp(x, 0.4, lambda _: c)
    jacobian = torch.autograd.functional.jacobian(lambda v: prior.denoise(v, 0.4), x).reshape(36, 36)
    torch.testing.assert_close(pulled.flatten(), jacobian.T @ c.flatten())
    torch.testing.assert_close(denoised, prior.denoise(x, 0.4))


def test_spectrum_of_known_noise_is_found():
    truth = GaussianPrior(torch.exp(-4 * torch.linspace(0, 1, 64, dtype=torch.float64)), 0.0)
    generator = torch.Generator().manual_seed(0)
    fields = truth.covariance_product(torch.randn(200, 1, 64, 64, generator=generator).double(), "sqrt")
    found, _ = fit_spectrum([field[0] for field in fields], points=16)
    # The first bin holds a handful of coefficients and the window's leakage; the others average thousands.
    expected = torch.exp(-4 * torch.linspace(0, 1, 16, dtype=torch.float64))
    torch.testing.assert_close(found[1:-1], expected[1:-1], rtol=0.1, atol=0.0)


def test_a_saved_prior_denoises_as_before(small_prior):
    prior = FlowPrior.load(small_prior, mu_water=0.02)
    again = FlowPrior.load(small_prior, mu_water=0.02)
    x = torch.randn(2, 1, 30, 42, generator=torch.Generator().manual_seed(0))  # not a multiple of the stride
    with torch.no_grad():
        first, second = prior.denoise(x, 0.5), again.denoise(x, 0.5)
    assert first.shape == x.shape
    assert torch.equal(first, second)
    assert prior.sha256 == again.sha256 != ""
    # mu = scale u + shift: u = 0.6 is 0 HU, which is water.
    assert prior.scale * 0.6 + prior.shift == pytest.approx(0.02)


def test_many_slices_are_pulled_back_in_portions(small_prior, monkeypatch):
    prior = FlowPrior.load(small_prior)
    x, force = torch.randn(2, 2, 5, 16, 16, generator=torch.Generator().manual_seed(3)).unbind(0)
    at_once = prior.denoise_vjp(x, 0.6, lambda denoised: force + denoised)
    for most in ("PIXELS_AT_ONCE", "_CACHED_PIXELS"):
        monkeypatch.setattr(f"ctflow.priors.network.{most}", 3 * 16 * 16)
    with counting() as counts:
        portions = prior.denoise_vjp(x, 0.6, lambda denoised: force + denoised)
    # One more evaluation is the price; sums of float32 in another order.
    assert (counts["network"], counts["backward"]) == (2, 1)
    for ours, whole in zip(portions, at_once, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-5)


def test_a_network_takes_images_in_float64_and_whatever_the_default_type_is(small_prior):
    prior = FlowPrior.load(small_prior)
    x = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    single, double = prior.denoise(x, 0.5), prior.denoise(x.double(), 0.5)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)
    torch.set_default_dtype(torch.float64)
    try:
        same = FlowPrior.load(small_prior).denoise(x, 0.5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(same, single)


def test_residual_variance_follows_the_table(small_prior):
    prior = FlowPrior.load(small_prior)
    assert prior.residual_variance(0.5) == pytest.approx(0.2**2)
    assert prior.residual_variance(1 / 21) == pytest.approx(0.8**2)
    assert prior.residual_variance(1 / 1.002) == pytest.approx(
        0.0015**2, rel=1e-6
    )  # falls with the noise below


def test_unknown_prior_lists_the_shipped_ones():
    with pytest.raises(UsageError, match="ct-gaussian"):
        FlowPrior.load("kidneys")


def test_truncated_file_is_refused(small_prior):
    small_prior.write_bytes(small_prior.read_bytes()[:-100])
    with pytest.raises(UnreadableError, match="not a whole safetensors file"):
        FlowPrior.load(small_prior)


def test_weights_that_do_not_match_the_manifest_are_refused(small_prior, tmp_path):
    with safe_open(small_prior, framework="pt") as file:
        said = file.metadata()
    tensors = load_file(small_prior)
    tensors["head.bias"] = tensors["head.bias"] + 1
    changed = tmp_path / "changed.safetensors"
    save_file(tensors, changed, said)
    with pytest.raises(UnreadableError, match="do not match their hash"):
        FlowPrior.load(changed)


def test_another_architecture_names_the_key_and_both_shapes(tmp_path):
    path = tmp_path / "other.safetensors"
    save(path, UNet(**SMALL).state_dict(), {**MANIFEST, "network": {**SMALL, "channels": [16, 16]}})
    with pytest.raises(UnreadableError, match=r"'\S+' is .* in the file and .* in the network"):
        FlowPrior.load(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(UnreadableError, match="no ctflow manifest"):
        FlowPrior.load(path)


def test_the_shipped_network_denoises_real_ct_better_than_the_gaussian(data_dir):
    from ctflow.training import Slices, to_network

    images = Slices(data_dir / "prior", "validation", ("256",)).by_kind["256"][5::60]
    u = torch.stack([to_network(torch.from_numpy(image).float()) for image in images])[:, None]
    sigma = 0.1  # 50 HU
    noisy = u + sigma * torch.randn(u.shape, generator=torch.Generator().manual_seed(0))
    t = 1 / (1 + sigma)
    errors = {}
    for name in ("ct-256", "ct-gaussian"):
        with torch.no_grad():
            errors[name] = float(((FlowPrior.load(name).denoise(t * noisy, t) - u) ** 2).mean().sqrt()) * 500
    # HU; 50 HU of noise goes in. The measured figures are in the README.
    assert errors["ct-256"] < 20 < errors["ct-gaussian"] < 50
