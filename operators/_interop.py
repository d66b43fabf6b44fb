"""Convert operators to and from SciPy, PyLops, deepinv and ODL, each imported only on demand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctflow.errors import BackendError, UsageError
from ctflow.operators._base import LinearOperator
from ctflow.system.optional import optional_library
from ctflow.system.randomness import normal, seeded

Map = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]
_MATCHED = (
    1e-3  # a matched pair in float32 stays below 1e-5; a half-pixel shift or a wrong scale exceeds 1e-2
)


def _peer(name: str) -> Any:
    with optional_library(name, 'pip install "ctflow[conformance]"'):
        return import_module(name)


def to_scipy(operator: LinearOperator, dtype: torch.dtype = torch.float32) -> Any:
    """Convert an operator to a `scipy.sparse.linalg.LinearOperator` on flattened images.

    Shapes: (X,) or (X, k) arrays, X the size of `domain_shape` -> (Y,) or (Y, k). The real and imaginary
        parts of complex arrays are mapped separately.

    Args:
        operator: any operator; arrays are computed on its `device`.
        dtype: float32 or float64, used for computation and result.

    Raises:
        BackendError: the type is neither.
    """
    if dtype not in (torch.float32, torch.float64):
        raise BackendError(f"operators compute in float32 or float64, not in {dtype}; give torch.float32")
    linalg = import_module("scipy.sparse.linalg")
    shape = (math.prod(operator.range_shape), math.prod(operator.domain_shape))
    kind = np.dtype(str(dtype).removeprefix("torch."))
    forward, adjoint = (partial(_on_columns, A, kind) for A in (operator, operator.T))
    return linalg.LinearOperator(
        shape, matvec=forward, rmatvec=adjoint, matmat=forward, rmatmat=adjoint, dtype=kind
    )


def _on_columns(A: LinearOperator, dtype: np.dtype[Any], columns: np.ndarray[Any, Any]) -> Any:
    """Apply the operator to (X,), (X, 1) or (X, k) of SciPy, which expects as many dimensions back."""
    if np.iscomplexobj(columns):
        return _on_columns(A, dtype, columns.real) + 1j * _on_columns(A, dtype, columns.imag)
    rows = torch.from_numpy(np.array(columns.T, dtype, order="C")).to(A.device)
    with torch.no_grad():
        images = A(rows.reshape(*columns.shape[1:], *A.domain_shape))
    return images.reshape(*columns.shape[1:], math.prod(A.range_shape)).cpu().numpy().T


def to_pylops(operator: LinearOperator, dtype: torch.dtype = torch.float32) -> Any:
    """Convert an operator to a `pylops.LinearOperator` with `dims` and `dimsd`.

    Shapes: `domain_shape` or flattened arrays -> `range_shape` or flattened.

    Args:
        operator: any operator; arrays are computed on its `device`.
        dtype: float32 or float64, used for computation and result.

    Raises:
        BackendError: PyLops is not installed, or the type is neither.
    """
    pylops = _peer("pylops")
    return pylops.LinearOperator(
        to_scipy(operator, dtype),
        dims=operator.domain_shape,
        dimsd=operator.range_shape,
        name=type(operator).__name__,
    )


def to_deepinv(operator: LinearOperator) -> Any:
    """Convert an operator to a `deepinv.physics.LinearPhysics` without noise, not normalised.

    Shapes: (B, C, H, W) = (B, Z, Y, X) -> (B, rows, views, bins). Its `A_dagger` and `prox_l2` are the
    operator's own `pinv` and `prox`, closed form where there is one, whatever solver deepinv names.

    Args:
        operator: any operator.

    Raises:
        BackendError: deepinv is not installed.
    """
    return _physics()(operator)


@cache
def _physics() -> Any:
    """The class for deepinv, defined once so that copies are of the same class."""
    physics = _peer("deepinv").physics

    class Physics(physics.LinearPhysics):  # type: ignore[misc, name-defined]
        """A ctflow operator in deepinv's interface."""

        def __init__(self, operator: LinearOperator) -> None:
            super().__init__(img_size=operator.domain_shape, device=operator.device)
            self.operator = operator

        def A(self, x: Tensor, **_: Any) -> Tensor:
            return self.operator(x)

        def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
            return self.operator.T(y)

        def A_dagger(self, y: Tensor, **_: Any) -> Tensor:
            return self.operator.pinv(y)

        def prox_l2(
            self, z: Any, y: Tensor, gamma: Any, *_: Any, max_iter: Any = None, tol: Any = None, **__: Any
        ) -> Tensor:
            """argmin ½ |A x - y|² + |x - z|² / (2 gamma), z an image, a number or None (zero).

            gamma is a number or a tensor of one or B of them; the gradient reaches z, y and gamma.
            """
            batch = y.shape[: -len(self.operator.range_shape)]
            if not isinstance(z, Tensor):
                z = y.new_full((*batch, *self.operator.domain_shape), z or 0.0)
            if isinstance(gamma, Tensor):
                if gamma.numel() not in (1, math.prod(batch)):
                    counts = f"{gamma.numel()} values for {math.prod(batch)} samples"
                    raise UsageError(f"gamma holds {counts}; give one, or one each")
                gamma = gamma.to(y).reshape(() if gamma.numel() == 1 else batch)
            return self.operator.prox(z, y, y.new_ones(()), gamma, max_iter or 100, tol or 1e-6)

    return Physics


def wrap(foreign: Any, domain_shape: Shape | None = None, range_shape: Shape | None = None) -> LinearOperator:
    """Wrap the linear operator of another library, making it differentiable, composable and solvable.

    Supported are deepinv's LinearPhysics (its channels, rows and columns are Z, Y, X), the LinearOperator of
    PyLops and SciPy, ODL's Operator, and two-dimensional arrays, sparse or dense. Values are those of the
    peer, in its unit and axis order; a normalised peer stays normalised. Its adjoint is tested once, on
    random tensors. A peer on the CPU copies the data of a CUDA tensor to the CPU and back.

    Shapes: (*batch, *domain_shape) -> (*batch, *range_shape).

    Args:
        foreign: the peer's operator.
        domain_shape: shape of one image, where the peer does not know it.
        range_shape: shape of the data of one image, where the peer does not know it.

    Returns:
        An operator whose transpose is the peer's adjoint, in the plain inner product.

    Raises:
        UsageError: the type is not supported, it is not linear or not real, its shapes are unknown or
            contradict those given, or its adjoint is not its transpose.

    Examples:
        >>> import numpy as np
        >>> import torch
        >>> import ctflow as ct
        >>> A = ct.wrap(np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), (1, 1, 3), (1, 1, 2))
        >>> A(torch.tensor([[[1.0, 2.0, 3.0]]])), A.T(torch.ones(1, 1, 2))
        (tensor([[[3., 5.]]]), tensor([[[1., 2., 1.]]]))
    """
    families = {kind.__module__.split(".")[0] for kind in type(foreign).__mro__}
    makers = {"deepinv": _from_deepinv, "odl": _from_odl, "scipy": _from_matrix, "numpy": _from_matrix}
    for family, make in {**makers, "pylops": _from_matrix}.items():
        if family in families:
            wrapped = make(foreign, domain_shape, range_shape)
            _refuse_unmatched(wrapped)
            return wrapped
    raise UsageError(
        f"{type(foreign).__name__} is neither an operator of deepinv, PyLops, ODL or SciPy nor a matrix; "
        "subclass ctflow.LinearOperator instead: two shapes and two methods"
    )


class _Wrapped(LinearOperator):
    """Forward and adjoint of a peer, on batches of one leading dimension."""

    def __init__(
        self, name: str, forward: Map, adjoint: Map, domain_shape: Shape, range_shape: Shape
    ) -> None:
        self.name, self.domain_shape, self.range_shape = name, tuple(domain_shape), tuple(range_shape)
        self._maps = forward, adjoint

    @property
    def _name(self) -> str:
        return self.name

    def _forward(self, x: Tensor) -> Tensor:
        return self._mapped(self._maps[0], x, self.domain_shape, self.range_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._mapped(self._maps[1], y, self.range_shape, self.domain_shape)

    def _mapped(self, apply: Map, x: Tensor, shape: Shape, other: Shape) -> Tensor:
        y = apply(x.detach().reshape(-1, *shape))
        if y.is_complex():
            raise UsageError(
                f"{self.name} answers a real array in {y.dtype}; wrap its real part and its imaginary part"
            )
        return y.to(x).reshape(*x.shape[: -len(shape)], *other)


def _shape(which: str, known: Any, given: Shape | None, name: str) -> Shape:
    """The shape that the peer knows, or the given one if the sizes agree."""
    if known is None:
        if given is None:
            raise UsageError(f"{name} does not know its shape; give wrap(..., {which}=(...))")
        return tuple(given)
    if given is None:
        return tuple(int(n) for n in known)
    if math.prod(known) != math.prod(given):
        raise UsageError(
            f"{name} has {math.prod(known)} values and {which}={tuple(given)} has {math.prod(given)}; "
            "give a shape with that number of values, or none"
        )
    return tuple(given)


def _from_deepinv(physics: Any, domain_shape: Shape | None, range_shape: Shape | None) -> _Wrapped:
    name = f"deepinv's {type(physics).__name__}"
    if not hasattr(physics, "A_adjoint"):
        raise UsageError(f"{name} is not linear; give a deepinv.physics.LinearPhysics")
    domain_shape = _shape("domain_shape", getattr(physics, "img_size", None), domain_shape, name)
    # Its buffers show on which device and in which type it computes.
    buffer = next((b for b in physics.buffers() if b.is_floating_point()), torch.empty(0))
    home = buffer.device, buffer.dtype
    with torch.no_grad():
        y = physics.A(torch.zeros(1, *domain_shape).to(*home))
    if not isinstance(y, Tensor) or y.is_complex():
        raise UsageError(
            f"{name} returns a {type(y).__name__} instead of a real tensor; wrap its real parts separately"
        )
    return _Wrapped(
        name,
        partial(_at_home, physics.A, *home),
        partial(_at_home, physics.A_adjoint, *home),
        domain_shape,
        _shape("range_shape", tuple(y.shape[1:]), range_shape, name),
    )


# Partial functions of these, not closures: an operator that holds them can be copied and pickled.
def _at_home(apply: Map, device: torch.device, dtype: torch.dtype, x: Tensor) -> Tensor:
    return apply(x.to(device, dtype))


def _on_rows(product: Any, dtype: np.dtype[Any], x: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(product(_array(x.flatten(1), dtype).T).T))


def _on_elements(apply: Any, space: Any, dtype: np.dtype[Any], x: Tensor) -> Tensor:
    elements = (space.element(one) for one in _array(x.reshape(-1, *space.shape), dtype))
    return torch.stack([torch.as_tensor(apply(element).asarray()).cpu() for element in elements])


def _plainly(star: Map, weights: list[Tensor], shape: Shape, y: Tensor) -> Tensor:
    """Transpose in the plain inner product, W_X A* / W_Y; those of ODL are weighted by cell volumes."""
    return weights[0] * star(y.cpu().reshape(-1, *shape) / weights[1])


def _from_matrix(foreign: Any, domain_shape: Shape | None, range_shape: Shape | None) -> _Wrapped:
    linear = import_module("scipy.sparse.linalg").aslinearoperator(foreign)
    name = f"{type(foreign).__module__.split('.')[0]}'s {type(foreign).__name__}"
    dtype = _real(linear.dtype, name)
    # PyLops knows the shapes of its arrays, SciPy only their sizes.
    known = getattr(foreign, "dims", linear.shape[1:]), getattr(foreign, "dimsd", linear.shape[:1])
    domain_shape = _shape("domain_shape", known[0], domain_shape, name)
    range_shape = _shape("range_shape", known[1], range_shape, name)

    forward, adjoint = (partial(_on_rows, product, dtype) for product in (linear.matmat, linear.rmatmat))
    return _Wrapped(name, forward, adjoint, domain_shape, range_shape)


def _from_odl(operator: Any, domain_shape: Shape | None, range_shape: Shape | None) -> _Wrapped:
    name = f"odl's {type(operator).__name__}"
    if not operator.is_linear:
        raise UsageError(f"{name} is not linear; wrap its derivative at a point")
    spaces = operator.domain, operator.range
    # Single spaces of arrays know the type of their values; products of spaces do not.
    if not all(hasattr(space, "dtype_identifier") and hasattr(space.weighting, "weight") for space in spaces):
        raise UsageError(f"{name} maps {spaces[0]} to {spaces[1]}; wrap maps between single spaces of arrays")
    weights = [torch.as_tensor(space.weighting.weight, dtype=torch.float64).cpu() for space in spaces]
    forward, star = (
        partial(_on_elements, apply, space, _real(space.dtype_identifier, name))
        for apply, space in zip((operator, operator.adjoint), spaces, strict=True)
    )
    known = [tuple(space.shape) for space in spaces]
    shapes = [
        _shape(which, shape, given, name)
        for which, shape, given in zip(
            ("domain_shape", "range_shape"), known, (domain_shape, range_shape), strict=True
        )
    ]
    return _Wrapped(
        name,
        forward,
        partial(_plainly, star, weights, known[1]),
        shapes[0],
        shapes[1],
    )


def _array(x: Tensor, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return x.detach().cpu().numpy().astype(dtype, copy=False)


def _real(dtype: Any, name: str) -> np.dtype[Any]:
    dtype = np.dtype(dtype)
    if dtype.kind == "c":
        raise UsageError(f"{name} computes in {dtype}; wrap real operators, or its real and imaginary parts")
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


def _refuse_unmatched(operator: _Wrapped) -> None:
    generator = seeded(0)
    x, y = (normal((3, *shape), generator) for shape in (operator.domain_shape, operator.range_shape))
    left = (operator(x).double() * y).flatten(1).sum(1)
    right = (operator.T(y).double() * x).flatten(1).sum(1)
    gap = float((left - right).norm() / left.norm().clamp_min(1e-30))
    if not gap < _MATCHED:
        raise UsageError(
            f"the adjoint of {operator.name} misses its transpose by {100 * gap:.2g} %, and gradients, CG "
            "and samplers need it within 0.1 %; choose its matched pair (deepinv's Tomography: "
            "adjoint_via_backprop=True)"
        )
