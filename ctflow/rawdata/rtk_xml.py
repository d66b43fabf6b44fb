"""RTK's XML files of geometries."""

from __future__ import annotations

from xml.parsers import expat

import numpy as np

from ctflow.errors import GeometryError, UnreadableError, UsageError, suggestion
from ctflow.rawdata.rtk_geometry import JAWS, OPEN, PARAMETERS, View, matrix_of

ROOT = "RTKThreeDCircularGeometry"
"""The outermost element."""

_VERSIONS = ("2", "3")
_RADIUS = "RadiusCylindricalDetector"
_NUMBERS = (*PARAMETERS, _RADIUS)
_OLD = {"Angle": "GantryAngle"}  # what the first files called it
_LARGEST = 1e6  # mm or degrees, beyond any scanner
_AGREE = 1e-3  # of a matrix and the parameters beside it, as RTK has it


def parse_geometry(text: str) -> tuple[list[View], float]:
    """Parameters of every view from the text of an XML file, lengths in mm and angles in degrees.

    As in RTK, a value holds for all views that follow until it is given anew. What is unknown is refused,
    where RTK goes on without it.

    Returns:
        One table for each view, and the radius of the cylindrical detector, mm; 0 where it is flat.

    Raises:
        UnreadableError: it is not XML.
        UsageError: an element, an attribute or a version is unknown.
        GeometryError: a value is impossible, or a matrix contradicts its parameters.

    References: RTK's rtkThreeDCircularProjectionGeometryXMLFileReader.cxx, versions 2 and 3 of the format.
    """
    reader = _Reader()
    try:
        reader.parser.Parse(text, True)
    except expat.ExpatError as error:
        raise UnreadableError(
            f"expected RTK's geometry in XML and line {error.lineno} is damaged; copy the file again"
        ) from None
    if not reader.views:
        raise GeometryError("RTK's geometry has no <Projection>; write one for every view")
    if 0 < reader.turned < len(reader.views):
        raise GeometryError(
            f"{len(reader.views) - reader.turned} of {len(reader.views)} <Projection> have no <GantryAngle>; "
            "give every one its own"
        )
    return reader.views, reader.now[_RADIUS]


class _Reader:
    """Takes the elements one after the other, as RTK's own reader does."""

    def __init__(self) -> None:
        self.views: list[View] = []
        self.turned = 0  # of them with an angle of their own
        self.now: View = dict.fromkeys(_NUMBERS, 0.0) | dict.fromkeys(JAWS, OPEN)
        self.open: list[str] = []
        self.text = ""
        self.matrix: list[float] = []
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._add
        self.parser.EntityDeclHandler = self._refuse_entities

    def _refuse_entities(self, *declaration: object) -> None:
        raise UsageError("RTK's geometry declares entities, which may grow without end; write numbers")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = _OLD.get(name, name)
        expected = ([ROOT], ["Projection", *_NUMBERS], [*_NUMBERS, "Matrix"])[min(2, len(self.open))]
        inside = len(self.open) < 2 or self.open[1:] == ["Projection"]
        if name not in expected or not inside:
            raise UsageError(f"RTK's geometry has an unknown element <{name}>; {suggestion(name, expected)}")
        unknown = sorted(attributes.keys() - ({"version"} if name == ROOT else set()))
        if unknown:
            raise UsageError(f"<{name}> of RTK's geometry has an unknown attribute {unknown[0]}; remove it")
        if name == ROOT and attributes.get("version") not in _VERSIONS:
            raise UsageError(
                f"RTK's geometry has version {attributes.get('version')} and {' or '.join(_VERSIONS)} is "
                "expected; write it anew with a newer RTK"
            )
        self.open.append(name)
        self.text, self.matrix = "", [] if name == "Projection" else self.matrix

    def _add(self, text: str) -> None:
        self.text += text

    def _end(self, name: str) -> None:
        name = self.open.pop()
        if name == "Matrix":
            self.matrix = _values(name, self.text, 12)
        elif name in _NUMBERS:
            self.now[name] = _values(name, self.text, 1)[0]
            self.turned += name == "GantryAngle" and self.open[-1] == "Projection"
            if abs(self.now[name]) > _LARGEST and name not in JAWS:
                raise GeometryError(
                    f"<{name}> of RTK's geometry is {self.now[name]:g}, {_LARGEST:g} mm or degrees at most "
                    "are expected; correct it"
                )
        elif name == "Projection":
            view = {key: self.now[key] for key in _NUMBERS if key != _RADIUS}
            _require_distances(view)
            _require_matrix(view, self.matrix)
            self.views.append(view)
        self.text = ""


def _values(name: str, text: str, number: int) -> list[float]:
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != number or not np.isfinite(values).all():
        raise GeometryError(f"<{name}> of RTK's geometry must hold {number} finite numbers; correct it")
    return values


def _require_distances(view: View) -> None:
    axis, detector = view["SourceToIsocenterDistance"], view["SourceToDetectorDistance"]
    if detector == 0:
        raise GeometryError(
            "SourceToDetectorDistance is 0, which is RTK's parallel geometry; describe such projections by a "
            'geometry file with geometry = { name = "parallel-beam", ... }'
        )
    if axis == 0:
        raise GeometryError("RTK's geometry lacks SourceToIsocenterDistance, or it is 0; give it in mm")
    if axis <= 0 or detector < axis:
        raise GeometryError(
            f"SourceToIsocenterDistance {axis:g} mm must be positive and SourceToDetectorDistance "
            f"{detector:g} mm at least as large; correct them"
        )


def _require_matrix(view: View, given: list[float]) -> None:
    """Refuse a matrix that is not that of the parameters; without one there is nothing to compare."""
    if given and np.abs(matrix_of(view) - np.reshape(given, (3, 4))).max() > _AGREE:
        raise GeometryError(
            "a <Matrix> of RTK's geometry does not belong to the parameters beside it; keep those that are "
            "right, and write the file anew with RTK"
        )


def geometry_text(views: list[View], radius: float) -> str:
    """The text of RTK's XML; what all views share stands before them.

    Args:
        views: of `views_of`, lengths in mm and angles in degrees.
        radius: of a cylindrical detector, mm; 0 where it is flat.
    """
    shared = {name: views[0][name] for name in views[0] if all(v[name] == views[0][name] for v in views)}
    shared.pop("GantryAngle", None)
    lines = ['<?xml version="1.0"?>', "<!DOCTYPE RTKGEOMETRY>", f'<{ROOT} version="3">']
    lines += [_line(name, value) for name, value in shared.items() if value]
    lines += [_line(_RADIUS, radius)] if radius else []
    for view in views:
        lines.append("  <Projection>")
        lines += [_line(name, value) for name, value in view.items() if name not in shared]
        rows = [" ".join(f"{value:.15g}" for value in row) for row in matrix_of(view).tolist()]
        lines += ["    <Matrix>", *(f"      {row}" for row in rows), "    </Matrix>", "  </Projection>"]
    return "\n".join([*lines, f"</{ROOT}>", ""])


def _line(name: str, value: float) -> str:
    return f"    <{name}>{value!r}</{name}>"
