"""What is solved for at once: a slice where rays stay in it, else the volume and what lies beyond it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ctflow.errors import GeometryError
from ctflow.geometry import Beam, ConeBeam, HelicalBeam, ParallelBeam3D, VolumeGeometry
from ctflow.geometry._long_object import directions_of_slices, reach, views_of_slices
from ctflow.runs.protocol import Protocol

_FEWEST = 4  # slices: a cone over fewer is a fan, which has its own protocols
_MOST_BEYOND = 4  # times the chosen slices
_LEAST_SEEN = 0.9  # of the directions: below it WFBP leaves most of a slice black
_WHOLLY = {False: "by all views", True: "in all directions"}  # of a circle, of a helix


@dataclass(frozen=True)
class Unknown:
    """The images of one solve, and where the chosen slices lie in them.

    Args:
        grid: of the images of one solve, (Z, Y, X).
        beyond: slices before the first chosen one, which rays cross too; 0 where they stay in their slices.
        beam: the beam, so that it sees the chosen slices; None where the protocol has no geometry.
    """

    grid: VolumeGeometry
    beyond: int = 0
    beam: Beam | None = None

    def of(self, series: Tensor, first: int) -> Tensor:
        """The slices of one solve, (Z, Y, X), from those of a series; beyond its ends its last is repeated.

        Args:
            series: all slices, in any unit.
            first: the first chosen one.
        """
        wanted = torch.arange(self.grid.shape[0]) + first - self.beyond
        return series[wanted.clamp(0, len(series) - 1)]

    def chosen(self, images: Tensor, slices: int) -> Tensor:
        """The chosen slices, (slices, Y, X), of images (solves, Z, Y, X), in their unit."""
        return images.flatten(0, 1)[self.beyond : self.beyond + slices]

    def notes(self, first: int, slices: int, total: int) -> list[str]:
        """What a reader must know of the slices beyond the chosen ones, and of those not every view sees."""
        if self.beam is None or self.beam.flat:
            return []
        lacking = max(0, self.beyond - first, first + slices + self.beyond - total)
        found = []
        if lacking:
            found.append(
                f"rays cross up to {self.beyond} slices beyond either end, and {lacking} of them lie beyond "
                "the series, whose last slice is repeated there in this simulation"
            )
        helix = isinstance(self.beam, HelicalBeam)
        seen_of = directions_of_slices if helix else views_of_slices
        share = seen_of(self.beam, self.grid)[self.beyond : self.beyond + slices]
        partly = [first + k for k, seen in enumerate(share.tolist()) if seen < 1]
        if partly:
            found.append(
                f"{len(partly)} of {slices} slices are not seen {_WHOLLY[helix]} from rim to rim "
                f"({partly[0]} to {partly[-1]}, by {100 * min(share):.0f} % at least): expect artefacts"
            )
        return found


def unknown_of(protocol: Protocol, chosen: VolumeGeometry) -> Unknown:
    """What a protocol solves for at once to reconstruct slices.

    Args:
        protocol: its beam decides.
        chosen: geometry of the slices.

    Raises:
        GeometryError: the slices are too few for a beam that crosses them.
    """
    if "geometry" not in protocol.tables:
        return Unknown(chosen.slices(0, 1))
    beam = protocol.beam()
    if beam.flat:
        return Unknown(chosen.slices(0, 1) if protocol.coupling is None else chosen, beam=beam)
    if not isinstance(beam, HelicalBeam):
        return crossing(beam, chosen)
    unknown = crossing(beam.covering(chosen.extent[0]), chosen)
    assert unknown.beam is not None
    seen = float(directions_of_slices(unknown.beam, chosen).max())
    if seen < _LEAST_SEEN:
        raise GeometryError(
            f"no slice is seen in more than {100 * seen:.0f} % of the directions within half a turn: the "
            f"helix climbs too fast for its rows; give a feed below {beam.feed:g} mm a turn, or more rows"
        )
    return unknown


def crossing(beam: Beam, chosen: VolumeGeometry) -> Unknown:
    """What is solved for at once where rays cross slices: these, and as many beyond either end as rays reach.

    Args:
        beam: measures the volume as a whole.
        chosen: geometry of the slices.

    Raises:
        GeometryError: the slices are too few for the beam.
    """
    slices, kind = chosen.shape[0], type(beam).__name__
    if slices < _FEWEST:
        raise GeometryError(
            f"a {kind} crosses slices and {slices} of them were given, or are seen by all views of a panel; "
            f"give {_FEWEST} at least, better the whole series, or take a protocol of fans or parallel beams"
        )
    if isinstance(beam, ConeBeam | ParallelBeam3D):
        beam = replace(beam, height=beam.height or chosen.extent[0])
    fitted = beam.fitted(chosen)
    dz = chosen.spacing[0]
    beyond = max(0, math.ceil((reach(fitted, chosen.fov / 2) - chosen.extent[0] / 2) / dz - 1e-6))
    if beyond > _MOST_BEYOND * slices:
        raise GeometryError(
            f"rays of the panel cross {beyond} slices of {dz:.3g} mm beyond either end of the {slices} "
            f"chosen ones; give {-(-beyond // _MOST_BEYOND)} slices or more, or a panel of fewer rows"
        )
    return Unknown(chosen.extended(beyond), beyond, fitted)
