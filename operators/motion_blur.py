"""Motion blur of slices, as when the object or the table moves along a line during the exposure."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from ctflow.errors import ProtocolError
from ctflow.operators.convolution import Convolution
from ctflow.tables import Whole

__all__ = ["MotionBlur"]


class MotionBlur(Convolution):
    """Mean of every slice over `length` positions one pixel apart, along a line in the slice.

    Positions between pixels are shared among their four neighbours. The operator is diagonal, and so its prox
    and pseudo-inverse are exact, with "periodic", and with "reflect" if the line runs along x or y.

    Shapes: (*batch, Z, Y, X) -> (*batch, Z, Y, X), in the unit of x.

    Args:
        shape: (Z, Y, X).
        length: number of positions, pixels; 1 is no motion.
        angle_degrees: direction, counter-clockwise from the rows as the image is displayed.
        boundary: "reflect" (the slice continues as its mirror image), "periodic" or "zero".

    Raises:
        ProtocolError: the length is not a positive whole number, the angle is not finite, or the boundary is
            unknown.
        GeometryError: the shape is not (Z, Y, X).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> edge = torch.tensor([3.0, 3.0, 3.0, 6.0, 6.0, 6.0]).expand(1, 3, 6)
        >>> ct.MotionBlur((1, 3, 6), length=3)(edge)[0, 1].round()
        tensor([3., 3., 4., 5., 6., 6.])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        length: Annotated[int, Whole(1, 2048)] = 9,
        angle_degrees: float = 0.0,
        boundary: str = "reflect",
    ) -> None:
        if not isinstance(length, int) or length < 1 or not math.isfinite(angle_degrees):
            raise ProtocolError(
                f"length {length} must be a positive whole number (pixels) and angle_degrees {angle_degrees} "
                "finite; 9 and 45 blur along the rising diagonal"
            )
        super().__init__(shape, _line(length, math.radians(angle_degrees)), boundary)

    @classmethod
    def example(cls) -> MotionBlur:
        """Two slices of 7 × 10 pixels, moved by four at 30°."""
        return cls((2, 7, 10), length=4, angle_degrees=30.0)


def _line(length: int, angle: float) -> Tensor:
    radius = math.ceil((length - 1) / 2)
    place = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    # Rounded, so that a line along an axis stays on its pixels; row 0 is at the top.
    rows, columns = (
        (place * part).round(decimals=9) + radius for part in (-math.sin(angle), math.cos(angle))
    )
    kernel = torch.zeros(2 * radius + 2, 2 * radius + 2, dtype=torch.float64)
    for down in (0, 1):
        for right in (0, 1):
            share = (1 - (rows - rows.floor() - down).abs()) * (1 - (columns - columns.floor() - right).abs())
            place_at = (rows.floor().long() + down, columns.floor().long() + right)
            kernel.index_put_(place_at, share / length, accumulate=True)
    return kernel[:-1, :-1]
