"""Missing pixels, detector bins and views: the operator of inpainting."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ctflow.errors import ProtocolError
from ctflow.operators._base import LinearOperator
from ctflow.operators._separable import check_shape
from ctflow.operators._spectrum import Spectrum, orthogonal_rows
from ctflow.system.randomness import seeded
from ctflow.tables import SEED

__all__ = ["Mask"]

_KINDS = ("random", "box", "columns", "views")


class Mask(LinearOperator):
    """Mask y = m x with m = 0 where data are missing and 1 elsewhere.

    m² = m = mᵀ: the operator is an orthogonal projection, its own adjoint and its own pseudo-inverse. Prox
    and functions of AᵀWA are exact for any weights.

    Shapes: images (*batch, Z, Y, X) or projections (*batch, rows, views, bins) -> the same, in their unit.

    Args:
        shape: shape of one image, or of one set of projections.
        missing: share that is missing, from 0 to 1.
        kind: "random" pixels; one "box" in the middle of every slice, with its proportions; random whole
            "columns" (in projections: dead detector bins); random whole "views" (in images: rows).
        seed: seed of the random choice.

    Raises:
        ProtocolError: the share lies outside 0 to 1, or the kind is unknown.
        GeometryError: the shape is not three positive numbers.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> A = ct.Mask((1, 4, 6), missing=0.5, kind="columns", seed=1)
        >>> A(torch.ones(1, 4, 6))[0, 0]
        tensor([1., 0., 0., 1., 0., 1.])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        missing: float = 0.5,
        kind: str = "random",
        seed: Annotated[int, SEED] = 0,
    ) -> None:
        if not 0 <= missing < 1:
            raise ProtocolError(
                f"missing {missing} must lie in 0 <= missing < 1; 0.5 hides half of the pixels"
            )
        if kind not in _KINDS:
            raise ProtocolError(f"kind '{kind}' is unknown; choose from {', '.join(_KINDS)}")
        self.domain_shape = self.range_shape = shape = check_shape(shape)
        drawn = {"random": shape, "columns": (1, 1, shape[2]), "views": (1, shape[1], 1)}
        mask = _box(shape, missing) if kind == "box" else _random(drawn[kind], missing, seed)
        self.mask = mask.expand(shape)

    def _forward(self, x: Tensor) -> Tensor:
        return self.mask.to(x) * x

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)

    def spectrum(self, weights: Tensor, dense: bool = False) -> Spectrum | None:
        """Diagonal, for any weights (*batch, Z, Y, X)."""
        return orthogonal_rows(self, 1.0, weights)

    @classmethod
    def example(cls) -> Mask:
        """Two slices of 6 × 8 pixels, half of them missing."""
        return cls((2, 6, 8))


def _random(shape: tuple[int, ...], missing: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float32) >= missing


def _box(shape: tuple[int, int, int], missing: float) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool)
    sides = [round(n * missing**0.5) for n in shape[1:]]
    (top, height), (left, width) = (((n - side) // 2, side) for n, side in zip(shape[1:], sides, strict=True))
    mask[:, top : top + height, left : left + width] = False
    return mask
