"""A flow prior in the latent space of an autoencoder, whose decoder turns latents into images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ctflow.errors import UsageError
from ctflow.priors._base import HU_CENTRE, HU_WIDTH, Prior
from ctflow.priors._conventions import Convention, find_convention, flow
from ctflow.priors._manifest import HU_RANGE, HU_UNIT, HU_ZERO, NAME, SPACINGS
from ctflow.priors.foreign import _NOISIEST, for_evaluation, into_range, padded_denoise, probe
from ctflow.system.devices import available_device
from ctflow.tables import Real
from ctflow.units import MU_WATER

__all__ = ["LatentPrior"]


class LatentPrior(Prior):
    """Latents l of slices, l = scaling · (E(w) - shift), with a network that denoises latents.

    x_t = (1 - t) z + t l lives in latent space; `decode` gives the image. A problem in latents, A ∘ decode,
    is not linear, so that among the methods only DPS, which needs nothing but gradients, accepts such a
    prior; `sample`, `encode` and `decode` need no method.

    Shapes: latents (*batch, channels, Y / factor, X / factor); images (*batch, 1, Y, X), network range u.

    Args:
        network: denoises latents; called with latents (batch, channels, ...) and times (batch,).
        convention: name or `Convention` of the network.
        autoencoder: `encode` and `decode` of images (batch, 1, Y, X): AutoencoderKL of diffusers or MONAI, or
            any pair that returns tensors. The mean of the encoder's normal distribution is used.
        hu_centre: HU where the autoencoder's images are 0.
        hu_width: HU per unit of the autoencoder's images.
        mu_water: attenuation of water, 1/mm.
        scaling: factor from the autoencoder's latents to those of the network.
        latent_shift: subtracted from the autoencoder's latents before scaling.
        residual: standard deviation of latents about their mean, for `residual_variance`.
        spacings_mm: least and greatest pixel spacing of the training images, mm.
        hu_range: least and greatest HU of the training images.
        name: name in reports.

    Raises:
        UsageError: the convention is unknown, or network and autoencoder do not fit together.

    References:
        Rombach et al., CVPR 2022, section 3.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.LatentPrior.example()  # two by two pixels folded into four channels
        >>> latents = prior.sample(prior.latent_shape((1, 16, 16)))
        >>> latents.shape, prior.decode(latents).shape
        (torch.Size([4, 8, 8]), torch.Size([1, 16, 16]))
    """

    latent = True

    def __init__(
        self,
        network: Callable[..., Any],
        convention: str | Convention,
        autoencoder: Any,
        hu_centre: Annotated[float, HU_ZERO],
        hu_width: Annotated[float, HU_UNIT],
        *,
        mu_water: float = MU_WATER,
        scaling: Annotated[float, Real(0, 1e6, above=True)] = 1.0,
        latent_shift: float = 0.0,
        residual: Annotated[float, Real(0, 1e6, above=True)] = 1.0,
        spacings_mm: Annotated[tuple[float, float], SPACINGS] | None = None,
        hu_range: Annotated[tuple[float, float], HU_RANGE] | None = None,
        name: Annotated[str, NAME] = "latent",
    ) -> None:
        super().__init__(mu_water)
        self.network, self.autoencoder = for_evaluation(network), for_evaluation(autoencoder)
        self.convention, self.name = find_convention(convention), name
        self.gain, self.offset = into_range(hu_centre, hu_width)
        self.scaling, self.latent_shift, self.residual = scaling, latent_shift, residual
        self.spacings_mm, self.hu_range = spacings_mm, hu_range
        latents = probe(autoencoder, self.encode, (1, 64, 64))
        self.channels, self.factor = latents.shape[-3], 64 // latents.shape[-1]
        found = probe(network, lambda noise: self._denoise(noise, _NOISIEST), tuple(latents.shape[1:]))
        self.mean = found[0].mean((-2, -1), keepdim=True)

    def to(self, device: str | torch.device) -> LatentPrior:
        """Move the weights of network and autoencoder to a device."""
        device = available_device(device)
        for part in (self.network, self.autoencoder):
            if isinstance(part, nn.Module):
                part.to(device)
        self.mean = torch.as_tensor(self.mean).to(device)
        return self

    def _denoise(self, x: Tensor, t: float) -> Tensor:
        latents = x.reshape(-1, *x.shape[-3:]) / t
        return padded_denoise(self.network, self.convention, latents, (1 - t) / t, 1).reshape(x.shape)

    def residual_variance(self, t: float) -> float:
        """Mean squared error per latent entry of a white prior with the declared deviation, network range."""
        return (1 - t) ** 2 * self.residual**2 / (t**2 * self.residual**2 + (1 - t) ** 2)

    def encode(self, u: Tensor) -> Tensor:
        """Latents of images.

        Args:
            u: (*batch, 1, Y, X), network range.

        Returns:
            (*batch, channels, Y / factor, X / factor).
        """
        found = self.autoencoder.encode(self.gain * u.reshape(-1, 1, *u.shape[-2:]) + self.offset)
        if hasattr(found, "latent_dist"):  # diffusers
            found = found.latent_dist.mode()
        mean = found[0] if isinstance(found, tuple) else found  # MONAI gives the deviation too
        latents: Tensor = self.scaling * (mean - self.latent_shift)
        return latents.reshape(*u.shape[:-3], *latents.shape[-3:])

    def decode(self, x: Tensor) -> Tensor:
        """Images of latents, (*batch, channels, ...) -> (*batch, 1, Y, X), network range u."""
        found = self.autoencoder.decode(x.reshape(-1, *x.shape[-3:]) / self.scaling + self.latent_shift)
        w = found if isinstance(found, Tensor) else found.sample
        return ((w - self.offset) / self.gain).reshape(*x.shape[:-3], 1, *w.shape[-2:])

    def decode_vjp(self, x: Tensor, cotangent: Callable[[Tensor], Tensor]) -> Tensor:
        """Transpose of the decoder's Jacobian at x, applied to `cotangent(decode(x))`; shaped like x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            image = self.decode(x)
        (pulled,) = torch.autograd.grad(image, x, cotangent(image.detach()))
        return pulled

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of images (*batch, 1, Y, X).

        Raises:
            UsageError: an image has several slices, or a size that is not a multiple of `factor`.
        """
        planes, rows, columns = shape[-3:]
        if planes != 1 or rows % self.factor or columns % self.factor:
            raise UsageError(
                f"prior '{self.name}' takes single slices whose sides are multiples of {self.factor}, "
                f"not {planes} of {rows} × {columns}; crop or pad them"
            )
        return (*shape[:-3], self.channels, rows // self.factor, columns // self.factor)

    @classmethod
    def example(cls) -> LatentPrior:
        """White latents, two by two pixels folded into four channels."""
        return cls(_velocity, flow(), _Fold(), HU_CENTRE, HU_WIDTH)


class _Fold:
    def encode(self, w: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(w, 2)

    def decode(self, w: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(w, 2)


def _velocity(y: Tensor, time: Tensor) -> Tensor:
    t = time[:, None, None, None]
    return (2 * t - 1) / (t**2 + (1 - t) ** 2) * y
