"""Convolution of slices with a kernel: blur of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ctflow.errors import ProtocolError
from ctflow.operators._base import LinearOperator
from ctflow.operators._separable import boundary_indices, check_shape
from ctflow.operators._spectrum import Spectrum, fourier_spectrum, separable_spectrum, uniform
from ctflow.operators.blur import check_boundary

__all__ = ["Convolution"]


class Convolution(LinearOperator):
    """Convolution of every slice with `kernel` by fast Fourier transforms.

    Prox, pseudo-inverse and functions of AᵀA are exact where the operator is diagonal: in the Fourier basis
    with "periodic", in the cosine basis with "reflect" and a kernel that equals its two mirror images.

    Shapes: (*batch, Z, Y, X) -> (*batch, Z, Y, X), in the unit of x.

    Args:
        shape: (Z, Y, X).
        kernel: odd × odd weights, rows along y; not normalised here.
        boundary: "reflect" (the slice continues as its mirror image), "periodic" or "zero".

    Raises:
        ProtocolError: the kernel is not a finite matrix with odd sides, or the boundary is unknown.
        GeometryError: the shape is not (Z, Y, X).

    References:
        Hansen, Nagy and O'Leary, Deblurring Images (2006), chapter 4 (which boundary has which basis).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> slope = ct.Convolution((1, 4, 4), [[0.0, 0.0, 0.0], [0.5, 0.0, -0.5], [0.0, 0.0, 0.0]])
        >>> ramp = 3 * torch.arange(4.0).expand(1, 4, 4)
        >>> slope(ramp)[0, 0]  # 3 inside; the mirror images at the ends halve it
        tensor([1.5000, 3.0000, 3.0000, 1.5000])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        kernel: Tensor | Sequence[Sequence[float]],
        boundary: str = "reflect",
    ) -> None:
        check_boundary(boundary)
        self.domain_shape = self.range_shape = check_shape(shape)
        self.kernel, self.boundary = _checked_kernel(kernel), boundary
        _, Y, X = shape
        self._radius = [side // 2 for side in self.kernel.shape]
        self._seen = [boundary_indices(n, r, boundary) for n, r in zip((Y, X), self._radius, strict=True)]
        if boundary == "periodic":
            self._seen, self._padded = [torch.arange(Y), torch.arange(X)], (Y, X)
        else:
            self._padded = (len(self._seen[0]), len(self._seen[1]))
        self._transfer = torch.fft.rfft2(self._wrapped())

    def _wrapped(self) -> Tensor:
        """The kernel with its middle at pixel (0, 0) of the periodic grid used for computation."""
        grid = torch.zeros(self._padded, dtype=torch.float64)
        rows, columns = (torch.arange(-r, r + 1) % n for r, n in zip(self._radius, self._padded, strict=True))
        return grid.index_put_((rows[:, None], columns[None]), self.kernel, accumulate=True)

    def _forward(self, x: Tensor) -> Tensor:
        rows, columns = (seen.to(x.device) for seen in self._seen)
        if self.boundary == "zero":
            x = torch.nn.functional.pad(x, (0, 1, 0, 1))  # what lies outside is read from here
        return self._cropped(self._filtered(x.index_select(-2, rows).index_select(-1, columns)))

    def _adjoint(self, y: Tensor) -> Tensor:
        if self.boundary == "periodic":
            return self._filtered(y, adjoint=True)
        (top, left), (Y, X) = self._radius, self.domain_shape[1:]
        x = self._filtered(torch.nn.functional.pad(y, (left, left, top, top)), adjoint=True)
        for axis, seen, n in ((-2, self._seen[0], Y), (-1, self._seen[1], X)):
            shape = [*x.shape]
            shape[axis] = n + 1
            x = x.new_zeros(shape).index_add(axis, seen.to(x.device), x).narrow(axis, 0, n)
        return x

    def _filtered(self, x: Tensor, adjoint: bool = False) -> Tensor:
        transfer = self._transfer.to(x.device, torch.complex(x.new_empty(0), x.new_empty(0)).dtype)
        spectrum = torch.fft.rfft2(x) * (transfer.conj() if adjoint else transfer)
        filtered: Tensor = torch.fft.irfft2(spectrum, s=self._padded)
        return filtered

    def _cropped(self, x: Tensor) -> Tensor:
        if self.boundary == "periodic":
            return x
        (top, left), (Y, X) = self._radius, self.domain_shape[1:]
        return x[..., top : top + Y, left : left + X]

    def spectrum(self, weights: Tensor, dense: bool = False) -> Spectrum | None:
        """Squared transfer function, if there is one, for one weight per sample (*batch, 1, 1, 1)."""
        one = uniform(weights, 3)
        if one is not None and self.boundary == "periodic":
            return fourier_spectrum(one * self._transfer.abs() ** 2, self._padded)
        even = all(torch.equal(self.kernel, self.kernel.flip(axis)) for axis in (0, 1))
        if one is not None and self.boundary == "reflect" and even:
            (waves_y, V), (waves_x, W) = map(_cosines, self.domain_shape[1:], self._radius)
            return separable_spectrum(one * (waves_y @ self.kernel @ waves_x.mT) ** 2, V, W)
        return super().spectrum(weights, dense)

    @classmethod
    def example(cls) -> Convolution:
        """Two slices of 6 × 8 pixels and a lopsided kernel of 3 × 5."""
        return cls(
            (2, 6, 8), [[0.0, 0.1, 0.2, 0.0, 0.0], [0.1, 0.3, 0.1, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0, 0.1]]
        )


def _checked_kernel(kernel: Tensor | Sequence[Sequence[float]]) -> Tensor:
    try:
        weights = torch.as_tensor(kernel, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError) as error:
        raise ProtocolError(
            f"the kernel is not a matrix of numbers ({error}); write [[1, 2, 1], [2, 4, 2]]"
        ) from error
    if weights.ndim != 2 or not all(side % 2 for side in weights.shape):
        sides = " × ".join(map(str, weights.shape))
        raise ProtocolError(
            f"the kernel is {sides} and must be odd × odd, so that its middle lies on a pixel; "
            "add a row or column of zeros"
        )
    if not math.isfinite(float(weights.abs().sum())):
        raise ProtocolError("the kernel holds values that are NaN or infinite; give finite weights")
    return weights


def _cosines(n: int, radius: int) -> tuple[Tensor, Tensor]:
    """Factors of an even kernel for each of n cosines, (n, 2 radius + 1), and the DCT-II basis."""
    frequency = torch.pi * torch.arange(n, dtype=torch.float64) / n
    waves = torch.cos(frequency[:, None] * torch.arange(-radius, radius + 1))
    basis = torch.cos((torch.arange(n, dtype=torch.float64)[:, None] + 0.5) * frequency) * (2 / n) ** 0.5
    basis[:, 0] /= 2**0.5
    return waves, basis
