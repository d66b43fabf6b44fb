"""A protocol: a TOML file whose tables are calls; what is measured, how it is solved, what is accepted."""

from __future__ import annotations

import hashlib
import math
import os
import re
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

from ctflow.errors import ProtocolError
from ctflow.geometry import Beam, VolumeGeometry
from ctflow.registry import Call, build, names, nested
from ctflow.runs.overrides import put, require_known
from ctflow.system.handwritten import read_text
from ctflow.tables import Listed, Real, Table, parse_toml, require_kind
from ctflow.units import MU_WATER, mu_water_at

if TYPE_CHECKING:
    from ctflow.noise import Noise
    from ctflow.operators import LinearOperator
    from ctflow.scanner import Scanner
    from ctflow.solving import Method

_CALL = Table(closed=False)
_TABLES = {
    **dict.fromkeys(("geometry", "scanner", "operator", "noise", "method", "reference"), _CALL),
    **dict.fromkeys(("beside", "tuned"), Listed(_CALL, 0, 1000)),
    "accept": Table(closed=False),
    "coupling": Real(0, 100),  # leave it out for slices alone
    "scatter_correction": Real(0, 0.9),
    "mu_water": Real(),
    "energy_kev": Real(),
}

ACCEPT = {"rmse_hu": "<=", "psnr": ">=", "ssim": ">="}
"""What the accept table may hold, and how the figure must stand to its threshold."""


class Tables(TypedDict):
    """The tables of a protocol's file."""

    geometry: NotRequired[Call]
    scanner: NotRequired[Call]
    operator: NotRequired[Call]
    noise: Call
    method: Call
    reference: Call
    beside: NotRequired[list[Call]]
    tuned: NotRequired[list[Call]]
    coupling: NotRequired[float]
    scatter_correction: NotRequired[float]
    accept: NotRequired[dict[str, float]]
    mu_water: NotRequired[float]
    energy_kev: NotRequired[float]


@dataclass(frozen=True)
class Protocol:
    """What is measured, how it is reconstructed, and what counts as good enough.

    Args:
        name: name of the file without its ending.
        summary: the file's first comment line.
        tables: the file's content; angles and arcs in degrees, lengths in mm.
        overrides: the "key=value" texts that changed it.

    Raises:
        ProtocolError: a table is missing or unknown.

    Examples:
        >>> import ctflow as ct
        >>> ct.Protocol.load("sparse-view-60").override(["noise.photons=2e4"]).noise()
        Poisson(photons=20000.0, electronic=0.0)
    """

    name: str
    summary: str
    tables: Tables
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in self.tables:
            require_known(key, _TABLES, f"protocol '{self.name}' has an unknown table '{key}'")
        require_kind(self.tables, Table(others=_TABLES), f"protocol '{self.name}'")
        missing = [key for key in ("noise", "method", "reference") if key not in self.tables]
        if missing:
            raise ProtocolError(
                f"protocol '{self.name}' lacks {', '.join(missing)}; `ctflow show` prints a whole one"
            )
        if not {"geometry", "operator"} & set(self.tables):
            raise ProtocolError(
                f"protocol '{self.name}' must hold geometry (for CT), operator (for images), or both "
                "(the operator then acts on the projections)"
            )
        if {"mu_water", "energy_kev"} <= set(self.tables):
            raise ProtocolError(f"protocol '{self.name}' gives mu_water and energy_kev; keep one of them")

    @classmethod
    def load(cls, name_or_path: str | Path) -> Protocol:
        """Read a protocol: a file that exists, else a name in $CTFLOW_PROTOCOLS, else a packaged name.

        Raises:
            ProtocolError: nothing has that name (the nearest is offered), or the file is not TOML.
        """
        path = Path(name_or_path)
        if path.is_file():
            name = os.fsencode(path.stem).decode("utf-8", "replace")  # a file's name need not be text
            return cls.parse(name, read_text(path, f"protocol '{name}'"))
        known = texts()
        require_known(str(name_or_path), known, f"no protocol is named '{name_or_path}'")
        return cls.parse(str(name_or_path), known[str(name_or_path)])

    @classmethod
    def parse(cls, name: str, text: str) -> Protocol:
        """A protocol from the text of its file.

        Raises:
            ProtocolError: the text is not TOML.
        """
        tables = parse_toml(text, f"protocol '{name}'")
        return cls(name, summary_of(text), cast(Tables, tables))  # refused where they are none

    def override(self, changes: list[str]) -> Protocol:
        """The protocol with values replaced.

        Args:
            changes: "method.iterations=80", "accept={rmse_hu=30}"; the value is TOML, a bare word a string.

        Raises:
            ProtocolError: a change is not key=value, or its path leads nowhere.
        """
        tables = deepcopy(self.tables)
        for change in changes:
            put(tables, change, _TABLES)
        return replace(self, tables=tables, overrides=(*self.overrides, *changes))

    @property
    def mu_water(self) -> float:
        """Attenuation of water that the protocol asks for, 1/mm.

        Raises:
            ProtocolError: it is not a number that water can have.
            UnitError: the energy lies outside 30 to 150 keV.
        """
        energy = self.tables.get("energy_kev")
        mu = float(self.tables.get("mu_water", MU_WATER)) if energy is None else mu_water_at(energy)
        if not 0.001 < mu < 1:
            raise ProtocolError(f"mu_water {mu} is not an attenuation in 1/mm; that of water is about 0.02")
        return mu

    @property
    def coupling(self) -> float | None:
        """How strongly the prior makes neighbouring slices agree, see `ctflow.priors.Coupled`; None: not."""
        return self.tables.get("coupling")

    @property
    def accept(self) -> dict[str, float]:
        """Thresholds of the main method: rmse_hu (HU, at most), psnr (dB, at least), ssim (at least)."""
        return dict(self.tables.get("accept", {}))

    @property
    def main(self) -> str:
        """Name of the main method in the report."""
        return list(self.method_tables())[-1]

    def method_tables(self) -> dict[str, Call]:
        """Tables of the methods by the name each has in the report: reference, beside, main method.

        A method with a refinement says so: "ms-flow-refinement".
        """
        named: dict[str, Call] = {}
        for table in (self.tables["reference"], *self.tables.get("beside", []), self.tables["method"]):
            words = f"{table.get('name', '')} {'refinement' * ('refine' in nested(table))}"
            label = name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
            for number in range(2, len(named) + 2):
                if name in named:
                    name = f"{label}-{number}"
            named[name] = table
        return named

    def methods(self) -> dict[str, Method]:
        """The methods by name, built: reference first, main method last."""
        from ctflow.solving import build_method

        return {name: build_method(table) for name, table in self.method_tables().items()}

    def only_methods(self, wanted: list[str]) -> Protocol:
        """The protocol with these methods in place of its own.

        Args:
            wanted: reference first, main method last, each as in reports or in `ctflow methods`; one alone
                joins the protocol's reference. Parameters: the tables', else `tuned`, else the defaults.

        Raises:
            ProtocolError: a method is unknown (the nearest is offered), or named twice.
        """
        own = self.method_tables()
        chosen = wanted if len(wanted) > 1 else [next(iter(own)), *wanted]
        if len(set(chosen)) < len(chosen):
            twice = max(chosen, key=chosen.count)
            why = "named twice" if len(wanted) > 1 else "the reference itself"
            raise ProtocolError(f"method '{twice}' is {why}; name another beside it, or to compare it with")
        inside = {str(table.get("name")): table for table in reversed(own.values())}
        defaults: dict[str, Call] = {name: {"name": name} for name in names("method")}
        known = {**defaults, **self._tuned, **inside, **own}
        for name in chosen:
            require_known(name, known, f"no method is named '{name}'")
        first, *beside, last = [known[name] for name in chosen]
        tables: Tables = {**self.tables, "reference": first, "beside": beside, "method": last}
        return replace(self, tables=tables, overrides=(*self.overrides, f"methods {','.join(wanted)}"))

    def with_methods(self, further: list[str]) -> Protocol:
        """The protocol with more methods beside, as its `tuned` table has them, else with their defaults.

        Args:
            further: methods, as `ctflow methods` lists them.
        """
        more = [self._tuned.get(name, {"name": name}) for name in further]
        tables: Tables = {**self.tables, "beside": [*self.tables.get("beside", []), *more]}
        return replace(self, tables=tables, overrides=(*self.overrides, *(f"beside {n}" for n in further)))

    @property
    def _tuned(self) -> dict[str, Call]:
        return {str(table.get("name")): table for table in reversed(self.tables.get("tuned", []))}

    def noise(self) -> Noise:
        """The noise model."""
        from ctflow.noise import Noise

        noise = build("noise", self.tables["noise"])
        assert isinstance(noise, Noise)
        return noise

    def scanner(self) -> Scanner | None:
        """What makes the data in place of the operator; None: the operator itself.

        Raises:
            ProtocolError: there are no projections to measure, or an operator acts on them.
        """
        if "scanner" not in self.tables:
            return None
        if "geometry" not in self.tables or "operator" in self.tables:
            raise ProtocolError(
                f"protocol '{self.name}' gives a scanner, which measures projections as they are; it needs "
                "geometry and no operator beside it"
            )
        from ctflow.scanner import Scanner

        if "name" in self.tables["scanner"]:
            raise ProtocolError("a scanner's table has no name, there is one kind; take the name out")
        scanner = build("scanner", {"name": "scanner", **self.tables["scanner"]})
        assert isinstance(scanner, Scanner)
        return scanner

    def beam(self) -> Beam:
        """The beam of a CT protocol; the file's angles are degrees.

        Raises:
            ProtocolError: the protocol has no geometry.
        """
        table = dict(self.tables.get("geometry", {}))
        if isinstance(angles := table.get("angles"), list):
            require_kind(angles, Listed(Real()), "geometry.angles", depth=1)
            table["angles"] = [math.radians(angle) for angle in angles]
        beam = build("geometry", table)
        assert isinstance(beam, Beam)
        return beam

    def operator(self, volume: VolumeGeometry, beam: Beam | None = None) -> LinearOperator:
        """What maps the images of one solve to data: projections, an operator on images, or both.

        Args:
            volume: geometry of the images: one slice, or all that rays cross.
            beam: rays of a measurement, in place of the protocol's own.

        Raises:
            GeometryError: the detector is too narrow for the slice.
        """
        if "geometry" not in self.tables:
            return self._acting_on(volume.shape)
        from ctflow.operators import Radon

        radon = Radon(volume, beam or self.beam())
        return self._acting_on(radon.range_shape) @ radon if "operator" in self.tables else radon

    def _acting_on(self, shape: tuple[int, ...]) -> LinearOperator:
        from ctflow.operators import LinearOperator

        operator = build("operator", {**self.tables.get("operator", {}), "shape": shape})
        assert isinstance(operator, LinearOperator)
        return operator

    def validate(self) -> Protocol:
        """Build everything that the tables name, operators on 64 × 64 pixels, and return the protocol.

        Raises:
            ProtocolError: an unknown name or keyword (the nearest is offered), or a value out of range.
        """
        for key, value in self.accept.items():
            require_known(key, ACCEPT, f"protocol '{self.name}' accepts by an unknown figure '{key}'")
            require_kind(value, Real(), f"accept.{key}")
        _ = self.mu_water, self.noise(), self.scanner(), self.methods()  # each refuses what it cannot be
        for table in self.tables.get("tuned", []):
            build("method", table)
        if "geometry" in self.tables:
            self.beam()
        if "operator" in self.tables:
            self._acting_on((1, 64, 64))
        return self

    def dump(self) -> str:
        """The protocol as TOML, overrides applied."""
        import tomli_w

        return f"# {self.summary}\n{tomli_w.dumps(self.tables)}"

    @property
    def sha256(self) -> str:
        """Hash of `dump()`: the same experiment has the same hash."""
        return hashlib.sha256(self.dump().encode()).hexdigest()


def texts() -> dict[str, str]:
    """The text of every protocol that has a name; those in $CTFLOW_PROTOCOLS go before the packaged ones."""
    found = {path.name: path.read_text(encoding="utf-8") for path in files("ctflow.protocols").iterdir()}
    for folder in filter(None, os.environ.get("CTFLOW_PROTOCOLS", "").split(os.pathsep)):
        found |= {p.name: read_text(p, f"protocol '{p.stem}'") for p in Path(folder).glob("*.toml")}
    return {name[:-5]: text for name, text in sorted(found.items()) if name.endswith(".toml")}


def summary_of(text: str) -> str:
    """The first comment line of a protocol's text."""
    first = text.lstrip().split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
