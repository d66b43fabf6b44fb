"""How near an image is to the training slices: a prior that draws one of them again knows it by heart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SIDE = 64  # pixels after pooling: anatomy, not noise and not the last pixel of its place


class Library:
    """Training slices, in which the nearest to an image is found at any flip, transposition and shift.

    Shapes: (number, Y, X), HU; Y = X, multiples of 64. Distances are root mean squares, HU, after pooling
    to 64 × 64 pixels; shifts are circular.

    Args:
        slices: (Y, X) each, HU.
    """

    def __init__(self, slices: list[Tensor]) -> None:
        self.slices = torch.cat([_pooled(hu[None]) for hu in slices])
        self.spectra = torch.fft.rfft2(self.slices)
        self.energies = self.slices.square().sum((1, 2))

    def nearest(self, images: Tensor) -> Tensor:
        """Distance of every image, (number, Y, X), to the nearest slice, (number,)."""
        return torch.stack(
            [min(self._distances(view).min() for view in _views(image)) for image in _pooled(images)]
        )

    def _distances(self, image: Tensor) -> Tensor:
        """To every slice at its best shift: ‖a‖² + ‖b‖² − 2 max (a ⋆ b)."""
        matches = torch.fft.irfft2(self.spectra * torch.fft.rfft2(image).conj()).amax((1, 2))
        squared: Tensor = self.energies + image.square().sum() - 2 * matches
        return _root(squared)

    def between_neighbours(self) -> Tensor:
        """Distance of every slice to the one after it, (number - 1,): what nearly a copy is."""
        a, b = self.spectra[:-1], self.spectra[1:]
        matches = torch.fft.irfft2(a * b.conj()).amax((1, 2))
        squared: Tensor = self.energies[:-1] + self.energies[1:] - 2 * matches
        return _root(squared)


def _root(squared: Tensor) -> Tensor:
    """Root mean square from a sum of squares, which rounding may have taken below zero."""
    return (squared.clamp_min(0) / _SIDE**2).sqrt()


def _pooled(images: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(images.float(), _SIDE)


def _views(image: Tensor) -> list[Tensor]:
    """The eight flips and transpositions."""
    turned = [image, image.T]
    flipped = [*turned, *(view.flip(0) for view in turned)]
    return [*flipped, *(view.flip(1) for view in flipped)]
