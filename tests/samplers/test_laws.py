"""What holds for every method with a prior, found by itself, and for the choices within some of them."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from ctflow.errors import ProtocolError, UsageError
from ctflow.priors import FlowPrior, GaussianPrior, MixturePrior
from ctflow.problem import InverseProblem
from ctflow.registry import find_class, names
from ctflow.samplers import (
    DDNM,
    MomentMatching,
    MSFlow,
    MSFlowPaper,
    Refinement,
    SingleShooting,
)
from ctflow.solving import Spread, solve, spread_of
from ctflow.testing._gaussian import Dense, gaussian_case
from tests.dense import random_problem, stationary_prior

METHODS = {name: find_class("method", name)() for name, home in names("method").items() if "samplers" in home}
VARIANTS = METHODS | {
    "ms-flow, one sweep": MSFlow(16, 1),
    "ms-flow, refined": Refinement().after(MSFlow()),
    "ms-flow-paper, gaussian": MSFlowPaper(regulariser="gaussian"),
}
VARIANTS |= {f"{name}, paper": m.paper_form() for name, m in METHODS.items() if hasattr(m, "paper_form")}


def weighted_case(seed: int = 0, sigma: float = 0.1):
    """The Gaussian case with counts: standard deviations over a factor of ten, and its posterior mean."""
    case = gaussian_case(seed)
    A = case.problem.A
    spread = torch.logspace(-0.5, 0.5, A.range_shape[-1], dtype=torch.float64) * sigma * case.prior.scale
    clean = A(case.prior.scale * image_of(case, seed) + case.prior.shift)
    fresh = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed + 50)).double()
    problem = InverseProblem(
        A, clean + spread * fresh, case.problem.noise, spread.expand(A.range_shape) ** -2
    )
    basis = torch.eye(64, dtype=torch.float64).reshape(-1, *A.domain_shape)
    C = case.prior.scale**2 * case.prior.covariance_product(basis).flatten(1)
    gram = A.matrix @ C @ A.matrix.T + torch.diag(spread**2)
    weights = torch.linalg.solve(gram, (problem.y - A(case.prior_mean)).flatten())
    mean = case.prior_mean + (C @ A.matrix.T @ weights).reshape(A.domain_shape)
    return problem, case, mean


def image_of(case, seed: int) -> torch.Tensor:
    white = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return case.prior.mean + case.prior.covariance_product(white, "sqrt")


@cache
def on_counts(name: str):
    problem, case, mean = weighted_case()
    samples = 16 if VARIANTS[name].evaluations else 2  # single shooting goes from image to image
    solution = solve(problem, VARIANTS[name], case.prior, samples=samples)
    whole = (case.prior_mean - mean).norm()
    return solution, float((solution.mean - mean).norm() / whole)


@pytest.mark.parametrize("name", VARIANTS)
def test_samples_are_alike_exactly_where_a_method_says_that_it_draws_nothing(name):
    """Of two equal problems, since one that draws nothing is run once for two samples."""
    case, method = gaussian_case(), VARIANTS[name]
    one, two = solve(case.problem.samples(2), method, case.prior).mean
    assert torch.equal(one, two) is (spread_of(method) is Spread.NONE)
    solution = solve(case.problem, method, case.prior, samples=2)
    assert len(solution.x) == (1 if torch.equal(one, two) else 2)
    assert solution.spread is spread_of(method)


def test_a_spread_says_what_it_is():
    case = gaussian_case()
    assert solve(case.problem, MomentMatching(2), case.prior, samples=2).spread is Spread.POSTERIOR
    refined = Refinement(1).after(MomentMatching(2))
    assert spread_of(refined) is Spread.STARTS  # a refined draw is none of the posterior
    single = solve(case.problem, MomentMatching(2), case.prior)
    assert single.spread is Spread.NONE
    with pytest.raises(UsageError, match="samples=8"):
        _ = single.std
    with pytest.raises(UsageError, match=r"MSFlow draws no random numbers .* take MomentMatching"):
        _ = solve(case.problem, MSFlow(2, 1), case.prior, samples=8).std


class Misstated(MSFlow):
    """Says a spread that is none."""

    spread = "wide"


def test_a_spread_of_no_kind_is_refused():
    case = gaussian_case()
    with pytest.raises(
        ProtocolError, match="Misstated has spread 'wide'; give one of posterior, starts, none"
    ):
        solve(case.problem, Misstated(2, 1), case.prior)


@pytest.mark.parametrize("name", VARIANTS)
def test_posterior_mean_with_weights_of_counts(name):
    solution, distance = on_counts(name)
    stats = solution.stats
    print(f"{name:<28} NFE {stats['network']:4.0f} + {stats['backward']:3.0f} back: distance {distance:.3f}")
    # Of the way from the prior's mean to the posterior's; the bound of `check_sampler`, for the same reason.
    assert distance < 0.5
    assert solution.status == "finished"


@pytest.mark.parametrize("name", VARIANTS)
def test_evaluations_are_what_the_method_states(name):
    solution, _ = on_counts(name)
    network, backward = solution.stats["network"], solution.stats["backward"]
    if VARIANTS[name].evaluations is None:
        assert isinstance(VARIANTS[name], SingleShooting)
        assert network % (VARIANTS[name].segments - 1) == 0
    else:
        assert (network, backward) == VARIANTS[name].evaluations


@pytest.mark.parametrize("name", VARIANTS)
def test_residuals_are_traced_to_the_end(name):
    solution, _ = on_counts(name)
    steps = [step for step, _ in solution.trace]
    assert 1 <= len(steps) <= 20
    assert steps == sorted(set(steps))
    problem, _, _ = weighted_case()
    last = float(problem.samples(len(solution.x)).residual(solution.x).mean())
    assert solution.trace[-1][1] == pytest.approx(last, rel=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_batch_is_loop_of_singles(name, monkeypatch):
    """With the same noise for every problem of the batch, also where noise is drawn."""
    case, other = gaussian_case(0), gaussian_case(1)
    both = replace(case.problem, y=torch.stack([case.problem.y, other.problem.y]))
    randn = torch.randn

    def same(shape, **how):
        return randn(tuple(shape[-3:]), **how).expand(shape).clone()

    monkeypatch.setattr(torch, "randn", same)
    method = VARIANTS[name]
    method = replace(method, steps=min(method.steps, 8)) if hasattr(method, "steps") else method
    together = solve(both, method, case.prior).mean
    alone = torch.stack([solve(p, method, case.prior).mean for p in (case.problem, other.problem)])
    # Float64; iterations amplify the rounding of sums in another order.
    assert (together - alone).abs().max() < 1e-6 * case.prior.scale


@pytest.mark.parametrize("name", METHODS)
def test_mixture_posterior(name):
    """The data tell the component; the posterior mean is then that of a Gaussian."""
    matrix = torch.randn(10, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    A = Dense(matrix / matrix.norm(dim=1, keepdim=True))
    means = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    prior = MixturePrior(means, torch.full((3,), 0.1, dtype=torch.float64))
    prior.scale, prior.shift = 1.0, 0.0
    problem, _ = random_problem(side=4, rows=10, sigma=0.1)
    spread = 0.1**0.5 * torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(7)).double()
    fresh = 0.1 * torch.randn(1, 1, 10, generator=torch.Generator().manual_seed(8)).double()
    problem = InverseProblem(A, A(means[1] + spread) + fresh, problem.noise)
    gram = 0.1 * A.matrix @ A.matrix.T + 0.01 * torch.eye(10, dtype=torch.float64)
    gain = 0.1 * A.matrix.T @ torch.linalg.inv(gram)
    exact = means[1] + (gain @ (problem.y - A(means[1])).flatten()).reshape(1, 4, 4)
    x = solve(problem, METHODS[name], prior, samples=8).mean
    distance = float((x - exact).norm() / (means.mean(0) - exact).norm())
    print(f"{name:<16} distance to the mixture's posterior mean {distance:.3f}")
    assert int((x - means).flatten(1).norm(dim=1).argmin()) == 1
    assert distance < 0.5


def test_ddnm_without_noise_replaces_the_row_space():
    problem, matrix = random_problem(sigma=1e-5)
    prior, *_ = stationary_prior()
    D = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    corrected = DDNM().correct(problem, prior, D, 0.5, torch.Generator())
    step = torch.linalg.pinv(matrix) @ (problem.y.flatten() - matrix @ D.flatten())
    torch.testing.assert_close(corrected, D + step.reshape(D.shape), rtol=1e-4, atol=1e-4)


class Ungraded(GaussianPrior):
    """A prior that computes outside torch's graph."""

    def _denoise(self, x, t):
        return super()._denoise(x.detach(), t)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_prior_without_gradients(name):
    case, method = gaussian_case(), VARIANTS[name]
    prior = Ungraded(case.prior.spectrum, case.prior.mean)
    prior.scale, prior.shift = case.prior.scale, case.prior.shift
    if method.evaluations is None or method.evaluations[1] > 0:
        with pytest.raises(UsageError, match="needs the gradient of prior"):
            solve(case.problem, method, prior)
    else:
        assert solve(case.problem, method, prior).status == "finished"


@pytest.mark.parametrize("name", METHODS)
def test_data_in_another_unit(name):
    case = gaussian_case()
    prior = GaussianPrior(case.prior.spectrum, case.prior.mean)
    prior.scale, prior.shift = case.prior.scale / 1000, case.prior.shift / 1000
    with pytest.raises(UsageError, match="1/mm"):
        solve(case.problem, METHODS[name], prior)


class Growing(MSFlow):
    """Multiplies its image at every step."""

    factor = 10.0

    def rounds(self, inside):
        return self.states

    def images(self, inside, prior, generator):
        x = torch.ones((*inside.batch_shape, *inside.A.domain_shape), dtype=inside.y.dtype)
        for _ in range(self.states):
            x = self.factor * x
            yield x


def test_divergence_is_an_error_or_a_status(caplog):
    case = gaussian_case()
    solution = solve(case.problem, Growing(8), case.prior)
    assert solution.status.startswith("diverged at step ")
    assert "Growing diverged at step" in caplog.text
    method = Growing(400)
    with pytest.raises(UsageError, match=r"diverged at step 30\d of 400"):
        solve(case.problem, method, case.prior)


def test_watching_costs_nothing():
    case = gaussian_case()
    plain = solve(case.problem, MSFlow(3, 1), case.prior)
    seen = []

    def watch(step, image):
        seen.append((step, case.problem.residual(image)))

    watched = solve(case.problem, MSFlow(3, 1), case.prior, watch=watch)
    counted = ("forward", "adjoint", "network", "backward")
    assert [watched.stats[key] for key in counted] == [plain.stats[key] for key in counted]
    assert [step for step, _ in seen] == list(range(1, 4))
    assert float(seen[-1][1]) == pytest.approx(watched.trace[-1][1])


class Hungry(MSFlow):
    """Holds 200 MB for a moment."""

    def rounds(self, inside):
        return 1

    def images(self, inside, prior, generator):
        yield torch.ones(25_000_000, dtype=torch.float64)[:64].reshape(1, 1, 8, 8)


def test_peak_memory_is_what_was_held_beyond_before():
    case = gaussian_case()
    for _ in range(2):  # the second time the mark has to be set back
        held = solve(case.problem, Hungry(), case.prior).peak_memory_bytes
        assert held > 190e6
    assert solve(case.problem, MSFlow(1), case.prior).peak_memory_bytes < 100e6


def test_a_network_sees_states_at_several_times_as_one_batch():
    prior = FlowPrior.load("ct-256")
    x = torch.randn(3, 2, 1, 24, 40, generator=torch.Generator().manual_seed(0))
    times = [0.0, 0.3, 0.8]
    loop = torch.stack([prior.denoise(one, t) for one, t in zip(x, times, strict=True)])
    # Convolutions of a batch may sum in another order: float32 through some thirty layers.
    torch.testing.assert_close(prior.denoise_each(x, times), loop, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_image_does_not_hang_on_its_neighbours(name):
    """A problem alone, and beside one with nine times the weights: a run solves several slices together."""
    case = gaussian_case()
    y, W = case.problem.y, case.problem.W.expand(case.problem.y.shape)
    both = replace(case.problem, y=torch.stack([y, 3 * y]), W=torch.stack([W, 9 * W]))
    method = VARIANTS[name]
    if isinstance(getattr(method, "steps", None), int):
        method = replace(method, steps=min(method.steps, 8))
    alone = solve(both.part(slice(0, 1)), method, case.prior, seed=[5]).mean
    beside = solve(both, method, case.prior, seed=[5, 6]).mean[:1]
    # A Lanczos run goes on until its last problem has converged to 1e-3.
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-3 * float(alone.abs().max()))
