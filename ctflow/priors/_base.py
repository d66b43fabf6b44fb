"""What every flow prior is: a denoiser on the straight path from noise (t = 0) to image (t = 1)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ctflow.tally import clock, count
from ctflow.units import MU_WATER

HU_CENTRE, HU_WIDTH = -300.0, 500.0
"""Network range u = (HU - centre) / width: its standard deviation over body and air is about one."""


class Prior:
    """Images u whose noisy versions x_t = (1 - t) z + t u, z ~ N(0, I), can be denoised.

    A subclass writes `_denoise`. The network range is tied to attenuation by
    mu = scale · u + shift, in 1/mm.

    Shapes: x (*batch, Z, Y, X), network range, each slice on its own; t a number in [0, 1).

    Args:
        mu_water: attenuation of water, 1/mm, of the images to reconstruct.
        hu_centre: HU where u = 0.
        hu_width: HU per unit of u.
    """

    name = "unnamed"
    sha256 = ""

    def __init__(
        self, mu_water: float = MU_WATER, hu_centre: float = HU_CENTRE, hu_width: float = HU_WIDTH
    ) -> None:
        self.mean: float | Tensor = 0.0
        self.scale = mu_water * hu_width / 1000
        self.shift = mu_water * (1 + hu_centre / 1000)

    def _denoise(self, x: Tensor, t: float) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no _denoise")

    def residual_variance(self, t: float) -> float:
        """Mean squared error per pixel of the denoiser at time t, in network range: r_t²."""
        raise TypeError(f"{type(self).__name__} defines no residual_variance")

    def denoise(self, x: Tensor, t: float) -> Tensor:
        """Expected image E[u | x_t = x]: one network evaluation; at t = 0 it is the mean and costs none."""
        if t <= 0:
            return torch.zeros_like(x) + self.mean
        count("network")
        with clock("network"):
            return self._denoise(x, t)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """Velocity of the flow, E[u - z | x_t = x] = (E[u | x] - x) / (1 - t)."""
        return (self.denoise(x, t) - x) / (1 - t)

    def denoise_vjp(
        self, x: Tensor, t: float, cotangent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The denoised image D and its Jacobian's transpose applied to `cotangent(D)`: one backward pass.

        Returns:
            D and (dD/dx)ᵀ cotangent(D), both shaped like x.
        """
        count("backward")
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = self.denoise(x, t)
        pull = cotangent(denoised.detach())
        with clock("network"):
            (pulled,) = torch.autograd.grad(denoised, x, pull)
        return denoised.detach(), pulled

    def sample(self, shape: tuple[int, ...], steps: int = 30, seed: int = 0) -> Tensor:
        """Draw images by Heun's method on a grid that is even in the logarithm of (1 - t) / t.

        Args:
            shape: (*batch, Z, Y, X).
            steps: intervals; two evaluations each, one in the last.
            seed: seed of the start noise.

        Returns:
            Images in network range.

        References:
            Karras et al., NeurIPS 2022, algorithm 1 (the method, on the straight path).
        """
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        sigmas = torch.logspace(1.5, -2.0, steps, dtype=torch.float64)
        grid = [0.0, *(1 / (1 + sigmas)).tolist(), 1.0]
        for t, u in pairwise(grid):
            slope = self.velocity(x, t)
            ahead = x + (u - t) * slope
            x = ahead if u == 1 else x + (u - t) * (slope + self.velocity(ahead, u)) / 2
        return x

    @classmethod
    def example(cls) -> Prior:
        """A small instance for images (1, 16, 16); the laws in `ctflow.testing` hold for it."""
        raise TypeError(f"{cls.__name__} defines no example")
