"""Slices that are made to agree: the minimiser along z, what it keeps, and what it leaves alone."""

import numpy as np
import pytest
import torch

from ctflow.errors import UsageError
from ctflow.priors import Coupled, GaussianPrior
from ctflow.priors.coupled import total_variation_along_z


def objective(d, x, limit):
    return float(0.5 * (d - x).square().sum() + limit * d.diff(dim=-3).abs().sum())


@pytest.mark.parametrize("limit", [0.05, 0.3, 2.0])
def test_no_other_volume_has_a_smaller_objective(limit):
    x = torch.randn(2, 9, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = total_variation_along_z(x, limit)
    best = objective(d, x, limit)
    generator = torch.Generator().manual_seed(1)
    for size in (1e-1, 1e-2):
        other = d + size * torch.randn(d.shape, generator=generator, dtype=torch.float64)
        assert objective(other, x, limit) > best
    torch.testing.assert_close(d.mean(-3), x.mean(-3))


def test_far_beyond_every_difference_only_the_mean_is_left():
    x = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x.mean(0, keepdim=True).expand_as(x)
    torch.testing.assert_close(total_variation_along_z(x, 20.0), expected)


def test_a_step_loses_the_limit_over_its_length():
    """Closed form: a step of height h between halves of n slices shrinks by 2 limit / n."""
    x = torch.zeros(12, 2, 2, dtype=torch.float64)
    x[6:] = 1.0
    d = total_variation_along_z(x, 0.3)
    expected = np.repeat([0.3 / 6, 1 - 0.3 / 6], 6)
    np.testing.assert_allclose(d[:, 0, 0].numpy(), expected, atol=1e-12)


def test_its_derivative_is_that_of_finite_differences():
    x = torch.randn(
        7, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda values: total_variation_along_z(values, 0.4), (x,))


def test_its_transposed_jacobian_goes_through_that_of_the_slices():
    prior = Coupled(GaussianPrior.example(), 0.5)
    generator = torch.Generator().manual_seed(0)
    x, force = torch.randn(2, 6, 8, 8, generator=generator, dtype=torch.float64).unbind(0)
    denoised, pulled = prior.denoise_vjp(x, 0.5, lambda image: force)
    torch.testing.assert_close(denoised, prior.denoise(x, 0.5))
    with torch.enable_grad():
        inside = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(prior.denoise(inside, 0.5), inside, force)
    torch.testing.assert_close(pulled, expected)


def test_one_slice_is_the_prior_alone():
    prior = GaussianPrior.example()
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Coupled(prior, 0.5).denoise(x, 0.6), prior.denoise(x, 0.6))


def test_the_error_of_slices_falls_where_neighbours_are_alike():
    """Slices that differ by noise alone: what the prior leaves of it is taken off."""
    prior = GaussianPrior.example()
    generator = torch.Generator().manual_seed(0)
    one = prior.mean + prior.covariance_product(torch.randn(1, 32, 32, generator=generator), "sqrt")
    x = 0.5 * one.expand(8, -1, -1) + 0.5 * torch.randn(8, 32, 32, generator=generator)
    alone, together = prior.denoise(x, 0.5), Coupled(prior, 1.0).denoise(x, 0.5)
    assert float((together - one).square().mean() / (alone - one).square().mean()) < 0.7


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight):
    with pytest.raises(UsageError, match="coupling"):
        Coupled(GaussianPrior.example(), weight)
