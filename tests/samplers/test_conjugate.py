"""The conjugate integrators against closed-form posteriors, quadrature and dense spectra."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from ctflow.errors import ProtocolError
from ctflow.linalg import lanczos_function
from ctflow.priors import MixturePrior
from ctflow.samplers import ConjugateGDM, ConjugateIntegrator
from ctflow.samplers._conjugate import _Decay, diffusion_time, flow_time
from ctflow.samplers._times import unit_variance
from ctflow.solving import solve
from tests.dense import posterior, random_problem, stationary_prior, white_prior

SIGMA = 0.1
NO_CLIP = 1e9
BOTH = pytest.mark.parametrize("kind", [ConjugateIntegrator, ConjugateGDM])


def variant(kind, **constants):
    """The same integrator with other constants in its form."""
    return type(kind.__name__, (kind,), {"forms": {"bayes": replace(kind.forms["bayes"], **constants)}})


def one_component(variance: float, mean: float, side: int = 4) -> MixturePrior:
    """A white Gaussian prior whose error costs nothing to state."""
    means = torch.full((1, 1, side, side), mean, dtype=torch.float64)
    prior = MixturePrior(means, torch.tensor([variance], dtype=torch.float64))
    prior.scale, prior.shift = 1.0, 0.0
    return prior


@BOTH
def test_samples_have_the_posterior_mean_and_covariance(kind):
    # For a white Gaussian prior the guidance is exact, so fine steps must give exact posterior samples.
    problem, matrix = random_problem(side=4, rows=8, sigma=SIGMA)
    method = variant(kind, clip=NO_CLIP)(steps=200, start=0.02, jacobian=1.0)
    x = solve(problem, method, one_component(0.5, 0.2), samples=1000).x.flatten(1)
    mean, covariance = posterior(matrix, problem.y, SIGMA, 0.5 * torch.eye(16, dtype=torch.float64), 0.2)
    # Monte Carlo: 1000 samples of variance at most 0.5 leave 0.022 on a mean and on a variance (one standard
    # error); four of them are allowed.
    assert (x.mean(0) - mean).abs().max() < 0.09
    assert (torch.cov(x.T) - covariance).abs().max() < 0.09


@BOTH
def test_mixture_samples_find_the_right_component(kind):
    problem, matrix = random_problem(side=4, rows=8, sigma=SIGMA, seed=3)
    truth = torch.linalg.lstsq(matrix, problem.y.flatten()[:, None]).solution.reshape(1, 4, 4)
    means = torch.stack([truth, -truth, truth.flip(-1)])
    prior = MixturePrior(means, torch.full((3,), 0.05, dtype=torch.float64))
    prior.scale, prior.shift = 1.0, 0.0
    x = solve(problem, kind(steps=20), prior, samples=100).x
    nearest = ((x[:, None] - means) ** 2).flatten(2).sum(-1).argmin(1)
    # The others miss the data by more than 490 squared standard deviations: their posterior odds are nil.
    assert bool((nearest == 0).all())
    covariance = 0.05 * torch.eye(16, dtype=torch.float64)
    mean, _ = posterior(matrix, problem.y, SIGMA, covariance, means[0].flatten())
    # 100 samples of standard deviation 0.22 leave 0.022 on a mean: four standard errors.
    assert (x.flatten(1).mean(0) - mean).abs().max() < 0.09


def start_of(problem, prior, start: float, seed: int) -> torch.Tensor:
    noise = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(seed)).double()[0]
    mean = torch.zeros(1, 6, 6, dtype=torch.float64) + prior.mean
    return start * problem.prox(mean, prior.residual_variance(0.0), 40) + (1 - start) * noise


@BOTH
def test_no_guidance_is_the_unconditional_flow(kind):
    problem, _ = random_problem()
    prior, *_ = stationary_prior()
    method = kind(steps=4, start=0.3, guidance=0.0)
    guided = solve(problem, method, prior, seed=2).mean
    x = start_of(problem, prior, 0.3, 2)
    for t, u in pairwise(method.times()):
        x = x + (u - t) * prior.velocity(x, t)
    torch.testing.assert_close(guided, x, rtol=1e-9, atol=1e-9)


@BOTH
def test_without_noise_it_is_the_papers_relaxed_projection(kind):
    """x' = unconditional step + u (1 - q) A⁺(y - A D), u = 1, with the paper's closed form of q."""
    problem, matrix = random_problem(sigma=1e-6)
    prior, *_ = stationary_prior()
    t, w = 0.4, 3.0
    method = variant(kind, weighted=True)(steps=1, start=t, guidance=w, jacobian=0.0)
    x = start_of(problem, prior, t, 0)
    D = prior.denoise(x, t)
    pinv = torch.linalg.pinv(matrix)
    if kind is ConjugateIntegrator:
        q = np.exp(-w * (1 / 2 - 1 / 3 - t**2 / 2 + t**3 / 3))  # b = w (t²/2 - t³/3)
    else:
        q = (1 - unit_variance(t)) ** (w / 2)  # (μ / μ')^w with μ' = 1
    step = (1 - q) * (pinv @ (problem.y.flatten() - matrix @ D.flatten())).reshape(D.shape)
    # The noise of 1e-6 against r² of at least (1 - t)² at the last of 32 nodes: 1e-12 / 1e-6.
    torch.testing.assert_close(solve(problem, method, prior).mean, D + step, rtol=1e-4, atol=1e-4)


@BOTH
@pytest.mark.parametrize("free_rate", [0.0, 0.7])
def test_step_functions_agree_with_adaptive_quadrature(kind, free_rate):
    prior = white_prior(0.3, 0.0)
    t, u, eigenvalue = 0.4, 0.7, 12.0
    method = variant(kind, free_rate=free_rate)(guidance=1.5)
    decay = _Decay(method, prior, t, u)

    def kappa_r2(s: float) -> float:
        return 1.5 * (1 - s) / s / (s**2 if method.diffusion else 1.0)

    def rate(s: float) -> float:
        return kappa_r2(s) / (prior.residual_variance(s) * eigenvalue + 1)

    def left(s: float) -> float:
        free = free_rate * (method.clock(u) - method.clock(s))
        return np.exp(-eigenvalue * quad(rate, s, u)[0] - free)

    value = torch.tensor([eigenvalue, 0.0], dtype=torch.float64)
    h = quad(lambda s: rate(s) * left(s), t, u)[0]
    G = quad(lambda s: kappa_r2(s) / prior.residual_variance(s) * (1 - s) * left(s), t, u)[0]
    # Gauss-Legendre of 32 nodes on a smooth integrand: converged to rounding.
    assert decay.h(value)[0].item() == pytest.approx(h, rel=1e-6)
    assert decay.G(value)[0].item() == pytest.approx(G, rel=1e-6)
    if free_rate == 0:
        assert decay.h(value)[1].item() == pytest.approx(quad(kappa_r2, t, u)[0], rel=1e-8)  # λ -> 0
        torch.testing.assert_close(decay.kept(value), torch.ones(2, dtype=torch.float64))
        expected = torch.full((2,), method.slope(t) - method.slope(u), dtype=torch.float64)
        torch.testing.assert_close(decay.moved(value), expected, rtol=1e-6, atol=1e-9)


def test_lanczos_equals_the_dense_function():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(20, 30, generator=generator, dtype=torch.float64)
    dense = root.T @ root
    b = torch.randn(3, 30, generator=generator, dtype=torch.float64)
    functions = [lambda v: torch.exp(-v / 10), lambda v: 1 / (v + 1)]
    values, vectors = torch.linalg.eigh(dense)
    results = lanczos_function(lambda x: x @ dense, b, functions, 1, 25, 0.0)
    for f, result in zip(functions, results, strict=True):
        exact = b @ vectors @ torch.diag(f(values.clamp_min(0))) @ vectors.T
        # 21 distinct eigenvalues: the Krylov space is complete after 21 steps.
        torch.testing.assert_close(result, exact, rtol=1e-8, atol=1e-8)


def guided(problem, matrix, prior, values, vectors, x: torch.Tensor, start: float) -> torch.Tensor:
    """The image at t = 1 of the guided ODE from x, by a fine solver on dense matrices.

    dx/dt = v + (1 - t) / t · Jᵀ Aᵀ (r_t² A Aᵀ + σ²)⁻¹ (y - A D) for images N(m, S), where D and J are known:
    D = t m + S t / (t² S + (1 - t)²) (x - t m) in the modes of S, J its slope.
    """
    H, V, S, y = matrix.numpy(), vectors.numpy(), values.numpy(), problem.y.flatten().numpy()
    mean = np.full(len(V), float(prior.mean))

    def slope(t: float, x: np.ndarray) -> np.ndarray:
        J = V @ np.diag(t * S / (t**2 * S + (1 - t) ** 2)) @ V.T
        D = mean + J @ (x - t * mean)
        r2 = prior.residual_variance(t)
        pull = H.T @ np.linalg.solve(r2 * H @ H.T + SIGMA**2 * np.eye(len(H)), y - H @ D)
        return (D - x) / (1 - t) + (1 - t) / t * J.T @ pull

    end = 1 - 1e-6  # D - x over 1 - t
    found = solve_ivp(slope, (start, end), x.flatten().numpy(), method="DOP853", rtol=1e-9, atol=1e-11)
    return torch.from_numpy(found.y[:, -1])


@BOTH
@pytest.mark.parametrize("free_rate", [0.0, 1.0])
def test_fine_steps_are_the_guided_ode(kind, free_rate):
    """On 8 x 8 pixels, from the same start, against a fine solver; errors halve with the step."""
    problem, matrix = random_problem(side=8, rows=20, sigma=SIGMA)
    prior, values, vectors = stationary_prior(side=8)
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()[0]
    mean = torch.zeros(1, 8, 8, dtype=torch.float64) + prior.mean
    x = 0.3 * problem.prox(mean, prior.residual_variance(0.0), 80) + 0.7 * noise
    fine = guided(problem, matrix, prior, values, vectors, x, 0.3)
    unclipped = variant(kind, clip=NO_CLIP, free_rate=free_rate)
    errors = []
    for steps in (64, 128, 256):
        found = solve(problem, unclipped(steps, 0.3, jacobian=1.0), prior).mean.flatten()
        errors.append(float((found - fine).norm() / fine.norm()))
    orders = [float(np.log2(a / b)) for a, b in pairwise(errors)]
    print(kind.__name__, f"λ {free_rate}: errors", [f"{e:.1e}" for e in errors], orders)
    assert errors[-1] <= 0.009
    assert orders[-1] == pytest.approx(1.0, abs=0.1)  # the next order still shows
    half = unclipped(256, 0.3, jacobian=0.5)
    assert float((solve(problem, half, prior).mean.flatten() - fine).norm() / fine.norm()) > 0.03


@BOTH
def test_the_step_without_jacobian_is_the_closed_formula(kind):
    """x' = unconditional step + h(M) AᵀW (y - A D), with h by adaptive quadrature in the modes of M."""
    problem, matrix = random_problem(side=8, rows=20, sigma=SIGMA)
    prior, *_ = stationary_prior(side=8)
    method = kind(steps=2, start=0.3, guidance=1.5, jacobian=0.0)
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()[0]
    mean = torch.zeros(1, 8, 8, dtype=torch.float64) + prior.mean
    x = 0.3 * problem.prox(mean, prior.residual_variance(0.0), 40) + 0.7 * noise
    values, modes = np.linalg.eigh((matrix.T @ matrix / SIGMA**2).numpy())
    for t, u in pairwise(method.times()):
        D = prior.denoise(x, t)
        slope = matrix.T @ (problem.y.flatten() - matrix @ D.flatten()) / SIGMA**2

        def rate(s: float, value: float) -> float:
            strength = 1.5 * (1 - s) / s / (s**2 if kind is ConjugateGDM else 1.0)
            return strength / (prior.residual_variance(s) * value + 1)

        h = [
            -np.expm1(-v * E) / v if v > 1e-9 else E
            for v in values
            for E in [quad(rate, t, u, args=(max(v, 0.0),), epsabs=1e-13, epsrel=1e-13)[0]]
        ]
        pull = (torch.from_numpy(modes @ np.diag(h) @ modes.T) @ slope).reshape(D.shape)
        x = u * D + (1 - u) * (x - t * D) / (1 - t) + (u if kind is ConjugateGDM else 1.0) * pull
    found = solve(problem, method, prior).mean
    print(kind.__name__, f"largest difference {float((found - x).abs().max()):.1e}")
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


@BOTH
def test_the_pseudo_inverse_starts_from_the_data_alone(kind):
    problem, matrix = random_problem(sigma=SIGMA)
    prior, *_ = stationary_prior()
    method = kind(steps=1, start=0.999, guidance=0.0, form="paper")
    x = solve(problem, method, prior).mean.flatten()
    # Damped at 1 % of the largest singular value, and denoised at a noise of 0.001.
    assert (x - torch.linalg.pinv(matrix) @ problem.y.flatten()).norm() < 0.01 * x.norm()


@BOTH
def test_share_and_clip_of_the_jacobian(kind):
    problem, _ = random_problem(sigma=SIGMA)
    prior, *_ = stationary_prior()

    def run(jacobian: float, clip: float) -> torch.Tensor:
        return solve(problem, variant(kind, clip=clip)(3, 0.3, jacobian=jacobian), prior).mean

    none, exact, clipped = run(0.0, NO_CLIP), run(1.0, NO_CLIP), run(1.0, 1e-9)
    torch.testing.assert_close(clipped, none, rtol=1e-7, atol=1e-7)
    half = run(0.5, NO_CLIP)
    assert 0 < float((half - none).norm()) < float((exact - none).norm())


def test_times():
    for t in (0.05, 0.5, 0.95):
        assert flow_time(diffusion_time(t)) == pytest.approx(t, rel=1e-12)
    for kind in (ConjugateIntegrator, ConjugateGDM):
        times = kind(4, 0.3).times()
        assert times[0] == pytest.approx(0.3)
        assert times[-1] == 1.0
        assert len(times) == 5
        assert all(t < u for t, u in pairwise(times))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"start": 1.0}, "start"),
        ({"steps": 0}, "steps"),
        ({"form": "ot"}, "'bayes' or 'paper'"),
        ({"jacobian": 1.5}, "jacobian"),
    ],
)
@BOTH
def test_impossible_numbers_are_refused(kind, wrong, said):
    with pytest.raises(ProtocolError, match=said):
        kind(**wrong)
