"""Blind problems: one number of the operator, the axis's offset or a blur's width, found from the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ctflow.errors import UsageError
from ctflow.priors import Prior
from ctflow.problem import InverseProblem
from ctflow.samplers._start import tikhonov

__all__ = ["Family", "Found", "find_parameter"]

Family = Callable[[float], InverseProblem]
"""The problem for every value of the parameter: the same data and weights, another operator."""

_APART = 0.02  # of the interval: step of the central difference
_BOLDEST = 0.25  # of the interval: longest step at once
_MOST_KEPT = 0.9  # share of a difference between two guesses that may be left after a round
_SURE = 3.0  # deviations that half of the interval must exceed


@dataclass(frozen=True)
class Found:
    """A parameter that was found.

    Args:
        value: the parameter, in the unit of the family's argument.
        moved: how far the last round moved it: below the tolerance, unless the rounds ran out. It says
            nothing of a bias.
        evaluations: network evaluations that it took.
    """

    value: float
    moved: float
    evaluations: int


@torch.no_grad()
def find_parameter(
    family: Family,
    prior: Prior,
    low: float,
    high: float,
    *,
    tolerance: float | None = None,
    rounds: int = 7,
    states: int = 4,
    trust: float = 20.0,
    first_noise: float = 1.0,
    last_noise: float = 0.06,
    prox_iterations: int = 15,
) -> Found:
    """Find the θ of A_θ that fits the data and an image of the prior; then solve `family(θ)` by any method.

    A round T(θ) starts at the Tikhonov image and goes over falling noise levels σ: denoise, c = D(x; σ),
    whose error has about the variance V = trust · r(σ)²; take one Gauss-Newton step on the misfit that is
    left when the image may move by so much,
        min_x ½ |A_θ x - y|²_W + |x - c|² / (2 V) = ½ (y - A_θ c)ᵀ M (y - A_θ c),
        θ ← θ + dᵀM (y - A_θ c) / dᵀM d,  d = ∂A_θ c / ∂θ,  M = (W⁻¹ + V A_θ A_θᵀ)⁻¹;
    and x = the prox of the data at c under the new θ. With M = W the steps stop far from the solution, since
    the image has taken up the error of θ. From two guesses, secants find the θ that a round leaves alone.
    Where a round leaves all guesses alone, the image makes up for θ, and the data cannot tell it: two views
    of an axis that is off are those of an image that is moved.

        beam = problem.A.beam  # with bins, whose number must not follow the shift
        found = find_parameter(
            lambda bins: replace(problem, A=Radon(volume, replace(beam, shift_bins=bins), "joseph")),
            prior, -4, 4)

    Measured on two patients: with 20 and 60 views a shift of 1.7 bins is found to 0.015 bins, and MS-Flow's
    image is the one of the known shift within 0.03 dB. The width of a Gaussian blur is biased towards some 2
    pixels: 2.0 is found to 0.08, which cost one of them 0.9 dB, 3.5 as 3.2 and 0.8 as 1.0.

    Shapes: y of the problems (*batch, ...); all images of the batch share the parameter.

    Args:
        family: the problem for a value; called for values between the bounds.
        prior: flow prior.
        low: smallest value, in the parameter's unit.
        high: largest value; the first guesses are at a quarter and three quarters.
        tolerance: what a round may still move, in the parameter's unit; by default (high - low) / 200.
        rounds: at most so many, 2 at least.
        states: noise levels of a round, even in log σ; a network evaluation, a data prox and another linear
            system of its size each.
        trust: V over r(σ)².
        first_noise: the first σ, network range.
        last_noise: the last σ, network range.
        prox_iterations: conjugate-gradient steps of each.

    Raises:
        UsageError: a number lies outside its range, or the prior is latent; the image makes up for the
            parameter, or its misfit stays in the noise between the bounds; or what is found is a bound.

    References:
        Golub and Pereyra, SIAM J. Numer. Anal. 10 (1973) (variable projection: the image is eliminated before
        the step). Differs: it is eliminated around what a denoiser expects.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> from ctflow.datasets.phantoms import thorax
        >>> grid = ct.VolumeGeometry((1, 32, 32), (12.0, 12.0, 12.0))  # (Z, Y, X), mm
        >>> def measured(shift):
        ...     return ct.Radon(grid, ct.ParallelBeam(angles=40, bins=51, pitch=12.0, shift_bins=shift))
        ...
        >>> y = ct.simulate(measured(1.5), thorax().rasterise(grid), ct.Gaussian(sigma=0.01)).y
        >>> prior = ct.GaussianPrior(torch.logspace(2, -4, 16))  # or ct.FlowPrior.load("ct-256")
        >>> family = lambda shift: ct.InverseProblem(measured(shift), y, ct.Gaussian(sigma=0.01))
        >>> found = ct.find_parameter(family, prior, -4.0, 4.0)
        >>> bool(abs(found.value - 1.5) < 0.2), found.evaluations
        (True, 12)
    """
    numbers = states, trust, last_noise, prox_iterations
    if not (low < high and rounds >= 2 and min(numbers) > 0 and first_noise >= last_noise):
        raise UsageError(
            f"a search from {low} to {high} in {rounds} rounds needs low < high, rounds >= 2, states, trust, "
            "noise and prox_iterations above 0, and first_noise >= last_noise; correct them"
        )
    if prior.latent:
        raise UsageError(
            f"a search needs a linear operator, and in the latent space of prior '{prior.name}' it follows a "
            "decoder; take a prior of images"
        )
    tolerance = (high - low) / 200 if tolerance is None else tolerance
    levels = np.geomspace(first_noise, last_noise, states).tolist()
    search = _Search(family, prior, low, high, trust, prox_iterations)
    last, value = low + (high - low) / 4, high - (high - low) / 4
    led_last, led = search.round(last, levels), search.round(value, levels)
    kept = (led - led_last) / (value - last)
    if kept > _MOST_KEPT:
        raise UsageError(
            f"the data cannot tell the parameter: {kept:.2f} of a difference between two guesses is left "
            "after a round, since the image makes up for it; measure it, or give more views"
        )
    done = 2
    while abs(led - value) >= tolerance and done < rounds:
        slope = min((led - led_last) / (value - last), _MOST_KEPT) if value != last else 0.0
        last, led_last = value, led
        value = search.within(value + (led - value) / (1 - slope))
        led, done = search.round(value, levels), done + 1
    if not low + tolerance < led < high - tolerance:
        raise UsageError(f"the parameter {led:.4g} is at a bound of {low:.4g} to {high:.4g}; widen them")
    return Found(led, abs(led - value), done * states)


@dataclass(frozen=True)
class _Search:
    family: Family
    prior: Prior
    low: float
    high: float
    trust: float
    iterations: int

    def round(self, value: float, levels: list[float]) -> float:
        """The value after one pass over the noise levels from the Tikhonov image."""
        prior, information = self.prior, 0.0
        image = tikhonov(self._inside(value), prior, 2 * self.iterations)
        for noise in levels:
            t = 1 / (1 + noise)
            image, variance = prior.denoise(t * image, t), self.trust * prior.residual_variance(t)
            step, information = self._step(image, value, variance)
            value = self.within(value + step)
            image = self._inside(value).prox(image, variance, self.iterations)
        deviation = information**-0.5 if information > 0 else math.inf
        if _SURE * deviation > (self.high - self.low) / 2:
            raise UsageError(
                f"the data hardly depend on the parameter: its deviation is {deviation:.3g} and the bounds "
                f"are {self.low:.4g} to {self.high:.4g}; measure it, or give data that depend on it"
            )
        return value

    def within(self, value: float) -> float:
        """The nearest value between the bounds."""
        return min(max(value, self.low), self.high)

    def _inside(self, value: float) -> InverseProblem:
        return self.family(value).rescaled(self.prior.scale, self.prior.shift)

    def _step(self, image: Tensor, value: float, variance: float) -> tuple[float, float]:
        """The step of Gauss and Newton, and the information dᵀM d on the parameter."""
        apart = _APART * (self.high - self.low)
        below, above = self.within(value - apart), self.within(value + apart)
        here, x = self.family(value), self.prior.scale * image + self.prior.shift
        slope = (self.family(above).A(x) - self.family(below).A(x)) / (above - below)
        A = self.prior.scale * here.A
        explained = A(replace(here, A=A, y=slope).prox(torch.zeros_like(x), variance, self.iterations))
        weighted = here.W * (slope - explained)  # M d, by the identity of Woodbury
        information = float((weighted * slope).sum())
        if not information > 0:
            return 0.0, 0.0
        boldest = _BOLDEST * (self.high - self.low)
        step = float((weighted * (here.y - here.A(x))).sum()) / information
        return min(max(step, -boldest), boldest), information
