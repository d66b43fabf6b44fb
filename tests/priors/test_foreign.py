"""Every convention on one Gaussian: what a foreign network would predict, adapted, is the closed form."""

import math

import pytest
import torch
from torch import nn

from ctflow.errors import UsageError
from ctflow.noise import Gaussian
from ctflow.operators import Blur
from ctflow.priors import (
    CONVENTIONS,
    Convention,
    ForeignPrior,
    GaussianPrior,
    LatentPrior,
    denoiser,
    diffusion,
    flow,
    linear_schedule,
)
from ctflow.priors._base import HU_CENTRE, HU_WIDTH
from ctflow.problem import InverseProblem, simulate
from ctflow.samplers import DDRM, DPS, ConjugateIntegrator, PiGDM
from ctflow.samplers._sampler import normal_norm
from ctflow.solving import solve
from tests.dense import Dense
from tests.priors.foreign import TRUTH, Oracle, additive, draw, spherical, straight

TIMES = [0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 0.985]
# The foreign network's images: [-1, 1] for -1000 to 1000 HU, or [0, 1] as deepinv's.
RANGES = {"symmetric": (0.0, 1000.0), "unit": (-1000.0, 2000.0), "ours": (HU_CENTRE, HU_WIDTH)}


LEVELS = [math.sqrt((1 - a) / a) for a in linear_schedule()]


def level_of_index(k):
    """Geometric between integer times; beyond them the network was never trained and the test is at fault."""
    assert -1e-3 <= k <= 999.001
    below = min(max(int(k), 0), 998)
    return LEVELS[below] * (LEVELS[below + 1] / LEVELS[below]) ** (k - below)


# Per convention: noise level from the network's clock, path, prediction, and what else its networks do.
FOREIGN = {
    "torchcfm": (lambda c: (1 - c) / c, straight, "w - z", {"time_first": True}),
    "rectified-flow": (lambda c: (999 - c) / c, straight, "w - z", {}),
    "monai": (lambda c: c / (1000 - c), straight, "w - z", {}),
    "flow-match-euler": (lambda c: c / (1000 - c), straight, "z - w", {}),
    "edm": (lambda c: c, additive, "w", {}),
    "deepinv": (lambda c: c, additive, "w", {}),
    "guided-diffusion": (level_of_index, spherical, "z", {"variance": True}),
    "v": (level_of_index, spherical, "a z - b w", {}),
    "sample": (level_of_index, spherical, "w", {}),
    "epsilon": (level_of_index, spherical, "z", {}),
}


def adapted(name, hu="ours"):
    level_of_clock, path, target, more = FOREIGN[name]
    centre, width = RANGES[hu]
    network = Oracle(level_of_clock, path, target, HU_WIDTH / width, (HU_CENTRE - centre) / width, **more)
    convention = name if name in CONVENTIONS else diffusion(linear_schedule(), name)
    return ForeignPrior(network, convention, centre, width)


def test_every_named_convention_is_tested():
    assert set(CONVENTIONS) <= set(FOREIGN)


@pytest.mark.parametrize("hu", RANGES)
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_network_denoises_as_the_gaussian_it_was_trained_on(name, hu):
    prior = adapted(name, hu)
    for t in TIMES:
        # The level in the network's range must be one that a diffusion was trained on: from 0.01 to 157.
        if name in ("v", "sample", "epsilon", "guided-diffusion") and not (
            LEVELS[0] < prior.gain * (1 - t) / t < LEVELS[-1]
        ):
            continue
        x = draw(t)
        # float32: images are of size one, x / t up to 50 of it; epsilon is subtracted at that size.
        bound = 1e-5 + 4e-7 * (1 - t) / t * max(1.0, prior.gain) / prior.gain
        assert float((prior.denoise(x, t) - TRUTH.denoise(x, t)).abs().max()) < bound
        assert float((prior.velocity(x, t) - TRUTH.velocity(x, t)).abs().max()) < bound / (1 - t)


def test_the_range_of_a_foreign_network_is_that_of_ours_at_a_scaled_noise_level():
    # HU -300 + 500 u = 0 + 1000 w, so that noise of level 1 in u is 500 HU, 0.5 in w.
    asked = []

    def network(y, time):
        asked.append((float(y.mean()), float(time[0])))
        return y

    prior = ForeignPrior(network, "edm", 0.0, 1000.0, mean=0.0)
    prior.denoise(torch.full((1, 4, 4), 0.5 * 0.6), 0.5)
    assert asked[-1] == pytest.approx((0.0, 0.5), abs=1e-6)  # u = 0.6 is 0 HU
    assert prior.scale * 0.6 + prior.shift == pytest.approx(0.0192)  # water


def test_the_mean_is_asked_of_the_network():
    # One image of 64 x 64 at the noisiest level of the schedule: a thousandth of a deviation.
    assert adapted("epsilon", "symmetric").mean == pytest.approx(TRUTH.mean, abs=0.02)
    assert adapted("torchcfm").mean == pytest.approx(TRUTH.mean, abs=0.02)


def test_vp_states_are_flow_states_divided_by_the_sum_of_both_coefficients():
    seen = []
    prior = adapted("epsilon")
    network = prior.network
    prior.network = lambda y, time: seen.append((y, time)) or network(y, time)
    for k in (10, 300, 900):
        mu, sigma = spherical(LEVELS[k])
        t = mu / (mu + sigma)
        x = draw(t)
        prior.denoise(x, t)
        y, time = seen[-1]
        # Two roundings of float32.
        torch.testing.assert_close(y, x * (mu + sigma), rtol=3e-7, atol=3e-7)
        assert float(time[0]) == pytest.approx(k, abs=1e-3)


@pytest.mark.parametrize("method", [ConjugateIntegrator(), PiGDM(), DPS(steps=20), DDRM()])
def test_a_diffusion_prior_reconstructs_the_flow_priors_pixels(method):
    A = Blur((1, 16, 16), sigma=1.0)
    truth = TRUTH.scale * (draw(1.0, size=16)[0]) + TRUTH.shift
    problem = simulate(A, truth, Gaussian(2e-4), seed=0)
    ours = solve(problem, method, TRUTH, seed=1).mean
    for name in ("epsilon", "v"):
        prior = adapted(name)
        prior.mean = TRUTH.mean
        prior.residual_variance, prior.error_spectrum = TRUTH.residual_variance, TRUTH.error_spectrum
        theirs = solve(problem, method, prior, seed=1).mean
        # Single precision, through at most a hundred steps: rounding of 1e-7 that a few steps amplify.
        assert float((ours - theirs).norm() / ours.norm()) < 2e-5


def test_whole_times_are_exact_where_the_network_was_trained_and_near_between():
    asked = []

    def level(k):
        assert k == int(k)
        asked.append(int(k))
        return LEVELS[int(k)]

    network = Oracle(level, spherical, "z", 1.0, 0.0)
    prior = ForeignPrior(network, diffusion(linear_schedule(), whole=True), HU_CENTRE, HU_WIDTH)
    for k in (5, 400, 800):
        at, between = (LEVELS[k], math.sqrt(LEVELS[k] * LEVELS[k + 1]))
        errors = []
        for sigma in (at, between):
            t = 1 / (1 + sigma)
            x = draw(t)
            errors.append(float((prior.denoise(x, t) - TRUTH.denoise(x, t)).abs().max()))
        assert asked[-2] == k
        assert errors[0] < 2e-5
        # Half a step of the level (4 % at k = 5, else below 0.5 %); the gain s / (s + level²) changes by half
        # of it where that is most, and the largest of 1152 numbers is four deviations.
        half = math.log(LEVELS[k + 1] / LEVELS[k]) / 2
        assert errors[0] < errors[1] < 4 * half / 2 * math.hypot(LEVELS[k], 1.0) * min(1.0, 2 / LEVELS[k])


def test_beyond_the_trained_levels_the_answer_stays_sensible():
    prior = adapted("epsilon")
    low, high = 0.2 * LEVELS[0], 5 * LEVELS[-1]
    t = 1 / (1 + low)
    x = draw(t)
    # The score at the lowest level stands for that at a fifth of it: less noise is left than was there.
    assert float((prior.denoise(x, t) - TRUTH.denoise(x, t)).abs().max()) < low
    t = 1 / (1 + high)
    x = draw(t)
    # Shrinking noise moves the answer by less than the image's deviation over the level.
    assert float((prior.denoise(x, t) - TRUTH.denoise(x, t)).abs().max()) < 0.1


def test_another_direction_of_time_is_found_out():
    # A sign error would pass a test at one time and one convention: torchcfm's network under MONAI's clock.
    level_of_clock, path, target, _ = FOREIGN["torchcfm"]
    network = Oracle(level_of_clock, path, target, 1.0, 0.0)
    wrong = ForeignPrior(network, flow(falling=True), HU_CENTRE, HU_WIDTH, mean=TRUTH.mean)
    x = draw(0.8)
    assert float((wrong.denoise(x, 0.8) - TRUTH.denoise(x, 0.8)).abs().max()) > 0.1


def test_images_are_padded_to_the_stride_and_cut_again():
    shapes = []

    def network(y, sigma):
        shapes.append(tuple(y.shape[-2:]))
        return y

    prior = ForeignPrior(network, denoiser(), 0.0, 1000.0, mean=0.0, stride=16)
    assert prior.denoise(torch.zeros(3, 2, 30, 42), 0.5).shape == (3, 2, 30, 42)
    assert shapes[-1] == (32, 48)


def test_a_half_precision_network_is_fed_its_own_type():
    network = nn.Conv2d(1, 1, 3, padding=1).to(torch.bfloat16)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, sigma):
            return self.inner(x)

    prior = ForeignPrior(Two(), "edm", 0.0, 1000.0)
    assert prior.denoise(torch.zeros(1, 8, 8), 0.5).dtype == torch.float32
    assert not any(p.requires_grad for p in network.parameters())


def test_calibration_measures_the_error_that_it_states():
    prior = adapted("torchcfm")
    white = torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(5))
    u = TRUTH.mean + TRUTH.covariance_product(white, "sqrt")
    prior.calibrate(u)
    for t in (0.2, 0.5, 0.9):
        # 32768 correlated pixels, and a table that is interpolated: about 5 %.
        assert prior.residual_variance(t) == pytest.approx(TRUTH.residual_variance(t), rel=0.1)


def test_colour_and_classes_are_refused():
    for network in (
        nn.Conv2d(3, 3, 3, padding=1),
        lambda y, time, label: y,
        lambda y, time: y.repeat(1, 3, 1, 1),
    ):
        call = network if not isinstance(network, nn.Module) else (lambda y, time, n=network: n(y))
        with pytest.raises(UsageError, match=r"one channel|must return images"):
            ForeignPrior(call, "edm", 0.0, 1000.0)


def test_an_unknown_convention_lists_the_known_ones():
    with pytest.raises(UsageError, match="torchcfm"):
        ForeignPrior(lambda y, t: y, "flow-matching", 0.0, 1000.0)
    with pytest.raises(UsageError, match="epsilon"):
        Convention("vp", "noise", lambda sigma: sigma)


@pytest.mark.parametrize(
    ("centre", "width", "named"),
    [(math.nan, 1000.0, "hu_centre"), (1e9, 1000.0, "hu_centre"), ("0", 1000.0, "hu_centre")]
    + [(0.0, width, "hu_width") for width in (math.nan, math.inf, -1000.0, 0.0, 1e9, True)],
)
def test_hu_that_are_none_are_refused_of_every_prior(centre, width, named):
    with pytest.raises(UsageError, match=named):
        ForeignPrior(lambda y, t: y, "edm", centre, width)
    with pytest.raises(UsageError, match=named):
        GaussianPrior(torch.ones(8), 0.0, hu_centre=centre, hu_width=width)


class Fold:
    """An autoencoder without loss: two by two pixels as four channels, times three."""

    def encode(self, w):
        return 3 * nn.functional.pixel_unshuffle(w, 2)

    def decode(self, latents):
        return nn.functional.pixel_shuffle(latents, 2) / 3


def latent_prior(size=1.0):
    """White latents of deviation `size`."""

    def velocity(y, time):
        t = time[:, None, None, None]
        return (t * size**2 - (1 - t)) / (t**2 * size**2 + (1 - t) ** 2) * y

    return LatentPrior(velocity, flow(), Fold(), 0.0, 1000.0, scaling=0.5, residual=size)


def test_latents_are_encoded_and_decoded_with_scale_and_range():
    prior = latent_prior()
    u = torch.randn(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    latents = prior.encode(u)
    assert latents.shape == (2, *prior.latent_shape((1, 8, 12))) == (2, 4, 4, 6)
    # u = 0.6 is 0 HU, so w = 0; one unit of u is 500 HU, so w = 0.5, and the latent 0.5 · 3 · 0.5.
    assert float(prior.encode(torch.full((1, 8, 8), 1.6)).mean()) == pytest.approx(0.75, abs=1e-6)
    torch.testing.assert_close(prior.decode(latents), u, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="multiples of 2"):
        prior.latent_shape((1, 7, 8))


def test_samples_of_latents_have_the_deviation_of_the_latents():
    # 4 x 4096 numbers: the standard error is 0.6 %; Heun's error at 30 steps is below 1 %.
    assert float(latent_prior(0.7).sample((4, 64, 64)).std()) == pytest.approx(0.7, rel=0.02)


def test_dps_through_a_decoder_is_dps_of_the_composed_operator():
    """A linear decoder makes A ∘ decode a matrix, which DPS can be given on its own."""
    prior = latent_prior(0.7)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 64, generator=generator) / 8
    A = Dense(matrix, 8)
    truth = prior.scale * prior.decode(0.7 * torch.randn(4, 4, 4, generator=generator)) + prior.shift
    problem = simulate(A, truth, Gaussian(1e-3), seed=0)
    method = DPS(steps=20)
    through = solve(problem, method, prior, seed=3).mean

    columns = torch.eye(64).reshape(64, 4, 4, 4)
    background = prior.decode(torch.zeros(4, 4, 4))
    decoder = (prior.decode(columns) - background).flatten(1).T  # 64 pixels by 64 latents
    composed = Dense(matrix @ decoder * prior.scale, 4)
    composed.domain_shape = (4, 4, 4)
    inside = problem.rescaled(prior.scale, prior.shift)
    y = inside.y - inside.A(background)
    plain = latent_prior(0.7)
    plain.latent, plain.scale, plain.shift = False, 1.0, 0.0
    plain.decode, plain.latent_shape = (lambda x: x), (lambda shape: shape)
    plain.decode_vjp = lambda x, cotangent: cotangent(x)
    # The guidance is divided by a norm that is that of A here and of A ∘ decode there.
    linear = InverseProblem(composed, y, problem.noise, problem.W)
    guidance = math.sqrt(normal_norm(linear) / normal_norm(inside))
    alone = solve(linear, DPS(steps=20, guidance=guidance), plain, seed=3).mean
    # Twenty steps of float32, at each of which the residual's norm divides.
    torch.testing.assert_close(
        (through - prior.shift) / prior.scale, prior.decode(alone), rtol=1e-4, atol=1e-4
    )


def test_methods_for_linear_operators_refuse_latents():
    prior = latent_prior()
    problem = simulate(Blur((1, 8, 8), sigma=1.0), torch.full((1, 8, 8), 0.02), Gaussian(1e-3))
    with pytest.raises(UsageError, match="use DPS"):
        solve(problem, ConjugateIntegrator(), prior)
