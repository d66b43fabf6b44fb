"""The study file: cases, split, protocols, methods and tuning, each key checked before anything is read."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from ctflow.errors import CTFlowError, StudyError, suggestion
from ctflow.experiments.records import Tuning
from ctflow.registry import Call, build, imports_allowed
from ctflow.runs.protocol import ACCEPT, Protocol, summary_of
from ctflow.search_space import Range
from ctflow.system.handwritten import read_text
from ctflow.tables import (
    ANYTHING,
    SEED,
    Either,
    Kind,
    Listed,
    Real,
    Table,
    Text,
    Whole,
    parse_toml,
    require_kind,
    value_of,
)

SPLITS = ("train", "validation", "test")
"""The sides of a split; a patient is on one of them."""

_SIDE = Either((Listed(ANYTHING), Real(0, 1)))  # patients, or a share of them
_KINDS: dict[str, dict[str, Kind]] = {
    "split": {**dict.fromkeys(SPLITS, _SIDE), "seed": SEED},
    "tuning": {"trials": Whole(1, 10_000), "objective": Text(), "seed": SEED},
    "statistics": {"reference": Text(), "margin_hu": Real(0, 10_000)},
    "lesions": {
        "diameters_mm": Listed(Real(0, 1000, above=True), 1, 100),
        "contrasts_hu": Listed(Either((Real(-10_000, -0.001), Real(0.001, 10_000))), 1, 100),
        "places": Whole(2, 1000),  # of one place there is no spread
    },
    "whiteness": {"lags": Whole(1, 10_000)},
}
_KEYS: dict[str, Kind] = {
    "cases": Listed(Table(closed=False), 0, 100_000),
    "protocols": Listed(Text(), 0, 1000),
    "methods": Table(closed=False),
    "seeds": Listed(SEED, 1, 10_000),
    "samples": Whole(1, 1000),
    "prior": Text(),
    "device": Text(),
    "slurm": Table(closed=False),
    **{key: Table(others=kinds) for key, kinds in _KINDS.items()},
}
# What a job may be given by a file. Other parameters of submitit run commands: setup, srun_args, python.
_SLURM = {
    *("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node"),
    *(f"slurm_{key}" for key in ("partition", "account", "qos", "constraint", "time", "mem", "gres")),
    *(f"slurm_{key}" for key in ("mem_per_cpu", "mem_per_gpu", "reservation", "array_parallelism")),
}


@dataclass(frozen=True)
class StudyMethod:
    """A method as the study file declares it.

    Args:
        label: the study's name for it.
        table: `name` and keyword arguments, as in a protocol.
        tune: keyword arguments to tune on the validation cases, and their ranges.
    """

    label: str
    table: Call
    tune: dict[str, Range]


@dataclass(frozen=True)
class Study:
    """What a study compares, and on whom.

    Args:
        name: name of the file without its ending.
        summary: the file's first comment line.
        home: folder that relative paths in the file start from.
        cases: the file's case tables, not yet looked up.
        split: share of the patients, or list of them, by side.
        protocols: what is measured; their own methods are not used.
        methods: by label.
        tuning: trials, objective and seed; the same for every method.
        seeds: seeds of noise and methods; each is a unit of its own.
        samples: images that a random method draws and averages.
        prior: name or file of the flow prior.
        device: "cpu" or "cuda".
        statistics: reference method, and margin of equivalence, HU.
        asked: tests of every test image, "lesions" and "whiteness", with their keyword arguments.
        slurm: parameters of the Slurm job: partition, time, memory, as submitit names them.
    """

    name: str
    summary: str
    home: Path
    cases: list[dict[str, object]]
    split: dict[str, object]
    protocols: dict[str, Protocol]
    methods: dict[str, StudyMethod]
    tuning: Tuning = field(default_factory=lambda: _tuning({}))
    seeds: tuple[int, ...] = (0,)
    samples: int = 1
    prior: str = "ct-256"
    device: str = "cpu"
    statistics: dict[str, object] = field(default_factory=dict)
    asked: dict[str, dict[str, object]] = field(default_factory=dict)
    slurm: dict[str, object] = field(default_factory=dict)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Study:
        """Read a study: a file that exists, else a packaged name.

        Raises:
            StudyError: nothing has that name, or the file is no study.
        """
        path = Path(name_or_path)
        if path.is_file():
            text = read_text(path, f"study '{path.stem}'", StudyError)
            return cls.parse(path.stem, text, path.absolute().parent)
        known = texts()
        known_key(str(name_or_path), known, f"no study is named '{path.name}'")
        return cls.parse(str(name_or_path), known[str(name_or_path)], Path.cwd())

    @classmethod
    def parse(cls, name: str, text: str, home: Path) -> Study:
        """A study from the text of its file.

        Args:
            name: the study's name.
            text: TOML.
            home: folder that relative paths in the text start from.

        Raises:
            StudyError: the text is not TOML, has an unknown key, lacks one, or holds a value that cannot be.
        """
        tables = parse_toml(text, f"study '{name}'", StudyError)
        for key, value in tables.items():
            known_key(key, _KEYS, f"study '{name}' has an unknown key '{key}'")
            for inner in value if key in _KINDS and isinstance(value, dict) else ():
                known_key(inner, _KINDS[key], f"{key} has an unknown key '{inner}'")
        require_kind(tables, Table(others=_KEYS), f"study '{name}'", StudyError)
        missing = [key for key in ("cases", "protocols", "methods") if not tables.get(key)]
        if missing:
            raise StudyError(
                f"study '{name}' lacks {', '.join(missing)}; `ctflow study show` prints a whole one"
            )
        given: dict[str, object] = value_of(tables, "methods", {})
        methods = {label: _method(label, table) for label, table in given.items()}
        study = cls(
            name,
            summary_of(text),
            home,
            cases=value_of(tables, "cases", []),
            split=_split(value_of(tables, "split", {})),
            protocols=_protocols(value_of(tables, "protocols", []), home),
            methods=methods,
            tuning=_tuning(value_of(tables, "tuning", {})),
            seeds=tuple(value_of(tables, "seeds", [0])),
            samples=value_of(tables, "samples", 1),
            prior=_prior(value_of(tables, "prior", "ct-256"), home),
            device=value_of(tables, "device", "cpu"),
            statistics=_statistics(value_of(tables, "statistics", {}), methods),
            asked={test: value_of(tables, test, {}) for test in ("lesions", "whiteness") if test in tables},
            slurm=_slurm(value_of(tables, "slurm", {})),
        )
        if "tuning" in tables and not any(method.tune for method in methods.values()):
            raise StudyError(
                "the study has a tuning table and no method to tune; write tune = { ... } in one"
            )
        return study


def texts() -> dict[str, str]:
    """The text of every packaged study by its name."""
    found = {path.name: path for path in files("ctflow.experiments").iterdir() if path.name.endswith(".toml")}
    return {name[:-5]: path.read_text(encoding="utf-8") for name, path in sorted(found.items())}


def known_key(name: str, known: Collection[str], problem: str) -> None:
    """Refuse a name that is not known, with the nearest one.

    Raises:
        StudyError: it is not among `known`.
    """
    if name not in known:
        raise StudyError(f"{problem}; {suggestion(name, known)}")


def _protocols(names: list[str], home: Path) -> dict[str, Protocol]:
    found = [Protocol.load(home / name if (home / name).is_file() else name) for name in names]
    if len({protocol.name for protocol in found}) < len(found):
        raise StudyError("two protocols of the study have one name; rename one of the files")
    return {protocol.name: protocol for protocol in found}


def _prior(name: str, home: Path) -> str:
    return str(home / name) if (home / name).is_file() else name


def _method(label: str, table: object) -> StudyMethod:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", label) or not isinstance(table, dict):
        raise StudyError(f"[methods.{label}] must be a table whose name is of a-z, 0-9 and '-'; rename it")
    require_kind(
        table, Table(others={"tune": Table(closed=False)}, closed=False), f"methods.{label}", StudyError
    )
    tune = {key: Range.parse(f"{label}.tune.{key}", value) for key, value in table.get("tune", {}).items()}
    call = {"name": label, **{key: value for key, value in table.items() if key != "tune"}}
    for ends in ({}, {k: r.at(0.0) for k, r in tune.items()}, {k: r.at(1.0) for k, r in tune.items()}):
        try:
            build("method", {**call, **ends})
        except CTFlowError as error:
            raise StudyError(f"[methods.{label}]: {error}") from error
    return StudyMethod(label, call, tune)


def _tuning(table: dict[str, object]) -> Tuning:
    objective = value_of(table, "objective", "rmse_hu")
    known_key(objective, ACCEPT, f"tuning has an unknown objective '{objective}'")
    return {
        "trials": value_of(table, "trials", 8),
        "objective": objective,
        "seed": value_of(table, "seed", 0),
    }


def _statistics(table: dict[str, object], methods: Collection[str]) -> dict[str, object]:
    if "reference" in table:
        reference = value_of(table, "reference", "")
        known_key(reference, methods, f"statistics.reference names no method '{reference}'")
    return table


def _slurm(table: dict[str, object]) -> dict[str, object]:
    """Parameters of the job that are data; what could become a line of the job's script is code."""
    for key, value in () if imports_allowed() else table.items():
        if key not in _SLURM or not re.fullmatch(r"[\w.:,=@/+-]+", str(value), re.ASCII):
            raise StudyError(
                f"slurm.{key} is none of {', '.join(sorted(_SLURM))} as a number or one word, and could run "
                "commands; where you trust the file, give --allow-imports"
            )
    return table


def _split(table: dict[str, object]) -> dict[str, object]:
    sides = [table[side] for side in SPLITS if side in table]
    shares = [side for side in sides if isinstance(side, int | float)]
    if 0 < len(shares) < len(sides):
        raise StudyError("the split mixes lists of patients and shares; give one kind")
    if shares and abs(sum(shares) - 1) > 1e-6:
        raise StudyError(f"the shares of the split add up to {sum(shares):g} and must to 1; correct them")
    return table
