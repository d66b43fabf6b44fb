"""An inverse problem: an operator, data, and how far each datum may be from A x."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.linalg import cg
from ctflow.noise import Noise
from ctflow.operators import LinearOperator
from ctflow.volume import Volume


@dataclass(frozen=True)
class InverseProblem:
    """y = A x + noise, as the negative log-likelihood ½ (A x - y)ᵀ W (A x - y).

    Shapes: x (*batch, *A.domain_shape), y (*batch, *A.range_shape).

    Args:
        A: linear operator.
        y: data.
        noise: noise model; it gives the weights W = 1 / variance.
        W: weights, if they are known already.

    Raises:
        GeometryError: y does not have the operator's range shape.
    """

    A: LinearOperator
    y: Tensor
    noise: Noise
    W: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        shape = self.A.range_shape
        if tuple(self.y.shape[self.y.ndim - len(shape) :]) != shape:
            raise GeometryError(f"data {tuple(self.y.shape)} do not end in the operator's range {shape}")
        if self.W is None:
            object.__setattr__(self, "W", self.noise.precision(self.y))

    @property
    def dims(self) -> int:
        """Number of dimensions of one image."""
        return len(self.A.domain_shape)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions of the data."""
        return tuple(self.y.shape[: self.y.ndim - len(self.A.range_shape)])

    def data_fit(self, x: Tensor) -> Tensor:
        """½ |A x - y|²_W for every sample, (*batch)."""
        residual = self.A(x) - self.y
        return 0.5 * (self.W * residual**2).flatten(len(self.batch_shape)).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """Aᵀ W (A x - y), shaped like x."""
        return self.A.T(self.W * (self.A(x) - self.y))

    def normal(self, x: Tensor) -> Tensor:
        """Aᵀ W A x, shaped like x."""
        return self.A.T(self.W * self.A(x))

    def residual(self, x: Tensor) -> Tensor:
        """|A x - y|²_W per datum for every sample: about 1 for the true image, (*batch)."""
        data = self.y[(0,) * len(self.batch_shape)].numel()
        return 2 * self.data_fit(x) / data

    def prox(
        self,
        center: Tensor,
        variance: float,
        iterations: int = 20,
        tolerance: float = 1e-6,
        start: Tensor | None = None,
    ) -> Tensor:
        """argmin_x ½ |A x - y|²_W + |x - center|² / (2 variance), by conjugate gradients.

        Args:
            center: (*batch, *domain_shape).
            variance: trust in the data against the centre, in the unit of x squared.
            iterations: at most so many applications of AᵀWA.
            tolerance: relative residual of the linear system.
            start: first guess; the centre by default.

        Returns:
            Shaped like `center`.
        """
        step = cg(
            lambda d: self.normal(d) + d / variance,
            -self.gradient(center),
            self.dims,
            iterations,
            tolerance,
            None if start is None else start - center,
        )
        return center + step

    def rescaled(self, scale: float, shift: float) -> InverseProblem:
        """The same problem for z, where x = scale · z + shift: the bridge from 1/mm to network range."""
        constant = torch.full(self.A.domain_shape, shift, dtype=self.y.dtype, device=self.y.device)
        return replace(self, A=scale * self.A, y=self.y - self.A(constant), W=self.W)

    def samples(self, number: int) -> InverseProblem:
        """`number` copies side by side along a new first dimension."""
        W = self.W.expand(number, *self.W.shape) if self.W.ndim else self.W
        return replace(self, y=self.y.expand(number, *self.y.shape), W=W)


def simulate(A: LinearOperator, image: Volume | Tensor, noise: Noise, seed: int = 0) -> InverseProblem:
    """Measure an image: y = A x + noise.

    Shapes: image (*batch, *A.domain_shape) -> y (*batch, *A.range_shape).

    Args:
        A: operator, for CT on attenuation in 1/mm.
        image: the truth; a `Volume` is converted to attenuation.
        noise: noise model.
        seed: seed of the noise.

    Returns:
        The problem of finding the image again.
    """
    x = image.to_attenuation().data if isinstance(image, Volume) else image
    with torch.no_grad():
        y = noise.sample(A(x), torch.Generator().manual_seed(seed))
    return InverseProblem(A, y, noise)
