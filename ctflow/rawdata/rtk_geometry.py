"""The parameters of RTK's ThreeDCircularProjectionGeometry, and the rays that they stand for.

RTK turns about its y axis, in the frame of IEC 61217: for a patient who lies on the back, head first, x grows
to the left, y to the head and z to the front. A slice here has its columns along x, its rows against z, and
slices follow y; (x, y, z) of this package are RTK's (x, z, y). That is the patient as he is and not his
mirror image, since the frame of `Rays` has its second axis against the rows.

References: RTK's Geometry.md and rtkThreeDCircularProjectionGeometry.cxx.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ctflow.errors import GeometryError
from ctflow.geometry import Rays
from ctflow.geometry._beam import require_positive
from ctflow.geometry._rays import Array

JAWS = ("CollimationUInf", "CollimationUSup", "CollimationVInf", "CollimationVSup")
_LENGTHS = (
    *("SourceToIsocenterDistance", "SourceToDetectorDistance", "SourceOffsetX", "SourceOffsetY"),
    *("ProjectionOffsetX", "ProjectionOffsetY"),
)
_ANGLES = ("GantryAngle", "OutOfPlaneAngle", "InPlaneAngle")
PARAMETERS = (*_LENGTHS, *_ANGLES, *JAWS)
"""Names of the parameters of a view."""

_FAR = 1e6  # mm, beyond any scanner
_SQUARE = 1e-9  # cosine of the angle between rows and columns of the detector
OPEN = float(np.finfo(np.float64).max)
"""Place of jaws that leave everything open."""

# (x, y, z) of RTK to (x, y, z) here, and back.
_FRAME = [0, 2, 1]

View = dict[str, float]


@dataclass(frozen=True, eq=False)
class Panel:
    """Where the bins and rows of all projections lie on the detector.

    Args:
        origin: place of the first bin and of the first row, mm.
        spacing: steps from bin to bin and from row to row, mm.
        bins: number of bins.
        rows: number of rows.

    Raises:
        GeometryError: a step is not positive, or a place is beyond any scanner.
    """

    origin: tuple[float, float]
    spacing: tuple[float, float]
    bins: int
    rows: int

    def __post_init__(self) -> None:
        require_positive(spacing_along_bins=self.spacing[0], spacing_along_rows=self.spacing[1])
        if max(map(abs, self.origin)) > _FAR:
            raise GeometryError(
                f"the detector begins at {self.origin} mm, {_FAR:g} mm at most; correct the origin"
            )

    @property
    def middle(self) -> tuple[float, float]:
        """Place of the middle of the detector along the bins and along the rows, mm."""
        across, up = (o + s * (n - 1) / 2 for o, s, n in self._axes())
        return across, up

    def _axes(self) -> zip[tuple[float, float, int]]:
        return zip(self.origin, self.spacing, (self.bins, self.rows), strict=True)


def matrix_of(view: View) -> Array:
    """Projection matrix of a view, (3, 4), from mm in RTK's frame to mm on the detector."""
    shift = [view[f"Source{key}"] - view[f"Projection{key}"] for key in ("OffsetX", "OffsetY")]
    axis, far = view["SourceToIsocenterDistance"], view["SourceToDetectorDistance"]
    moved = np.array([[1.0, 0.0, shift[0]], [0.0, 1.0, shift[1]], [0.0, 0.0, 1.0]])
    offset = np.array([view["SourceOffsetX"], view["SourceOffsetY"], axis])
    turned = np.concatenate([_rotation(view), -offset[:, None]], 1)
    return np.asarray(moved @ np.diag([-far, -far, 1.0]) @ turned)


def _rotation(view: View) -> Array:
    """Axes of the detector as rows: along the bins, along the rows, and from it to the source."""
    x, y, z = (-math.radians(view[name]) for name in ("OutOfPlaneAngle", "GantryAngle", "InPlaneAngle"))
    about_x = [[1.0, 0.0, 0.0], [0.0, math.cos(x), -math.sin(x)], [0.0, math.sin(x), math.cos(x)]]
    about_y = [[math.cos(y), 0.0, math.sin(y)], [0.0, 1.0, 0.0], [-math.sin(y), 0.0, math.cos(y)]]
    about_z = [[math.cos(z), -math.sin(z), 0.0], [math.sin(z), math.cos(z), 0.0], [0.0, 0.0, 1.0]]
    return np.asarray(np.array(about_z) @ about_x @ about_y)


def rays_of(views: list[View], radius: float, panel: Panel) -> Rays:
    """The rays of RTK's parameters, with the order of the bins reversed, so that it grows with the angle.

    Args:
        views: parameters of every view, lengths in mm and angles in degrees.
        radius: of a cylindrical detector, mm; 0 where it is flat.
        panel: places of bins and rows, mm.

    Raises:
        GeometryError: jaws hide a part of the detector, or its radius is not positive.
    """
    require_positive(radius=radius or None)
    axes = np.stack([_rotation(view) for view in views])
    numbers = {name: np.array([view[name] for view in views]) for name in views[0]}
    offset_x, offset_y = numbers["ProjectionOffsetX"], numbers["ProjectionOffsetY"]
    across, up = panel.middle[0] + offset_x, panel.middle[1] + offset_y
    axis = numbers["SourceToIsocenterDistance"]
    ahead, turn = axis - numbers["SourceToDetectorDistance"], np.zeros(len(views))
    if radius:
        turn = across / radius
        across, ahead = radius * np.sin(turn), ahead + radius * (1 - np.cos(turn))
    step, zero = panel.spacing[0], np.zeros(len(views))

    def placed(*along: Array) -> Array:
        """A vector of the detector's axes in the frame here, (views, 3)."""
        return np.asarray(np.einsum("va,vax->vx", np.stack(along, 1), axes)[:, _FRAME])

    rays = Rays(
        placed(numbers["SourceOffsetX"], numbers["SourceOffsetY"], axis),
        placed(across, up, ahead),
        -placed(step * np.cos(turn), zero, step * np.sin(turn)),
        placed(zero, zero + panel.spacing[1], zero),
        panel.rows,
        panel.bins,
        radius=radius,
    )
    _require_open(rays, numbers)
    return rays


def _require_open(rays: Rays, numbers: dict[str, Array]) -> None:
    """Refuse jaws that cover bins: what these hold was not measured.

    A jaw is given where it cuts the plane through the axis that faces the source, as RTK's
    MaskCollimationImageFilter has it.
    """
    jaws = np.stack([numbers[name] for name in JAWS], 1)
    for view in np.nonzero((jaws < OPEN).any(1))[0]:
        source = rays.source[view][_FRAME]
        towards = source / np.linalg.norm(source)
        up = rays.v[view][_FRAME]
        across = np.cross(up, towards)
        across /= np.linalg.norm(across)
        ray = rays.points(int(view))[[0, -1]][:, :, _FRAME] - source
        plane = source - ray * (np.linalg.norm(source) / (ray @ towards))[..., None]
        u, v = plane @ across, plane @ np.cross(towards, across)
        if (np.array([-u.min(), u.max(), -v.min(), v.max()]) > jaws[view]).any():
            raise GeometryError(
                f"the collimation of view {view} hides a part of the detector, whose bins were not measured; "
                "crop the projections to what the jaws leave open, and remove the Collimation elements"
            )


def views_of(rays: Rays) -> tuple[list[View], Panel]:
    """RTK's parameters of rays from a point source; the inverse of `rays_of`.

    Args:
        rays: in mm.

    Returns:
        Parameters of every view, lengths in mm and angles in degrees, and the panel.

    Raises:
        GeometryError: RTK has no parameters for such rays.
    """
    pitch, row_pitch = (np.linalg.norm(step, axis=1) for step in (rays.u, rays.v))
    skew = np.abs((rays.u * rays.v).sum(1) / (pitch * row_pitch)).max()
    same = np.ptp(pitch) <= _SQUARE * pitch[0] and np.ptp(row_pitch) <= _SQUARE * row_pitch[0]
    if rays.parallel or skew > _SQUARE or not same:
        raise GeometryError(
            "RTK's geometry has a point source, and a detector with one pitch and with rows at right angles "
            "to its bins, and this beam has not; write the arrays by numpy.save with a geometry file"
        )
    spacing = (float(pitch[0]), float(row_pitch[0]))
    origin = (-spacing[0] * (rays.bins - 1) / 2, -spacing[1] * (rays.rows - 1) / 2)
    return [_view(rays, k) for k in range(len(rays.u))], Panel(origin, spacing, rays.bins, rays.rows)


def _view(rays: Rays, k: int) -> View:
    source, centre, normal = (part[k][_FRAME] for part in (rays.source, rays.centre, rays.normal))
    up = rays.v[k][_FRAME] / np.linalg.norm(rays.v[k])
    away, across = centre, 0.0
    if rays.radius:
        # RTK's cylinder has its axis straight above the isocentre, as seen from the detector.
        middle = centre - rays.radius * normal
        back = middle - up * (middle @ up)
        back /= np.linalg.norm(back)
        along = np.cross(up, back)
        across = rays.radius * math.atan2(normal @ along, -(normal @ back))
        away = middle - rays.radius * back
    else:
        along = -rays.u[k][_FRAME] / np.linalg.norm(rays.u[k])
        back = np.cross(along, up)
        across = float(centre @ along)
    if (source - centre) @ back <= 0 or rays.u[k][_FRAME] @ along >= 0:
        raise GeometryError(
            "the bins of a view run against the angle of its source; reverse them, in the data and in u"
        )
    lengths = {
        "SourceToIsocenterDistance": source @ back,
        "SourceToDetectorDistance": (source - away) @ back,
        "SourceOffsetX": source @ along,
        "SourceOffsetY": source @ up,
        "ProjectionOffsetX": across,
        "ProjectionOffsetY": centre @ up,
    }
    # Rounded to what no detector resolves, so that what is the same in all views is so in the file.
    view = {name: round(float(value), 9) + 0.0 for name, value in lengths.items()}
    return view | {name: round(angle, 12) + 0.0 for name, angle in _angles(np.stack([along, up, back]))}


def _angles(axes: Array) -> list[tuple[str, float]]:
    """Angles of `_rotation`, in degrees."""
    flat = math.hypot(axes[2, 0], axes[2, 2])
    out_of_plane = -math.atan2(axes[2, 1], flat)
    if flat < _SQUARE:  # the detector faces along the axis: one angle does what two could
        gantry, in_plane = -math.atan2(axes[0, 2], axes[0, 0]), 0.0
    else:
        gantry, in_plane = -math.atan2(-axes[2, 0], axes[2, 2]), -math.atan2(-axes[0, 1], axes[1, 1])
    found = (gantry, out_of_plane, in_plane)
    return [(name, math.degrees(angle) % 360) for name, angle in zip(_ANGLES, found, strict=True)]
