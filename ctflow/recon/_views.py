"""What every view, and every ray of it, weighs in a filtered backprojection."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ctflow.errors import GeometryError, UsageError
from ctflow.geometry import CircularBeam, ConeBeam, FanBeam
from ctflow.operators import Radon
from ctflow.problem import InverseProblem

# A gap this many times the median is unmeasured, not coarsely sampled; golden-angle gaps differ by 2.6.
Fan = TypeVar("Fan", bound=FanBeam)

_WEDGE = 4.0
_HOLE = math.radians(15)  # several smaller ones are irregular sampling, as random views have


@dataclass(frozen=True)
class _Arc:
    """The views of a beam around the turn after which they repeat: their gaps and what is unmeasured."""

    angles: Tensor
    order: Tensor
    gaps: Tensor  # from each sorted view to the next, a wedge counting as one median gap
    wedges: Tensor  # places in `order` after which nothing was measured

    @classmethod
    def of(cls, beam: CircularBeam) -> _Arc:
        turn = 2 * math.pi if isinstance(beam, FanBeam) else math.pi
        angles = torch.tensor(beam.views, dtype=torch.float64).remainder(turn)
        order = angles.argsort()
        gaps = torch.diff(angles[order], append=angles[order][:1] + turn)
        median = gaps[gaps > 1e-6].median()
        wedges = gaps > _WEDGE * median
        if int(wedges.sum()) > 1:
            wedges &= gaps > _HOLE
        return cls(angles, order, torch.where(wedges, median, gaps), torch.nonzero(wedges)[:, 0])


def projection(problem: InverseProblem, method: str) -> Radon:
    """The projection that a formula inverts.

    Args:
        problem: what is solved.
        method: name of the formula.

    Raises:
        UsageError: the operator is not a projection by itself.
    """
    if isinstance(problem.A, Radon):
        return problem.A
    raise UsageError(
        f"{method} inverts Radon and was given {type(problem.A).__name__}; use CGLS, SIRT or TV for it"
    )


def view_weights(beam: CircularBeam) -> Tensor:
    """Angle that every view stands for, radians: they sum to π (parallel, half turn) or π (fan, half of 2π).

    Half the gaps to both neighbours, so that repeated views share one weight; gaps of unmeasured wedges
    count as one median gap.

    Args:
        beam: parallel, fan or circular cone beam.

    Returns:
        (views,) in float64.

    Raises:
        GeometryError: all views lie in one direction.
    """
    arc = _Arc.of(beam)
    if len(arc.angles) > 1 and int((arc.gaps > 1e-6).sum()) < 2:
        raise GeometryError(
            f"all {len(arc.angles)} views lie in one direction, and a formula needs half a turn of them; "
            "correct the angles, or use SIRT or TV"
        )
    weights = torch.empty_like(arc.angles)
    weights[arc.order] = (arc.gaps + arc.gaps.roll(1)) / 2
    return weights / 2 if isinstance(beam, FanBeam) else weights


def redundancy(beam: FanBeam, radius: float) -> Tensor:
    """Weights of rays that are measured once or twice: those along one line sum to 2.

    With c(θ) = 1 but for a smooth fall to zero at both ends of the arc, and θ' = θ + π - 2γ the view that
    measures the same line from the other side, a ray weighs 2 c(θ) / (c(θ) + c(θ')): 1 on a full turn.

    Args:
        beam: fitted fan or circular cone beam.
        radius: of the disc in which every line must be measured, mm.

    Returns:
        (views, bins) in float64, dimensionless.

    Raises:
        GeometryError: the views leave lines through the disc unmeasured.

    References:
        Parker, Med. Phys. 9 (1982); Silver, Med. Phys. 27 (2000); Noo, Defrise, Clackdoyle and Kudo, Phys.
        Med. Biol. 47 (2002), whose normalised weights these are.
    """
    arc, gamma = _Arc.of(beam), fan_angles(beam)
    weights = torch.ones(len(arc.angles), len(gamma), dtype=torch.float64)
    if not len(arc.wedges):
        return weights
    first = arc.order[(int(arc.wedges[0]) + 1) % len(arc.order)]
    length = float(arc.gaps.sum())
    _require_short_scan(beam, radius, length, len(arc.wedges))
    # Half a step before the first view begins the arc that it stands for.
    since = (arc.angles - arc.angles[first]).remainder(2 * math.pi) + length / len(arc.angles) / 2
    opposite = (since[:, None] + math.pi - 2 * gamma).remainder(2 * math.pi)
    ramp = (length - math.pi) / 2  # as smooth as the arc allows
    here, there = (_fade(angle, length, ramp) for angle in (since[:, None], opposite))
    return weights * 2 * here / (here + there)


def full_turn(beam: CircularBeam) -> bool:
    """Whether the views leave no wedge of their turn unmeasured."""
    return not len(_Arc.of(beam).wedges)


def require_full_turn(beam: FanBeam) -> None:
    """Refuse views of a displaced detector that leave half of the object unmeasured in some directions.

    Raises:
        GeometryError: the views are no full turn.
    """
    if not full_turn(beam):
        raise GeometryError(
            "a displaced detector sees half of the object in a view and needs a full turn of them; give "
            "arc_degrees = 360, or reconstruct by CGLS, SIRT or TV"
        )


def undisplaced(y: Tensor, beam: Fan, radius: float) -> tuple[Tensor, Fan]:
    """Projections of a displaced detector as those of one that sees both sides, with weights for the missing.

    A line is measured from both sides where the detector overlaps the axis, and once elsewhere. The weights
    rise as 1 + sin(π/2 γ/γ₀) across the overlap |γ| < γ₀, so that both measurements sum to 2; what the
    detector does not reach weighs 0.

    Args:
        y: (*batch, rows, views, bins), dimensionless.
        beam: fitted displaced fan or circular cone beam.
        radius: of the object, mm.

    Returns:
        Weighted projections with more bins, and the beam with them.

    Raises:
        GeometryError: the views are no full turn.

    References:
        Wang, Med. Phys. 29 (2002), with his weights as a function of the fan angle.
    """
    require_full_turn(beam)
    assert beam.bins is not None  # the beam is fitted
    assert beam.pitch is not None
    shift, half = beam.shift_bins, beam.bins / 2
    low, high = (edge / beam.pitch for edge in beam.edges(radius))
    before, after = (max(0, math.ceil(gap - 1e-6)) for gap in (shift - half - low, high - shift - half))
    wider = replace(beam, bins=beam.bins + before + after, shift_bins=shift + (after - before) / 2)
    wider = replace(wider, displaced=False)
    if not before + after:
        return y, wider
    # How far the detector reaches beyond the axis, on the side where it ends early.
    side, end = (1.0, shift - half) if before else (-1.0, shift + half)
    on_detector = beam.pitch * end / beam.source_detector
    overlap = abs((on_detector if beam.curved else math.atan(on_detector)) - beam.axis_angle)
    weights = 1 + torch.sin(math.pi / 2 * side * (fan_angles(beam) / overlap).clamp(-1, 1))
    return pad(y * weights.to(y), (before, after)), wider


def _fade(since: Tensor, length: float, ramp: float) -> Tensor:
    inside = torch.minimum(since, length - since).clamp_min(0)
    return torch.sin(math.pi / 2 * (inside / ramp).clamp_max(1)) ** 2


def _require_short_scan(beam: FanBeam, radius: float, length: float, wedges: int) -> None:
    needed = beam.short_scan_degrees(radius)
    if wedges > 1 or math.degrees(length) < needed - 1e-6:
        formula = "FDK of a cone" if isinstance(beam, ConeBeam) else "FBP of a fan"
        raise GeometryError(
            f"{formula} needs views over {needed:.1f}° without a gap (180° and the fan angle) and was "
            f"given {math.degrees(length):.1f}° in {wedges} part{'s' if wedges > 1 else ''}; measure "
            "more, or use SIRT or TV"
        )


def fan_angles(beam: FanBeam) -> Tensor:
    """Angle of every bin from the ray through the rotation axis, (bins,), rad."""
    assert beam.bins is not None  # the beam is fitted
    assert beam.pitch is not None
    on_detector = beam.pitch * (bin_numbers(beam.bins) + beam.shift_bins) / beam.source_detector
    return (on_detector if beam.curved else on_detector.atan()) - beam.axis_angle


def bin_numbers(n: int) -> Tensor:
    """Places of n bins from their middle, (n,), in units of a bin."""
    return torch.arange(n, dtype=torch.float64) - (n - 1) / 2
