"""Find in the data that a panel is displaced: it sees one side of the object and a little beyond the axis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ctflow.geometry import ConeBeam, HelicalBeam
from ctflow.recon._views import full_turn
from ctflow.scan import Scan

_EVEN = 0.95  # of the longer side: from there on the shorter one sees as much, and no weights are needed
_BESIDE = 0.03  # of the highest values: level of outermost bins that see air, as in `consistency`


def find_half_fan(scan: Scan) -> Scan:
    """The scan with `displaced` set where a panel, shifted in a full turn, ends inside the object.

    A panel that is merely shifted, and sees air on both sides, stays as it is.

    Args:
        scan: y (rows, views, bins), line integrals, dimensionless, with a fitted beam.
    """
    beam = scan.beam
    if not isinstance(beam, ConeBeam) or isinstance(beam, HelicalBeam) or beam.displaced:
        return scan
    (left, right), axis = beam.ends(), beam.edges(0.0)[0]
    short, long = sorted((axis - left, right - axis))
    if not 0 < short < _EVEN * long or not full_turn(beam):
        return scan
    outer = max(2, scan.y.shape[-1] // 50)
    at_end = scan.y[..., :outer] if axis - left == short else scan.y[..., -outer:]
    means = scan.y.mean(0).numpy()  # of the rows: the object may end within the panel
    if float(at_end.mean().abs()) <= _BESIDE * float(np.percentile(means, 99)):
        return scan
    note = (
        f"the detector sees one side of the object and {short / beam.magnification():.1f} mm beyond the axis "
        "(half fan): the other side is taken from the opposite views"
    )
    return replace(scan, beam=replace(beam, displaced=True), notes=(*scan.notes, note))
