"""The closed-form Gaussian-mixture flow prior, whose posterior is not Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow.priors._base import HU_CENTRE, HU_WIDTH, Prior
from ctflow.system.devices import available_device
from ctflow.system.randomness import normal, seeded
from ctflow.units import MU_WATER

__all__ = ["MixturePrior"]


class MixturePrior(Prior):
    """Images u ~ Σ_k weights_k N(means_k, variances_k I).

    D(x, t) = Σ_k p(k | x) [m_k + t s_k / (t² s_k + (1 - t)²) (x - t m_k)] in closed form.

    Shapes: x (*batch, Z, Y, X), network range.

    Args:
        means: (K, Z, Y, X).
        variances: variance per pixel of every component, (K,).
        weights: probabilities, (K,); equal by default.
        mu_water: attenuation of water, 1/mm.
        hu_centre: HU where u = 0.
        hu_width: HU per unit of u.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> means = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
        >>> prior = ct.MixturePrior(means, variances=torch.tensor([0.01, 0.01]))
        >>> prior.denoise(torch.full((1, 4, 4), 0.4), t=0.5).mean().round(decimals=2)  # nearer to 1 than to 0
        tensor(0.9900)
    """

    name = "mixture"

    def __init__(
        self,
        means: Tensor,
        variances: Tensor,
        weights: Tensor | None = None,
        mu_water: float = MU_WATER,
        hu_centre: float = HU_CENTRE,
        hu_width: float = HU_WIDTH,
    ) -> None:
        super().__init__(mu_water, hu_centre, hu_width)
        self.means, self.variances = means, variances
        self.weights = torch.full_like(variances, 1 / len(variances)) if weights is None else weights
        self.mean = torch.einsum("k,kzyx->zyx", self.weights, means)

    def to(self, device: str | torch.device) -> MixturePrior:
        """Move the images, their variances and weights to a device."""
        device = available_device(device)
        for name in ("means", "variances", "weights", "mean"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def responsibilities(self, x: Tensor, t: float) -> Tensor:
        """p(k | x_t = x), (*batch, K, 1, 1, 1)."""
        spread = t**2 * self.variances + (1 - t) ** 2
        distance = ((x.unsqueeze(-4) - t * self.means) ** 2).sum(dim=(-3, -2, -1))
        pixels = self.means[0].numel()
        logits = self.weights.log() - distance / (2 * spread) - pixels / 2 * spread.log()
        return logits.softmax(-1)[..., None, None, None]

    def _denoise(self, x: Tensor, t: float) -> Tensor:
        gain = (t * self.variances / (t**2 * self.variances + (1 - t) ** 2))[:, None, None, None]
        each = self.means + gain * (x.unsqueeze(-4) - t * self.means)
        return (self.responsibilities(x, t) * each).sum(-4)

    def residual_variance(self, t: float) -> float:
        """Mean squared error per pixel if the component is known, a lower bound of r_t², network range."""
        noise = (1 - t) ** 2
        error = self.variances * noise / (t**2 * self.variances + noise)
        return float((self.weights * error).sum())

    @classmethod
    def example(cls) -> MixturePrior:
        """Three images so close together that the bound of the error is nearly the error."""
        means = 0.2 * normal((3, 1, 16, 16), seeded(0))
        return cls(means, torch.tensor([0.1, 0.2, 0.3]))
