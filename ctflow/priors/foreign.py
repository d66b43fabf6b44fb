"""Use a network of another toolkit as flow prior, by declaring its convention and its HU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctflow.errors import UsageError
from ctflow.priors._base import HU_CENTRE, HU_WIDTH, PIXELS_AT_ONCE, Prior, error_at
from ctflow.priors._conventions import Convention, diffusion, find_convention, linear_schedule
from ctflow.priors._manifest import ERRORS, HU_RANGE, HU_UNIT, HU_ZERO, MEAN, NAME, SPACINGS, require_unit
from ctflow.system.devices import available_device
from ctflow.system.randomness import normal, seeded
from ctflow.tables import Whole
from ctflow.units import MU_WATER

__all__ = ["ForeignPrior"]

_NOISIEST = 1e-3  # the time at which the mean is evaluated: noise a thousand times the image


class ForeignPrior(Prior):
    """Any network with a declared convention as flow prior.

    Its range w is declared in HU, HU = hu_centre + hu_width · w, and is used only inside: x and t are in
    ctflow's range u for every prior, so that methods need no other settings. Noise of level (1 - t) / t in u
    has the level HU_WIDTH / hu_width · (1 - t) / t in w.

    Shapes: x (*batch, Z, Y, X), network range u, each slice separately.

    Args:
        network: called with images (batch, 1, Y, X) and times (batch,); returns images, or an object that
            holds them as `sample`. A module is set to evaluation mode and its weights get no gradient. Colour
            networks are refused, since they were not trained to denoise grey images.
        convention: name (see `CONVENTIONS`) or a `Convention`.
        hu_centre: HU where the network's images are 0: 0 for images in [-1, 1] of -1000 to 1000 HU.
        hu_width: HU per unit of the network's images: 1000 for those.
        mu_water: attenuation of water, 1/mm.
        mean: mean of every pixel, network range u; by default the network's output at the noisiest time.
        stride: rows and columns are padded to multiples of this.
        denoiser_error: pairs (noise level, root mean squared error), network range u, as `calibrate` finds
            them; by default a white prior with a standard deviation of HU_WIDTH is assumed.
        spacings_mm: least and greatest pixel spacing of the training images, mm.
        hu_range: least and greatest HU of the training images.
        name: name in reports.

    Raises:
        UsageError: the convention is unknown, the HU are impossible, or the network does not take images of
            one channel.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> from ctflow.priors import flow
        >>> def velocity(x, t):  # yours is a network; this one knows white images
        ...     t = t.reshape(-1, 1, 1, 1)
        ...     return (2 * t - 1) / (t**2 + (1 - t) ** 2) * x
        ...
        >>> prior = ct.ForeignPrior(velocity, flow(), hu_centre=0.0, hu_width=1000.0)  # of images in [-1, 1]
        >>> prior.denoise(torch.zeros(1, 8, 8), t=0.5).shape
        torch.Size([1, 8, 8])
    """

    def __init__(
        self,
        network: Callable[..., Any],
        convention: str | Convention,
        hu_centre: Annotated[float, HU_ZERO],
        hu_width: Annotated[float, HU_UNIT],
        *,
        mu_water: float = MU_WATER,
        mean: Annotated[float, MEAN] | None = None,
        stride: Annotated[int, Whole(1, 1024)] = 1,
        denoiser_error: Annotated[list[tuple[float, float]], ERRORS] | None = None,
        spacings_mm: Annotated[tuple[float, float], SPACINGS] | None = None,
        hu_range: Annotated[tuple[float, float], HU_RANGE] | None = None,
        name: Annotated[str, NAME] = "foreign",
    ) -> None:
        super().__init__(mu_water)
        self.network = for_evaluation(network)
        self.convention = find_convention(convention)
        self.gain, self.offset = into_range(hu_centre, hu_width)
        self.stride, self.name, self.denoiser_error = stride, name, denoiser_error
        self.spacings_mm, self.hu_range = spacings_mm, hu_range
        found = float(probe(network, lambda noise: self._denoise(noise, _NOISIEST), (1, 64, 64)).mean())
        self.mean = found if mean is None else mean

    def to(self, device: str | torch.device) -> ForeignPrior:
        """Move the weights to a device."""
        device = available_device(device)
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        return self

    def _denoise(self, x: Tensor, t: float) -> Tensor:
        rows, columns = x.shape[-2:]
        w = self.gain * x.reshape(-1, 1, rows, columns) / t + self.offset
        clean = padded_denoise(self.network, self.convention, w, self.gain * (1 - t) / t, self.stride)
        return ((clean - self.offset) / self.gain).reshape(x.shape)

    def residual_variance(self, t: float) -> float:
        """Mean squared error per pixel at time t, network range u: as measured, or of a white prior."""
        level = (1 - t) / max(t, 1e-9)
        if self.denoiser_error is None:
            return level**2 / (1 + level**2)
        return error_at(self.denoiser_error, level) ** 2

    @torch.no_grad()
    def calibrate(self, images: Tensor, seed: int = 0) -> None:
        """Measure the denoiser's error over noise levels from 0.02 to 20 into `denoiser_error`.

        Args:
            images: images like those to reconstruct, not used in training, (n, Z, Y, X), network range u.
            seed: seed of the noise.
        """
        generator, table = seeded(seed), []
        for sigma in torch.logspace(math.log10(0.02), math.log10(20), 13).tolist():
            noisy = images + sigma * normal(images.shape, generator).to(images)
            error = self._denoise(noisy / (1 + sigma), 1 / (1 + sigma)) - images
            table.append((sigma, float(error.square().mean().sqrt())))
        self.denoiser_error = table

    @classmethod
    def example(cls) -> ForeignPrior:
        """White images of standard deviation one half, with a diffusion network's closed-form prediction."""
        alphas = linear_schedule()
        convention, variance = diffusion(alphas), 0.25
        logits = torch.tensor(convention.levels, dtype=torch.float64).log()
        levels = [0.02 * 2**k for k in range(11)]
        errors = [math.sqrt(variance / (1 + variance / level**2)) for level in levels]
        table = list(zip(levels, errors, strict=True))
        network = partial(_epsilon, logits, variance)
        return cls(network, convention, HU_CENTRE, HU_WIDTH, denoiser_error=table)


def _epsilon(logits: Tensor, variance: float, y: Tensor, time: Tensor) -> Tensor:
    place = time[:, None, None, None].double()
    below = place.long().clamp(0, len(logits) - 2)
    level = torch.lerp(logits[below], logits[below + 1], place - below).exp()
    b = (level / (1 + level**2).sqrt()).to(y)
    return b * y / (variance * (1 - b**2) + b**2)


def for_evaluation(network: Any) -> Any:
    """Set a network to evaluation: no dropout, and no gradients of its weights."""
    if isinstance(network, nn.Module):
        network.eval().requires_grad_(False)
    return network


def padded_denoise(
    network: Callable[..., Any], convention: Convention, w: Tensor, sigma: float, stride: int
) -> Tensor:
    """Denoise images of any size with a network that takes multiples of a stride, in bounded memory.

    Shapes: w (batch, channels, Y, X), the network's own range -> the same, in the type of w.
    """
    rows, columns = w.shape[-2:]
    kind = w.dtype
    if isinstance(network, nn.Module):
        kind = next((p.dtype for p in network.parameters() if p.is_floating_point()), kind)
    padded = functional.pad(w.to(kind), (0, -columns % stride, 0, -rows % stride), mode="replicate")
    chunk = max(1, PIXELS_AT_ONCE // (rows * columns))
    parts = [convention.denoise(network, piece, sigma) for piece in torch.split(padded, chunk)]
    return torch.cat(parts)[..., :rows, :columns].to(w.dtype)


def into_range(hu_centre: float, hu_width: float) -> tuple[float, float]:
    """Gain and offset from ctflow's network range to that of images whose 0 and 1 stand for these HU.

    Raises:
        UsageError: the HU are not finite or exceed their bounds.
    """
    require_unit(hu_centre, hu_width)
    return HU_WIDTH / hu_width, (HU_CENTRE - hu_centre) / hu_width


@torch.no_grad()
def probe(network: Any, denoise: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """Denoise one image of pure noise, (1, *shape), network range, on the device of the network's weights.

    Raises:
        UsageError: the network does not take images of that shape.
    """
    weights = network.parameters() if isinstance(network, nn.Module) else iter(())
    device = next((parameter.device for parameter in weights), torch.device("cpu"))
    noise = normal((1, *shape), seeded(0)).to(device)
    try:
        return denoise(noise)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"the network was asked to denoise one image {shape} and failed: {str(error).splitlines()[0]}; "
            "it must take images of one channel, without classes or prompts, as its convention says"
        ) from error
