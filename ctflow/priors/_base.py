"""Base class of flow priors: a denoiser on the straight path from noise (t = 0) to image (t = 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ctflow.errors import UsageError
from ctflow.priors._manifest import require_unit
from ctflow.system.counters import clock, count
from ctflow.system.devices import available_device
from ctflow.system.randomness import normal, seeded
from ctflow.units import MU_WATER

HU_CENTRE, HU_WIDTH = -300.0, 500.0
"""Network range u = (HU - centre) / width: its standard deviation over body and air is about one."""
PIXELS_AT_ONCE = 2**20
"""Largest number of pixels in one call of a network, sixteen slices of 256²; it bounds the memory used."""
_FAR_SPACING = 1.25  # beyond the training spacings, structures have sizes that a network has not seen
_FAR_HU = 50.0  # air in files goes down to -1024 HU, and noise below that


class Prior:
    """Images u whose noisy versions x_t = (1 - t) z + t u, z ~ N(0, I), can be denoised.

    A subclass writes `_denoise`. The network range is tied to attenuation by
    mu = scale · u + shift, in 1/mm.

    Shapes: x (*batch, Z, Y, X), network range, each slice separately; t a number in [0, 1).

    Args:
        mu_water: attenuation of water, 1/mm, of the images to reconstruct.
        hu_centre: HU where u = 0.
        hu_width: HU per unit of u.

    Raises:
        UsageError: the HU are not finite, or beyond the bounds of a manifest.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> class White(ct.Prior):
        ...     name = "white"
        ...     def _denoise(self, x, t):  # u ~ N(0, 1)
        ...         return t / (t**2 + (1 - t) ** 2) * x
        ...     def residual_variance(self, t):
        ...         return (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
        ...
        >>> prior = White()
        >>> prior.denoise(torch.ones(1, 2, 2), t=0.5)[0, 0], prior.residual_variance(0.5)
        (tensor([1., 1.]), 0.5)
    """

    name = "unnamed"
    sha256 = ""
    latent = False
    spacings_mm: tuple[float, float] | None = None
    hu_range: tuple[float, float] | None = None

    def __init__(
        self, mu_water: float = MU_WATER, hu_centre: float = HU_CENTRE, hu_width: float = HU_WIDTH
    ) -> None:
        require_unit(hu_centre, hu_width)
        self.mean: float | Tensor = 0.0
        self.scale = mu_water * hu_width / 1000
        self.shift = mu_water * (1 + hu_centre / 1000)

    def __repr__(self) -> str:
        spans = ((self.hu_range, "{:g} to {:g} HU"), (self.spacings_mm, "pixels of {:g} to {:g} mm"))
        trained = "".join(f", {words.format(*span)}" for span, words in spans if span)
        return f"<{type(self).__name__} '{self.name}'{trained}>"

    def _denoise(self, x: Tensor, t: float) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no _denoise")

    def _denoise_each(self, x: Tensor, times: list[float]) -> Tensor:
        """Denoise every entry of the first dimension at its own time; networks override it with one batch."""
        return torch.stack([self._denoise(one, t) for one, t in zip(x, times, strict=True)])

    def error_spectrum(self, t: float, rows: int, columns: int) -> Tensor:
        """Power spectrum of the denoiser's error at time t, relative to its mean over all frequencies.

        White, unless the prior knows better.

        Returns:
            At the frequencies of `torch.fft.rfft2`: (rows, columns // 2 + 1), dimensionless, float64.
        """
        return torch.ones(rows, columns // 2 + 1, dtype=torch.float64)

    def residual_variance(self, t: float) -> float:
        """Mean squared error per pixel of the denoiser at time t, in network range: r_t²."""
        raise TypeError(f"{type(self).__name__} defines no residual_variance")

    def to(self, device: str | torch.device) -> Prior:
        """Move the weights to a device; closed forms hold none and follow the image."""
        available_device(device)
        return self

    def mismatches(self, spacing_mm: float | None = None, hu: Tensor | None = None) -> list[str]:
        """Warnings about images whose spacing or values differ from those that the prior was trained on.

        Args:
            spacing_mm: pixel spacing, mm.
            hu: their values, HU, any shape.
        """
        found = []
        if self.spacings_mm and spacing_mm is not None:
            least, most = self.spacings_mm
            if not least / _FAR_SPACING <= spacing_mm <= most * _FAR_SPACING:
                found.append(
                    f"the pixels are {spacing_mm:.3g} mm and prior '{self.name}' was trained on "
                    f"{least:.3g} to {most:.3g} mm; its images are not to be trusted at this spacing"
                )
        if self.hu_range and hu is not None:
            least, most = self.hu_range
            outside = float(((hu < least - _FAR_HU) | (hu > most + _FAR_HU)).double().mean())
            if outside:
                found.append(
                    f"{100 * outside:.2g} % of the pixels lie outside the {least:g} to {most:g} HU that "
                    f"prior '{self.name}' was trained on, from {float(hu.min()):g} to "
                    f"{float(hu.max()):g} HU; it has not seen such values"
                )
        return found

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the denoised variable for images of a shape; the same, except for a `LatentPrior`."""
        return shape

    def decode(self, x: Tensor) -> Tensor:
        """Images of the denoised variable, (*batch, Z, Y, X), network range; for a `LatentPrior` decoded."""
        return x

    def decode_vjp(self, x: Tensor, cotangent: Callable[[Tensor], Tensor]) -> Tensor:
        """Transpose of the decoder's Jacobian at x, applied to `cotangent(decode(x))`; shaped like x."""
        return cotangent(x)

    def denoise(self, x: Tensor, t: float) -> Tensor:
        """Expected image E[u | x_t = x] by one network evaluation; at t = 0 it is the mean and free.

        Raises:
            UsageError: a gradient is asked for and the prior has none, or its denoiser changes the shape.
        """
        if t <= 0:
            return torch.zeros_like(x) + self.mean
        count("network")
        with clock("network"):
            denoised = self._denoise(x, t)
        if denoised.shape != x.shape:
            raise UsageError(
                f"prior '{self.name}' made {tuple(denoised.shape)} of images {tuple(x.shape)}; its denoiser "
                "must keep their shape"
            )
        if x.requires_grad and torch.is_grad_enabled() and not denoised.requires_grad:
            raise UsageError(
                f"the method needs the gradient of prior '{self.name}', which has none; make its "
                "denoiser differentiable by torch, or use a method without backward passes, such as "
                "ms-flow"
            )
        return denoised

    def denoise_each(self, x: Tensor, times: list[float]) -> Tensor:
        """Expected images of x (n, *batch, Z, Y, X), each of the n at its own time, as one batch.

        Counts as many network evaluations as there are times above 0.
        """
        later = [k for k, t in enumerate(times) if t > 0]
        denoised = torch.zeros_like(x) + self.mean
        if later:
            count("network", len(later))
            with clock("network"):
                denoised[later] = self._denoise_each(x[later], [times[k] for k in later])
        return denoised

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """Velocity of the flow, E[u - z | x_t = x] = (E[u | x] - x) / (1 - t)."""
        return (self.denoise(x, t) - x) / (1 - t)

    def denoise_vjp(
        self, x: Tensor, t: float, cotangent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The denoised image D, and its transposed Jacobian applied to `cotangent(D)` by one backward pass.

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

    def coarsened(self, factor: int) -> Prior | None:
        """The prior of the same images in pixels of `factor` times the side; networks of ctflow have one.

        Returns:
            None where the prior is of pixels of one size alone.
        """
        return None

    def sample(self, shape: tuple[int, ...], steps: int = 30, seed: int = 0) -> Tensor:
        """Draw images by Heun's method on a grid that is even in the logarithm of (1 - t) / t.

        Args:
            shape: (*batch, Z, Y, X).
            steps: number of intervals; two evaluations each, one in the last.
            seed: seed of the initial noise.

        Returns:
            Images in network range.

        References:
            Karras et al., NeurIPS 2022, algorithm 1 (the method, on the straight path).
        """
        x = normal(shape, seeded(seed))
        sigmas = torch.logspace(1.5, -2.0, steps, dtype=torch.float64)
        grid = [0.0, *(1 / (1 + sigmas)).tolist(), 1.0]
        for t, u in pairwise(grid):
            slope = self.velocity(x, t)
            ahead = x + (u - t) * slope
            x = ahead if u == 1 else x + (u - t) * (slope + self.velocity(ahead, u)) / 2
        return x

    @classmethod
    def example(cls) -> Prior:
        """Make a small instance for images (1, 16, 16), on which `ctflow.testing` checks its laws."""
        raise TypeError(f"{cls.__name__} defines no example")


def error_at(table: list[tuple[float, float]], sigma: float) -> float:
    """Interpolate the root mean squared error of a denoiser at a noise level, both in network range."""
    levels, errors = zip(*table, strict=True)
    # Below the table the error falls with the noise; above it, it stays what it is.
    known = math.exp(np.interp(math.log(max(sigma, 1e-9)), np.log(levels), np.log(errors)))
    return float(known * min(1.0, max(sigma, 1e-9) / levels[0]))
