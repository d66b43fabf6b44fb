"""Noise models: how data scatter around A x, and with which precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ctflow.errors import ProtocolError
from ctflow.system.randomness import normal

__all__ = ["Gaussian", "Poisson"]


@runtime_checkable
class Noise(Protocol):
    """What a problem needs to know about its noise.

    Shapes: data (*batch, rows, views, bins), dimensionless; or images (*batch, Z, Y, X), 1/mm.

    Examples:
        >>> import ctflow as ct
        >>> isinstance(ct.Poisson(photons=1e5), ct.Noise)
        True
    """

    def sample(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Noisy data of the same shape."""
        ...

    def precision(self, y: Tensor) -> Tensor:
        """One over the variance of each datum, broadcastable to y."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """White noise of one standard deviation.

    Args:
        sigma: standard deviation, in the unit of the data: dimensionless for line integrals, 1/mm for images.

    Raises:
        ProtocolError: sigma is not positive.

    Examples:
        >>> import ctflow as ct
        >>> hu = 20.0
        >>> noise = ct.Gaussian(sigma=hu / 1000 * ct.units.MU_WATER)  # of images in 1/mm
        >>> print(f"{noise.sigma:.3g} / mm")
        0.000384 / mm
    """

    sigma: float

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ProtocolError(
                f"sigma {self.sigma} must be positive; noiseless data need one too, say 1e-3 of their size"
            )

    def sample(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Data with noise added, shaped like `clean`."""
        return clean + self.sigma * normal(clean.shape, generator).to(clean)

    def precision(self, y: Tensor) -> Tensor:
        """1 / sigma², a scalar tensor."""
        return torch.tensor(self.sigma**-2, dtype=y.dtype, device=y.device)

    @classmethod
    def example(cls) -> Gaussian:
        """One tenth of a line integral of 1."""
        return cls(0.1)


@dataclass(frozen=True)
class Poisson:
    """Transmission noise: photons counted behind the object, then the logarithm.

    counts ~ Poisson(photons · exp(-A x)) + N(0, electronic²),  y = -ln(max(counts, 1/2) / photons).
    Counts below one half, where the logarithm has no value, are set to one half. The fit is the second-order
    expansion of the likelihood: least squares with weights counts² / (counts + electronic²).

    Args:
        photons: photons per bin without an object.
        electronic: standard deviation of the detector's noise, in photons.

    Raises:
        ProtocolError: photons is not positive or electronic is negative.

    References:
        Sauer and Bouman, IEEE Trans. Signal Process. 41 (1993), eq. 9 (the expansion);
        Thibault et al., Proc. SPIE 6065 (2006) (electronic noise).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> y = torch.tensor([0.0, 2.0, 4.0])  # line integrals
        >>> ct.Poisson(photons=1e5).precision(y).round()  # 1 / variance: the photons behind the object
        tensor([100000.,  13534.,   1832.])
    """

    photons: float = 1e5
    electronic: float = 0.0

    def __post_init__(self) -> None:
        if not self.photons > 0 or self.electronic < 0:
            raise ProtocolError(
                f"photons {self.photons} must be positive and electronic noise {self.electronic} not negative"
            )

    def sample(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Noisy line integrals, shaped like `clean`."""
        expected = self.photons * torch.exp(-clean.double()).to(generator.device)
        counts = torch.poisson(expected, generator=generator)
        counts = counts + self.electronic * normal(counts.shape, generator)
        return -torch.log(counts.clamp_min(0.5) / self.photons).to(clean)

    def precision(self, y: Tensor) -> Tensor:
        """Expected counts² / (counts + electronic²) of every ray, shaped like y."""
        counts = self.photons * torch.exp(-y)
        return counts**2 / (counts + self.electronic**2)

    @classmethod
    def example(cls) -> Poisson:
        """A usual dose, and a detector whose electronic noise matters behind dense objects."""
        return cls(1e5, electronic=10.0)
