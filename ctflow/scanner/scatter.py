"""Scattered photons: what they add to a signal, and data without them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from ctflow.errors import UsageError
from ctflow.operators import LinearOperator, Radon
from ctflow.problem import InverseProblem
from ctflow.units import MU_WATER

__all__ = ["correct_scatter", "scatter_share"]

REFERENCE_MM = 200.0
"""Of water, behind which the share of scattered photons is stated."""

_ROUNDS = 8  # each leaves a share of what was wrong, the scatter's own
_LEAST = 0.05  # of a signal that is taken for unscattered, at least
_MOST_SHARE = 0.5  # that is looked for
_ALIKE = 0.01  # relative standard deviation of the sums of views beside what noise gives them
_RIM = 0.02  # of the longest line integral, that may stand in the outermost bins of a detector that sees all
_FEWEST_VIEWS = 8


def scatter_of(passed: Tensor, share: float, reference: float, flat: bool, spread: float) -> Tensor:
    """Scattered photons that a signal comes with, (*batch, rows, views, bins), as shares of the photons sent.

    Args:
        passed: what passes the object unscattered, T: T ln(1 / T) of it scatters.
        share: share of scattered photons in the signal behind 200 mm of water over the whole detector.
        reference: -ln of what passes 200 mm of water.
        flat: whether rows measure their own slices, so that a row's scatter stays in it.
        spread: standard deviation of the scatter, in widths (and heights) of the detector.
    """
    line = -torch.log(passed.clamp(max=1.0)).double()
    smooth = (passed * line / reference).numpy()
    for axis in (-1,) if flat else (-1, -3):
        smooth = gaussian_filter1d(smooth, smooth.shape[axis] * spread, axis=axis, mode="nearest")
    return share / (1 - share) * torch.from_numpy(smooth).to(passed)


def require_projections(A: LinearOperator) -> Radon:
    """The operator, if scatter has a meaning for its data.

    Raises:
        UsageError: it gives no projections.
    """
    if not isinstance(A, Radon):
        raise UsageError(
            f"scattered photons are taken off projections, and {type(A).__name__} gives others; leave out "
            "the correction"
        )
    return A


def correct_scatter(
    problem: InverseProblem, share: float, *, mu_water: float = MU_WATER, spread: float = 0.25
) -> InverseProblem:
    """The problem without the scattered photons that its data hold, by a convolution; weights follow.

    The signal is I = T + S(T), where S spreads T ln(1 / T) over the detector; T ← I - S(T) finds T. The share
    comes from a phantom, or from the data of parallel rays by `scatter_share`.

    Shapes: y and W of the problem (*batch, rows, views, bins).

    Args:
        problem: its data are -ln of the signals, dimensionless.
        share: share of scattered photons in the signal behind 200 mm of water over the whole detector.
        mu_water: attenuation of water, 1/mm.
        spread: standard deviation of the scatter, in widths (and heights) of the detector.

    Raises:
        UsageError: the operator is no projection, or the share is not at least 0 and below 1.

    References:
        Love and Kruger, Med. Phys. 14 (1987); Ohnesorge et al., Eur. Radiol. 9 (1999) (T ln(1 / T)).

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> grid = ct.VolumeGeometry((1, 32, 32), (8.0, 8.0, 8.0))  # (Z, Y, X), mm
        >>> A = ct.Radon(grid, ct.ParallelBeam(angles=30))
        >>> hu = torch.full(grid.shape, -1000.0)
        >>> hu[:, 8:24, 8:24] = 0.0
        >>> measured = ct.Scanner(scatter=0.1).measure(A, hu, ct.Gaussian(sigma=1e-6), ct.units.MU_WATER)
        >>> corrected, exact = ct.correct_scatter(measured, 0.1), A(ct.units.hu_to_attenuation(hu))
        >>> [round(float((data.y - exact).abs().max()), 3) for data in (measured, corrected)]
        [0.121, 0.0]
    """
    beam = require_projections(problem.A).beam
    if not 0 <= share < 1:
        raise UsageError(f"a share of {share} of scattered photons is not at least 0 and below 1")
    signal = torch.exp(-problem.y)
    passed = signal
    for _ in range(_ROUNDS):
        scatter = scatter_of(passed, share, REFERENCE_MM * mu_water, beam.flat, spread)
        passed = torch.maximum(signal - scatter, _LEAST * signal)
    # dy of the corrected data is signal / passed of the measured ones.
    W = problem.W * (passed / signal).square()
    return InverseProblem(problem.A, -torch.log(passed), problem.noise, W)


def scatter_share(problem: InverseProblem, *, mu_water: float = MU_WATER, spread: float = 0.25) -> float:
    """The share for `correct_scatter` at which the data of parallel rays are consistent.

    A parallel view of an object adds up to the same from every side. Scattered photons break that, most
    where the object is thickest. The share is the one for which the sums differ least.

    Shapes: y of the problem (*batch, rows, views, bins); all rows share what is found.

    Args:
        problem: its data are -ln of the signals, dimensionless.
        mu_water: attenuation of water, 1/mm.
        spread: standard deviation of the scatter, in widths of the detector.

    Returns:
        The share of scattered photons in the signal behind 200 mm of water over the whole detector.

    Raises:
        UsageError: the rays are not parallel, views are few, the detector does not see all of the object, or
            no share up to one half makes the data consistent.

    References:
        Helgason, The Radon Transform (1980), and Ludwig, Comm. Pure Appl. Math. 19 (1966) (consistency: the
        moment of order 0).

    Examples:
        >>> import ctflow as ct
        >>> from ctflow.datasets.synthetic import toy_volume
        >>> chest = toy_volume(1, 64)
        >>> A = ct.Radon(chest.geometry, ct.ParallelBeam(angles=30))
        >>> measured = ct.Scanner(scatter=0.1).measure(A, chest.data, ct.Poisson(1e6), ct.units.MU_WATER)
        >>> round(ct.scatter_share(measured), 2)
        0.1
    """
    from scipy.optimize import minimize_scalar

    A, y = problem.A, problem.y
    beam = require_projections(A).beam
    if not (beam.flat and beam.rays().parallel):
        raise UsageError(
            "views add up alike for parallel rays in a slice alone; give the share from a phantom, or rebin"
        )
    if y.shape[-2] < _FEWEST_VIEWS:
        raise UsageError(
            f"{y.shape[-2]} views are too few to compare; give {_FEWEST_VIEWS} or more, or the share"
        )
    if float(y[..., (0, -1)].mean(-2).max()) > _RIM * float(y.max()):
        raise UsageError(
            "the detector does not see all of the object, whose views then add up to different sums; give "
            "the share from a phantom"
        )

    def inconsistency(share: float) -> float:
        """Relative standard deviation of a slice's sums."""
        sums = correct_scatter(problem, share, mu_water=mu_water, spread=spread).y.double().sum(-1)
        return float((sums.var(-1) / sums.mean(-1).square()).mean().sqrt())

    # Too large a share leaves the thickest places without a signal, and the views alike once more, if less.
    tried = [0.0, *np.geomspace(0.002, _MOST_SHARE, 26).tolist()]
    best = int(np.argmin([inconsistency(share) for share in tried]))
    around = tried[max(best - 1, 0)], tried[min(best + 1, len(tried) - 1)]
    share = float(minimize_scalar(inconsistency, bounds=around, options={"xatol": 1e-4}).x)
    variance = torch.where(problem.W > 0, 1 / problem.W, 0).double().expand_as(y)
    noise = float(variance.sum(-1).mean().sqrt() / y.double().sum(-1).mean())
    left = inconsistency(share)
    if left > _ALIKE + noise:
        raise UsageError(
            f"no share of scattered photons up to {_MOST_SHARE:g} makes the views add up alike: their sums "
            f"still differ by {100 * left:.1f} %; give the share from a phantom"
        )
    return share
