"""Problems and noise: stationarity, invariance under rescaling, and the statistics that weights promise."""

import pytest
import torch

from ctflow.datasets.synthetic import toy_volume
from ctflow.errors import BackendError, GeometryError, ProtocolError, UsageError
from ctflow.geometry import ParallelBeam
from ctflow.linalg import cg
from ctflow.noise import Gaussian, Poisson
from ctflow.operators import Blur, Radon
from ctflow.problem import InverseProblem, simulate
from tests.dense import Dense, random_problem


def test_gradient_is_the_derivative_of_the_data_fit():
    problem, _ = random_problem()
    x = torch.randn(1, 6, 6, dtype=torch.float64).requires_grad_()
    (derivative,) = torch.autograd.grad(problem.data_fit(x), x)
    torch.testing.assert_close(problem.gradient(x.detach()), derivative)


def test_prox_is_stationary():
    problem, _ = random_problem()
    center = torch.randn(3, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = problem.samples(3).prox(center, 0.3, iterations=200, tolerance=1e-12)
    stationarity = problem.gradient(x) + (x - center) / 0.3
    assert stationarity.norm() < 1e-8 * problem.gradient(center).norm()


def test_prox_from_another_start_is_the_same_point():
    problem, _ = random_problem()
    center = torch.randn(1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near = problem.prox(center, 0.3, 200, 1e-12)
    far = problem.prox(center, 0.3, 200, 1e-12, start=10 * center)
    torch.testing.assert_close(near, far, rtol=1e-8, atol=1e-8)


def test_rescaling_changes_the_variable_and_nothing_else():
    problem, _ = random_problem()
    z = torch.randn(1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = problem.rescaled(0.01, -0.3)
    torch.testing.assert_close(inside.data_fit(z), problem.data_fit(0.01 * z - 0.3))
    torch.testing.assert_close(inside.gradient(z), 0.01 * problem.gradient(0.01 * z - 0.3))


def test_truth_has_residual_one():
    image = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(0))
    problem = simulate(Blur((1, 128, 128), sigma=1.0), image, Gaussian(0.02), seed=1)
    # Chi-squared with 16384 degrees of freedom: standard error 1.1 %.
    assert problem.residual(image).item() == pytest.approx(1.0, abs=0.05)


def test_poisson_weights_are_inverse_variances():
    clean = torch.tensor([0.5, 2.0, 4.0]).repeat(40_000, 1)
    for noise in (Poisson(1e4), Poisson(1e4, electronic=20.0)):
        y = noise.sample(clean, torch.Generator().manual_seed(0))
        # The weights are a second-order expansion: at 183 counts and 20 electrons its next term is about 4 %.
        torch.testing.assert_close(1 / y.var(0), noise.precision(clean)[0], rtol=0.05, atol=0.0)
        torch.testing.assert_close(y.mean(0), clean[0], rtol=0.0, atol=0.01)


def test_zero_counts_become_half_a_count():
    y = Poisson(100.0).sample(torch.full((1000,), 20.0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(y, torch.full((1000,), 100.0).div(0.5).log())
    assert bool((Poisson(100.0).precision(y) <= 0.5 + 1e-6).all())


def test_noise_depends_on_the_seed_alone():
    image = torch.rand(1, 6, 6, dtype=torch.float64)
    operator = Dense(torch.eye(36, dtype=torch.float64), 6)
    first, second, other = (simulate(operator, image, Gaussian(0.1), seed).y for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_hu_are_not_projected_as_attenuation():
    """A `Volume` knows its unit; a tensor does not."""
    chest = toy_volume(1, 32)
    A = Radon(chest.geometry, ParallelBeam(8))
    given, converted = (
        simulate(A, image, Gaussian(1e-3)).y for image in (chest, chest.to_attenuation().data)
    )
    torch.testing.assert_close(given, converted)
    with pytest.raises(UsageError, match="values down to -1000 are HU"):
        simulate(A, chest.data, Gaussian(1e-3))


def test_wrong_shapes_and_numbers_are_refused():
    with pytest.raises(GeometryError, match="range"):
        InverseProblem(Dense(torch.eye(36), 6), torch.zeros(1, 1, 35), Gaussian(1.0))
    with pytest.raises(ProtocolError, match="positive"):
        Gaussian(0.0)
    with pytest.raises(ProtocolError, match="photons"):
        Poisson(-1.0)


def test_each_sample_of_a_batch_stops_by_itself():
    matrix = torch.diag(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    b = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    together = cg(lambda x: x @ matrix, b, 1, 3, 1e-12)
    for sample in range(2):
        alone = cg(lambda x: x @ matrix, b[sample], 1, 3, 1e-12)
        torch.testing.assert_close(together[sample], alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together, torch.linalg.solve(matrix, b.T).T)


@pytest.mark.parametrize(
    ("y", "W", "error", "says"),
    [
        ([[1.0]], None, UsageError, "data of a problem must be a tensor, not a list; give torch.as_tensor"),
        (torch.ones(2, 9, 12).half(), None, BackendError, r"not torch\.float16.*as by \.float\(\)"),
        (torch.ones(2, 9, 12).int(), None, BackendError, r"not torch\.int32"),
        (torch.ones(2, 9, 12) * 1j, None, BackendError, r"not torch\.complex64"),
        (torch.ones(2, 9, 12).to_sparse(), None, BackendError, r"torch\.sparse_coo"),
        (torch.ones(2, 9, 12, device="meta"), None, BackendError, "on meta"),
        (torch.ones(2, 9, 12), 1.0, UsageError, "weights of a problem must be a tensor, not a float"),
        (torch.ones(2, 9, 12), torch.ones(2, 9, 12).half(), BackendError, "weights .*not torch.float16"),
        (
            torch.ones(2, 9, 12),
            torch.ones(3),
            GeometryError,
            r"weights \(3,\) do not broadcast to data \(2, 9, 12\)",
        ),
        (torch.ones(2, 9, 12), torch.ones(4, 2, 9, 12), GeometryError, "with sides of 1 where one weight"),
    ],
)
def test_data_and_weights_that_are_no_numbers_to_compute_with_are_refused(y, W, error, says):
    with pytest.raises(error, match=says):
        InverseProblem(Blur.example(), y, Gaussian(0.1), W)
