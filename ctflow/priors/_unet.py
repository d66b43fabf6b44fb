"""Small fully convolutional U-Nets in several designs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctflow.errors import ProtocolError
from ctflow.priors._winograd import Convolution
from ctflow.tables import Listed, Table, Text, Whole, require_kind


def _silence(layer: nn.Conv2d) -> None:
    """Start a layer at zero, so that its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class _Block(nn.Module):
    """Two 3 × 3 convolutions with a residual path; the noise level scales and shifts between them."""

    def __init__(self, channels_in: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels_in)
        self.conv1 = Convolution(channels_in, channels)
        self.film = nn.Linear(embedding, 2 * channels)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = Convolution(channels, channels)
        _silence(self.conv2)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(self.norm2(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv2(h)  # type: ignore[no-any-return]


class _DepthwiseBlock(nn.Module):
    """A 7 × 7 convolution of each channel by itself, then two 1 × 1 that mix them.

    References:
        Liu et al., CVPR 2022 (ConvNeXt), figure 4; differs: group norm, which knows no image size, and FiLM.
    """

    def __init__(self, channels_in: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels_in, channels_in, 7, padding=3, groups=channels_in)
        self.norm = nn.GroupNorm(8, channels_in)
        self.film = nn.Linear(embedding, 2 * channels_in)
        self.widen = nn.Conv2d(channels_in, 4 * channels, 1)
        self.narrow = nn.Conv2d(4 * channels, channels, 1)
        _silence(self.narrow)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm(self.spread(x)) * (1 + scale) + shift
        return self.skip(x) + self.narrow(functional.silu(self.widen(h)))  # type: ignore[no-any-return]


DESIGNS: dict[str, tuple[int, type[_Block | _DepthwiseBlock]]] = {
    "unshuffle": (2, _Block),
    "plain": (1, _Block),
    "depthwise": (2, _DepthwiseBlock),
}
"""Designs: side of the squares of pixels that the stem folds into channels, and the type of block."""


NETWORK = Table(
    others={
        "channels": Listed(Whole(8, 4096), 1, 8),
        "blocks": Whole(1, 16),
        "embedding": Whole(2, 4096),
        "design": Text(),
    }
)
"""Kinds of a file's entries on a network."""
_MOST_PARAMETERS = 2**29  # 2 GiB in single precision


def build_unet(table: Mapping[str, Any]) -> UNet:
    """Build the network of a file's table; its size is checked before memory is allocated for it.

    Raises:
        ProtocolError: a value is out of range, or the network is too large.
    """
    require_kind(table, NETWORK, "network")
    number = _convolved(**table)
    if number > _MOST_PARAMETERS:
        raise ProtocolError(
            f"the network has {number / 1e9:.1f} billion parameters and may have at most "
            f"{_MOST_PARAMETERS / 1e9:.1f}; use fewer channels or blocks"
        )
    return UNet(**table)


def _convolved(
    channels: Sequence[int] = (32, 64, 128, 128),
    blocks: int = 2,
    embedding: int = 128,
    design: str = "unshuffle",
) -> int:
    """About how many parameters a network has, from below: those of its blocks.

    Counted and not built on torch's meta device, which takes half a second to import.
    """
    each = 8 if design == "depthwise" else 18
    return sum(2 * blocks * (each * width**2 + 2 * width * embedding) for width in channels)


class UNet(nn.Module):
    """Network from image, log noise level and log pixel spacing to image, of any size.

    Shapes: (batch, 1, Y, X), (batch,), (batch,) -> (batch, 1, Y, X); Y and X multiples of `stride`.

    Args:
        channels: channels of the levels, from fine to coarse; multiples of 8.
        blocks: residual blocks per level, on the way down and on the way up.
        embedding: width of the embedding of noise level and pixel spacing.
        design: "unshuffle" works at half resolution behind a pixel-unshuffle stem, "plain" at full
            resolution, "depthwise" like the first with large depthwise kernels.

    Raises:
        ProtocolError: there is no such design, the channels are not multiples of 8, or the embedding is odd.

    References:
        Ronneberger et al., MICCAI 2015 (the shape); Perez et al., AAAI 2018 (scale and shift, "FiLM");
        Shi et al., CVPR 2016 (pixel shuffle).
    """

    frequencies: Tensor

    def __init__(
        self,
        channels: tuple[int, ...] = (32, 64, 128, 128),
        blocks: int = 2,
        embedding: int = 128,
        design: str = "unshuffle",
    ) -> None:
        super().__init__()
        if design not in DESIGNS:
            raise ProtocolError(f"there is no network design '{design}'; there are {', '.join(DESIGNS)}")
        if not channels or any(width % 8 for width in channels):
            raise ProtocolError(f"the network's channels must be multiples of 8, and are {list(channels)}")
        if embedding % 2:
            raise ProtocolError(
                f"the network's embedding is {embedding} and must be even; sines and cosines share it"
            )
        self.fold, block = DESIGNS[design]
        self.stride = self.fold * 2 ** (len(channels) - 1)
        self.register_buffer("frequencies", torch.logspace(-1, 1, embedding // 2), persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(2 * embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.stem = nn.Conv2d(self.fold**2, channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.widen = nn.ModuleList()
        self.up = nn.ModuleList()
        self.narrow = nn.ModuleList()
        for level, width in enumerate(channels):
            self.down.append(nn.ModuleList(block(width, width, embedding) for _ in range(blocks)))
            self.up.append(
                nn.ModuleList(block(2 * width if i == 0 else width, width, embedding) for i in range(blocks))
            )
            below = channels[min(level + 1, len(channels) - 1)]
            self.widen.append(nn.Conv2d(width, below, 1))
            self.narrow.append(nn.Conv2d(below, width, 1))
        self.middle = block(channels[-1], channels[-1], embedding)
        self.norm = nn.GroupNorm(8, channels[0])
        self.head = nn.Conv2d(channels[0], self.fold**2, 3, padding=1)
        _silence(self.head)

    def forward(self, x: Tensor, log_sigma: Tensor, log_spacing: Tensor) -> Tensor:
        """Prediction for images x (batch, 1, Y, X) in network range.

        Args:
            x: images.
            log_sigma: log noise levels, (batch,).
            log_spacing: log of the pixel spacing in mm, (batch,); NaN where it is not known.
        """
        phases = torch.stack([log_sigma, log_spacing], dim=1)[..., None] * self.frequencies
        waves = torch.cat([phases.sin(), phases.cos()], dim=2).nan_to_num(0.0)
        embedding = self.embed(waves.flatten(1))
        h = self.stem(functional.pixel_unshuffle(x, self.fold))
        skips = []
        last = len(self.down) - 1
        for level, (blocks, widen) in enumerate(zip(self.down, self.widen, strict=True)):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding)
            skips.append(h)
            if level < last:
                h = widen(functional.avg_pool2d(h, 2))
        h = self.middle(h, embedding)
        for level in reversed(range(last + 1)):
            if level < last:
                h = self.narrow[level](functional.interpolate(h, scale_factor=2.0))
            h = torch.cat([h, skips.pop()], dim=1)
            for block in self.up[level]:  # type: ignore[attr-defined]
                h = block(h, embedding)
        return functional.pixel_shuffle(self.head(functional.silu(self.norm(h))), self.fold)
