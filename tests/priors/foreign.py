"""The best network of any convention for one Gaussian, in closed form."""

from __future__ import annotations

import math

import torch
from torch import nn

from ctflow.priors import GaussianPrior
from ctflow.priors.gaussian import filtered

TRUTH = GaussianPrior(torch.logspace(0.5, -3, 64), mean=0.3)


class Oracle(nn.Module):
    """The best network of a convention for the Gaussian `TRUTH` in another range w = gain u + offset.

    Written from each toolkit's own equations: path and clock as there, levels found from the clock alone.
    """

    def __init__(self, level_of_clock, path, target, gain, offset, *, time_first=False, variance=False):
        super().__init__()
        self.level_of_clock, self.path, self.target = level_of_clock, path, target
        self.gain, self.offset, self.time_first, self.variance = gain, offset, time_first, variance

    def forward(self, first, second):
        y, time = (second, first) if self.time_first else (first, second)
        assert y.ndim == 4
        assert y.shape[1] == 1
        assert time.shape == (len(y),)
        sigma = self.level_of_clock(float(time[0].double()))
        a, b = self.path(sigma)
        y = y.double()
        S = TRUTH.eigenvalues(*y.shape[-2:]) * self.gain**2
        mean = self.gain * TRUTH.mean + self.offset
        w = mean + filtered(y - a * mean, a * S / (a**2 * S + b**2))
        z = (y - a * w) / b
        out = {"w": w, "z": z, "w - z": w - z, "z - w": z - w, "a z - b w": a * z - b * w}[self.target]
        return torch.cat([out, 0 * out], 1).float() if self.variance else out.float()


def straight(sigma):
    return 1 / (1 + sigma), sigma / (1 + sigma)


def spherical(sigma):
    return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)


def additive(sigma):
    return 1.0, sigma


def draw(t, seed=0, size=24):
    generator = torch.Generator().manual_seed(seed)
    u = TRUTH.mean + TRUTH.covariance_product(torch.randn(2, 1, size, size, generator=generator), "sqrt")
    return t * u + (1 - t) * torch.randn(u.shape, generator=generator)
