"""Laws of flow priors."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from ctflow.priors import Prior
from ctflow.system.counters import counting
from ctflow.testing._finding import Finding, Laws, check_laws, difference, white_noise

_TIMES = (0.2, 0.5, 0.8, 0.95)


def check_prior(
    prior: Prior, shape: tuple[int, int, int] = (1, 16, 16), images: Tensor | None = None
) -> list[Finding]:
    """Check the laws of a flow prior, the denoiser of a straight path from noise to image.

    Velocity and denoiser are consistent; at t = 0 the result is the mean; near t = 1 images are unchanged; a
    batch equals a loop; the backward pass is the transposed Jacobian, by finite differences; the error stated
    by `residual_variance` falls with t, never exceeds that of doing nothing, and agrees with the measured
    one.

    Args:
        prior: the prior, any network range.
        shape: (Z, Y, X) of the test images.
        images: images of the prior's kind, (n, Z, Y, X), network range; samples of the prior by default. On
            samples the stated error is compared with the measured one only for closed forms, recognised by
            their symmetric Jacobian, since a network draws other images than it was trained on.

    Returns:
        The figure of every law; "asymmetry of the Jacobian" is reported without a bound, since networks have
        some and an exact posterior mean has none.

    Raises:
        CheckError: a law is broken.
    """
    return check_laws(type(prior).__name__, _laws(prior, shape, images))


def _laws(prior: Prior, shape: tuple[int, int, int], images: Tensor | None) -> Laws:
    with torch.no_grad():
        u = prior.sample((8, *shape), steps=20, seed=3) if images is None else images
    yield "values that are not finite", lambda: float((~u.isfinite()).sum()), 0.0
    yield "velocity is (denoised - x) / (1 - t)", lambda: _velocity(prior, u), 1e-4
    yield "at t = 0 it is the mean", lambda: _start(prior, u), 1e-6
    yield "near t = 1 it leaves images alone", lambda: _end(prior, u), 2.0
    yield "batch is loop", lambda: _batch_against_loop(prior, u), 1e-4
    yield "input changed", lambda: _mutation(prior, u), 0.0
    yield "repeatable", lambda: _spread(prior, u), 0.0
    yield "evaluations are counted", lambda: _miscounted(prior, u), 0.0
    # Central differences in float32: the step balances rounding, 1e-7 / step, against curvature, step².
    yield "vjp is the transposed Jacobian", lambda: _vjp(prior, u), 0.02
    yield "asymmetry of the Jacobian", lambda: _asymmetry(prior, u), math.inf
    yield "stated error grows with t", lambda: _growth(prior), 1e-6
    yield "stated error over that of doing nothing", lambda: _against_nothing(prior), 1.0 + 1e-6
    calibrated = images is not None or _asymmetry(prior, u) < 1e-3
    # A few thousand pixels of a discretised flow; measured 1.2 for closed forms.
    yield (
        "stated and measured error differ by",
        lambda: _miscalibration(prior, u),
        1.5 if calibrated else math.inf,
    )


def _noisy(u: Tensor, t: float, seed: int = 0) -> Tensor:
    return t * u + (1 - t) * white_noise(tuple(u.shape), seed=seed).to(u)


@torch.no_grad()
def _velocity(prior: Prior, u: Tensor) -> float:
    errors = []
    for t in _TIMES:
        x = _noisy(u, t)
        errors.append(difference(prior.velocity(x, t), (prior.denoise(x, t) - x) / (1 - t)))
    return max(errors)


@torch.no_grad()
def _start(prior: Prior, u: Tensor) -> float:
    z = white_noise(tuple(u.shape)).to(u)
    mean = torch.zeros_like(z) + prior.mean
    return max(difference(prior.denoise(z, 0.0) + 1, mean + 1), difference(prior.velocity(z, 0.0), mean - z))


@torch.no_grad()
def _end(prior: Prior, u: Tensor) -> float:
    """Change of an image by denoising noise of level (1 - t) / t, in units of that level."""
    t = 0.99
    return float((prior.denoise(_noisy(u, t), t) - u).square().mean().sqrt()) / ((1 - t) / t)


@torch.no_grad()
def _batch_against_loop(prior: Prior, u: Tensor) -> float:
    x = _noisy(u[:6], 0.5).reshape(2, 3, *u.shape[1:])
    loop = torch.stack([torch.stack([prior.denoise(image, 0.5) for image in row]) for row in x])
    return difference(prior.denoise(x, 0.5), loop)


@torch.no_grad()
def _mutation(prior: Prior, u: Tensor) -> float:
    x = _noisy(u, 0.5)
    before = x.clone()
    prior.denoise(x, 0.5)
    prior.velocity(x, 0.5)
    return float((x != before).sum())


@torch.no_grad()
def _spread(prior: Prior, u: Tensor) -> float:
    x = _noisy(u, 0.5)
    return float((prior.denoise(x, 0.5) != prior.denoise(x, 0.5)).sum())


def _miscounted(prior: Prior, u: Tensor) -> float:
    x = _noisy(u[:1], 0.5)
    with counting() as counts:
        prior.denoise(x, 0.0)
        prior.denoise(x, 0.5)
        prior.denoise_vjp(x, 0.5, lambda denoised: denoised)
    return abs(counts["network"] - 2) + abs(counts["backward"] - 1)


def _pull(prior: Prior, x: Tensor, t: float, cotangent: Tensor) -> Tensor:
    return prior.denoise_vjp(x, t, lambda _: cotangent)[1]


@torch.no_grad()
def _vjp(prior: Prior, u: Tensor) -> float:
    """Error against central differences along the gradient, where they are most sensitive."""
    errors = []
    for t in _TIMES:
        x = _noisy(u[:2], t)
        cotangent = white_noise(tuple(x.shape), seed=1).to(x)
        pulled = _pull(prior, x, t, cotangent)
        step = 0.005 * (1 - t) * x.numel() ** 0.5 * pulled / pulled.norm()
        moved = (prior.denoise(x + step, t) - prior.denoise(x - step, t)) / 2
        errors.append(abs(float((moved * cotangent).sum() / (step * pulled).sum()) - 1))
    return max(errors)


@torch.no_grad()
def _asymmetry(prior: Prior, u: Tensor) -> float:
    """Largest |aᵀ J b - bᵀ J a| / (|J a| |b|) over the times."""
    worst = 0.0
    for t in _TIMES:
        x = _noisy(u[:2], t)
        a, b = (white_noise(tuple(x.shape), seed=seed).to(x) for seed in (1, 2))
        Ja, Jb = _pull(prior, x, t, a), _pull(prior, x, t, b)
        worst = max(worst, abs(float((Ja * b - Jb * a).sum())) / float(Ja.norm() * b.norm()))
    return worst


def _growth(prior: Prior) -> float:
    errors = [prior.residual_variance(k / 100) for k in range(100)]
    return max((after - before) / errors[0] for before, after in pairwise(errors))


def _against_nothing(prior: Prior) -> float:
    """Stated error relative to that of doing nothing, which leaves the noise, ((1 - t) / t)²."""
    return max(prior.residual_variance(k / 100) * (k / (100 - k)) ** 2 for k in range(1, 100))


@torch.no_grad()
def _miscalibration(prior: Prior, u: Tensor) -> float:
    """Largest factor between the measured and the stated mean squared error over the times."""
    worst = 1.0
    for t in _TIMES:
        measured = float((prior.denoise(_noisy(u, t), t) - u).square().mean())
        ratio = measured / prior.residual_variance(t)
        worst = max(worst, ratio, 1 / max(ratio, 1e-30))
    return worst
