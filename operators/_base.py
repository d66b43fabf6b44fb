"""Base class of linear operators: two methods suffice to make one differentiable, composable and solvable."""

from __future__ import annotations

import copy
import math
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from ctflow.errors import UsageError
from ctflow.linalg import largest_eigenvalue
from ctflow.operators._autograd import apply
from ctflow.operators._input_checks import check_input, refuse_not_finite
from ctflow.operators._inverse import regularised
from ctflow.operators._spectrum import Spectrum, dual_spectrum
from ctflow.system.counters import clock, count
from ctflow.system.devices import available_device
from ctflow.system.randomness import normal, seeded
from ctflow.system.state import Copyable


class LinearOperator(Copyable):
    """A linear map between tensors, without noise, units or network range.

    A subclass sets the two shapes and writes `_forward` and `_adjoint`; the adjoint must be the exact
    transpose, since gradients, conjugate gradients and Lanczos all rely on it. What it keeps for later calls
    (handles, compiled code) belongs in a `cached_property`, which copies and pickles compute again.

    Shapes: (*batch, *domain_shape) -> (*batch, *range_shape).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> class Flip(ct.LinearOperator):
        ...     domain_shape = range_shape = (1, 1, 3)
        ...     def _forward(self, x):
        ...         return x.flip(-1)
        ...     def _adjoint(self, y):
        ...         return y.flip(-1)
        ...
        >>> A = Flip() + 2 * Flip().T
        >>> A(torch.tensor([[[1.0, 2.0, 3.0]]]))
        tensor([[[9., 6., 3.]]])
    """

    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]
    fingerprint: str | None = None  # text shared by equal operators alone; key of the cache
    device = torch.device("cpu")  # for arrays from libraries without devices
    _leaf = True  # composites are not counted, but their parts are

    def _forward(self, x: Tensor, /) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no _forward")

    def _adjoint(self, y: Tensor, /) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no _adjoint")

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the operator; differentiable, and its gradient is the adjoint.

        Raises:
            UsageError: x is not a tensor, or holds values that are not finite.
            GeometryError: the trailing dimensions are not `domain_shape`.
            BackendError: x is not float32 or float64.
        """
        return apply(check_input(x, self), self)

    def _counted(self, x: Tensor) -> Tensor:
        if self._leaf:
            count("forward", x.numel() // max(1, math.prod(self.domain_shape)))
            refuse_not_finite(x, self._name)
            with clock("operator"):
                return self._forward(x)
        return self._forward(x)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        ends = (getattr(self, side, "unknown") for side in ("domain_shape", "range_shape"))
        return f"<{self._name} {' -> '.join(map(str, ends))}>"

    @cached_property
    def _dual_eigh(self) -> dict[torch.dtype, tuple[Tensor, Tensor]]:
        return {}

    @property
    def T(self) -> LinearOperator:
        """The adjoint, as an operator."""
        from ctflow.operators._composed import Adjoint

        return Adjoint(self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        from ctflow.operators._composed import Compose

        return Compose(self, other)

    def __rmul__(self, factor: float | Tensor) -> LinearOperator:
        from ctflow.operators._composed import Scaled

        return Scaled(factor, self)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        from ctflow.operators._composed import Sum

        return Sum(self, other)

    def normal(self, x: Tensor, weights: Tensor | float = 1.0) -> Tensor:
        """Apply AᵀWA to x; overridden where the two halves can share work.

        Args:
            x: (*batch, *domain_shape).
            weights: W, broadcast to data (*batch, *range_shape).
        """
        return self.T(weights * self(x))

    def coarsened(self, pixel_mm: float) -> LinearOperator:
        """The same data of images with larger pixels, up to `pixel_mm`; projections have such a one.

        Raises:
            UsageError: the operator's images have no other pixels.
        """
        raise UsageError(f"{self._name} has no coarser pixels, which projections alone have; ask for none")

    def spectrum(self, weights: Tensor, dense: bool = False) -> Spectrum | None:
        """Eigenvalues and eigenvectors of AᵀWA; overridden by operators with a closed form.

        Args:
            weights: W, broadcast to data (*batch, *range_shape); its type and device are those of the data.
            dense: where there is no closed form, decompose W½AAᵀW½ if it is small: up to 8000 data for one
                weight and an operator with a fingerprint (minutes, then kept on disk), else 2000 (seconds);
                1000 for many weights.

        Returns:
            None where they are not known.
        """
        return dual_spectrum(self, weights) if dense else None

    def norm(self, iterations: int = 30, like: Tensor | None = None) -> float:
        """Largest singular value, in closed form or from below by Lanczos from a fixed start.

        Args:
            iterations: applications of AᵀA.
            like: tensor (any shape) whose type and device are used for the computation; float32 on the
                operator's device by default.
        """
        like = torch.empty((), dtype=torch.float32, device=self.device) if like is None else like
        spectrum = self.spectrum(torch.ones((), dtype=like.dtype, device=like.device))
        if spectrum is not None:
            return math.sqrt(float(spectrum.values.max()))
        start = normal(self.domain_shape, seeded(0)).to(like)
        return math.sqrt(float(largest_eigenvalue(self.normal, start, len(self.domain_shape), iterations)))

    def pinv(
        self,
        y: Tensor,
        damping: float = 1e-4,
        iterations: int = 100,
        *,
        weights: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Pseudo-inverse: argmin |A x - y|²_W + damping² max(W) |A|² |x|², exact where the spectrum is known.

        With damping 0 and a known spectrum it is the Moore-Penrose inverse; singular values below rounding
        count as zero.

        Args:
            y: data, (*batch, *range_shape).
            damping: singular values well below this share of the largest are suppressed.
            iterations: largest number of steps of conjugate gradients.
            weights: W, not negative, broadcast to y; 1 by default. Gradients treat max(W) as a constant.
            start: first guess for conjugate gradients.

        Returns:
            (*batch, *domain_shape).
        """
        weights = y.new_ones(()) if weights is None else weights
        scale = float(weights.detach().max()) * self.norm(like=y) ** 2
        # A residual of this share leaves little error in the weakest modes that the damping keeps.
        # Below the type's own rounding, steps fit that rounding into modes that the data do not determine.
        tolerance = max(0.01 * damping**2, torch.finfo(y.dtype).eps)
        return regularised(self, y, weights, damping**2 * scale, iterations, tolerance, start)

    def prox(
        self,
        center: Tensor,
        y: Tensor,
        weights: Tensor,
        variance: float | Tensor,
        iterations: int = 20,
        tolerance: float = 1e-6,
        start: Tensor | None = None,
    ) -> Tensor:
        """argmin_x ½ |A x - y|²_W + |x - center|² / (2 variance), exact where the spectrum is known.

        Differentiable any number of times in all four, through the minimiser and as exactly as it is found.

        Args:
            center: (*batch, *domain_shape).
            y: data, (*batch, *range_shape).
            weights: W, not negative, broadcast to y.
            variance: how far x may be from the centre, in the unit of x squared; a tensor (*batch) holds one
                for every sample.
            iterations: largest number of steps of conjugate gradients; each sample stops by itself.
            tolerance: relative residual of the linear system.
            start: first guess for conjugate gradients; the centre by default.

        Returns:
            Shaped like `center`.

        Raises:
            UsageError: a weight or a variance is negative or NaN, or a variance 0.
        """
        if isinstance(variance, Tensor):
            each = variance.reshape(*variance.shape, *[1] * len(self.range_shape))
            weights, variance = each * weights, 1.0
        if not variance > 0:
            raise UsageError(f"a variance must be above 0 and is {variance}; 1e-6 stays close to the centre")
        start = None if start is None else start - center
        residual = y - self(center)
        return center + regularised(self, residual, weights, 1 / variance, iterations, tolerance, start)

    def row_space(self, x: Tensor, damping: float = 1e-4, iterations: int = 100) -> Tensor:
        """Project images (*batch, *domain_shape) onto what the data determine, A†A x.

        Args:
            x: images.
            damping: as for `pinv`.
            iterations: largest number of steps of conjugate gradients.
        """
        return self.pinv(self(x), damping, iterations)

    def null_space(self, x: Tensor, damping: float = 1e-4, iterations: int = 100) -> Tensor:
        """Project images (*batch, *domain_shape) onto what the data do not determine, x - A†A x.

        Args:
            x: images.
            damping: as for `pinv`.
            iterations: largest number of steps of conjugate gradients.
        """
        return x - self.row_space(x, damping, iterations)

    def to(self, device: str | torch.device) -> Self:
        """Move the tensors that the operator stores to a device.

        Computation always takes place where the data are; stored tensors that are already there need not be
        copied at every call. Arrays from SciPy and PyLops are computed on this device.

        Raises:
            BackendError: this machine does not have the device.
        """
        device = available_device(device)
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor | LinearOperator):
                setattr(moved, name, value.to(device))
        moved.device = device
        return moved

    def to_scipy(self, dtype: torch.dtype = torch.float32) -> Any:
        """Convert to a `scipy.sparse.linalg.LinearOperator` on flattened arrays, computed in `dtype`."""
        from ctflow.operators import _interop

        return _interop.to_scipy(self, dtype)

    def to_pylops(self, dtype: torch.dtype = torch.float32) -> Any:
        """Convert to a `pylops.LinearOperator` with `dims` and `dimsd`, computed in `dtype`."""
        from ctflow.operators import _interop

        return _interop.to_pylops(self, dtype)

    def to_deepinv(self) -> Any:
        """Convert to a `deepinv.physics.LinearPhysics`, (B, Z, Y, X) -> (B, rows, views, bins)."""
        from ctflow.operators import _interop

        return _interop.to_deepinv(self)

    @classmethod
    def example(cls) -> LinearOperator:
        """Make a small instance, on which the tests check the laws of operators."""
        raise TypeError(f"{cls.__name__} defines no example")
