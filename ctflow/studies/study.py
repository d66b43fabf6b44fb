"""The study file: cases, split, protocols, methods and tuning, each key checked before anything is read."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from ctflow.errors import CTFlowError, StudyError
from ctflow.protocol import ACCEPT, Protocol, summary_of
from ctflow.registry import build, imports_allowed
from ctflow.studies.ranges import Range

SPLITS = ("train", "validation", "test")
"""The sides of a split; a patient is on one of them."""

_KEYS = (
    "cases",
    "split",
    "protocols",
    "methods",
    "tuning",
    "seeds",
    "samples",
    "prior",
    "device",
    "statistics",
    "lesions",
    "whiteness",
    "slurm",
)
_SPLIT_KEYS = (*SPLITS, "seed")
_TUNING = {"trials": 8, "objective": "rmse_hu", "seed": 0}
_STATISTICS = {"reference": str, "margin_hu": float}
_ASKED = {
    "lesions": {
        "diameters_mm": "lengths above 0, as in [6.0, 12.0]",
        "contrasts_hu": "contrasts other than 0, as in [-50.0, 20.0]",
        "places": "2 or more",
    },
    "whiteness": {"lags": "1 or more"},
}
# What a job may be given by a file. Other parameters of submitit run commands: setup, srun_args, python.
_SLURM = {
    *("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node"),
    *(f"slurm_{key}" for key in ("partition", "account", "qos", "constraint", "time", "mem", "gres")),
    *(f"slurm_{key}" for key in ("mem_per_cpu", "mem_per_gpu", "reservation", "array_parallelism")),
}
_LEAST = {"places": 2, "lags": 1}  # of one place there is no spread


@dataclass(frozen=True)
class StudyMethod:
    """A method as the study file declares it.

    Args:
        label: the study's name for it.
        table: `name` and keyword arguments, as in a protocol.
        tune: keyword arguments to tune on the validation cases, and their ranges.
    """

    label: str
    table: dict[str, Any]
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
    cases: list[dict[str, Any]]
    split: dict[str, Any]
    protocols: dict[str, Protocol]
    methods: dict[str, StudyMethod]
    tuning: dict[str, Any] = field(default_factory=lambda: dict(_TUNING))
    seeds: tuple[int, ...] = (0,)
    samples: int = 1
    prior: str = "ct-256"
    device: str = "cpu"
    statistics: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    slurm: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Study:
        """Read a study: a file that exists, else a packaged name.

        Raises:
            StudyError: nothing has that name, or the file is no study.
        """
        path = Path(name_or_path)
        if path.is_file():
            return cls.parse(path.stem, path.read_text(encoding="utf-8"), path.absolute().parent)
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
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise StudyError(f"study '{name}' is not valid TOML: {error}") from error
        for key in tables:
            known_key(key, _KEYS, f"study '{name}' has an unknown key '{key}'")
        missing = [key for key in ("cases", "protocols", "methods") if not tables.get(key)]
        if missing:
            raise StudyError(
                f"study '{name}' lacks {', '.join(missing)}; `ctflow study show` prints a whole one"
            )
        methods = {label: _method(label, table) for label, table in _table(tables, "methods").items()}
        tuning = _tuning(_table(tables, "tuning"))
        study = cls(
            name,
            summary_of(text),
            home,
            cases=_list(tables, "cases", dict),
            split=_split(_table(tables, "split")),
            protocols=_protocols(_list(tables, "protocols", str), home),
            methods=methods,
            tuning=tuning,
            seeds=tuple(_list(tables, "seeds", int) or [0]),
            samples=_typed(tables, "samples", int, 1),
            prior=_prior(_typed(tables, "prior", str, "ct-256"), home),
            device=_typed(tables, "device", str, "cpu"),
            statistics=_statistics(_table(tables, "statistics"), methods),
            asked={name: _asked(name, _table(tables, name)) for name in _ASKED if name in tables},
            slurm=_slurm(_table(tables, "slurm")),
        )
        if "tuning" in tables and not any(method.tune for method in methods.values()):
            raise StudyError(
                "the study has a tuning table and no method to tune; write tune = { ... } in one"
            )
        return study


def texts() -> dict[str, str]:
    """The text of every packaged study by its name."""
    found = {path.name: path for path in files("ctflow.studies").iterdir() if path.name.endswith(".toml")}
    return {name[:-5]: path.read_text(encoding="utf-8") for name, path in sorted(found.items())}


def known_key(name: str, known: Collection[str], problem: str) -> None:
    """Refuse a name that is not known, with the nearest one.

    Raises:
        StudyError: it is not among `known`.
    """
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
        raise StudyError(
            f"{problem}; " + (f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}")
        )


def _typed(tables: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = tables.get(key, default)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise StudyError(f"'{key}' must be of type {kind.__name__} and is {type(value).__name__}; correct it")
    return value


def _table(tables: Mapping[str, Any], key: str) -> dict[str, Any]:
    return dict(_typed(tables, key, dict, {}))


def _list(tables: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    values: list[Any] = _typed(tables, key, list, [])
    return [_typed({key: value}, key, kind, None) for value in values]


def _protocols(names: list[str], home: Path) -> dict[str, Protocol]:
    found = [Protocol.load(home / name if (home / name).is_file() else name) for name in names]
    if len({protocol.name for protocol in found}) < len(found):
        raise StudyError("two protocols of the study have one name; rename one of the files")
    return {protocol.name: protocol for protocol in found}


def _prior(name: str, home: Path) -> str:
    return str(home / name) if (home / name).is_file() else name


def _method(label: str, table: Any) -> StudyMethod:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", label) or not isinstance(table, dict):
        raise StudyError(f"[methods.{label}] must be a table whose name is of a-z, 0-9 and '-'; rename it")
    tune = {key: Range.parse(f"{label}.tune.{key}", value) for key, value in _table(table, "tune").items()}
    call = {"name": label, **{key: value for key, value in table.items() if key != "tune"}}
    for ends in ({}, {k: r.at(0.0) for k, r in tune.items()}, {k: r.at(1.0) for k, r in tune.items()}):
        try:
            build("method", {**call, **ends})
        except (TypeError, ValueError, CTFlowError) as error:
            raise StudyError(f"[methods.{label}]: {error}") from error
    return StudyMethod(label, call, tune)


def _tuning(table: dict[str, Any]) -> dict[str, Any]:
    for key in table:
        known_key(key, _TUNING, f"tuning has an unknown key '{key}'")
    found = {key: _typed(table, key, type(default), default) for key, default in _TUNING.items()}
    known_key(found["objective"], ACCEPT, f"tuning has an unknown objective '{found['objective']}'")
    if found["trials"] < 1:
        raise StudyError(f"tuning.trials is {found['trials']}; give 1 or more")
    return found


def _statistics(table: dict[str, Any], methods: Collection[str]) -> dict[str, Any]:
    for key in table:
        known_key(key, _STATISTICS, f"statistics has an unknown key '{key}'")
    if "reference" in table:
        known_key(
            str(table["reference"]), methods, f"statistics.reference names no method '{table['reference']}'"
        )
    return table


def _asked(test: str, table: dict[str, Any]) -> dict[str, Any]:
    for key, value in table.items():
        known_key(key, _ASKED[test], f"{test} has an unknown key '{key}'")
        if key in _LEAST:
            right = type(value) is int and value >= _LEAST[key]
        else:
            right = isinstance(value, list) and bool(value) and all(type(n) in (int, float) for n in value)
            right = right and all(n > 0 or (n < 0 and key == "contrasts_hu") for n in value)
        if not right:
            raise StudyError(f"{test}.{key} is {value!r}; give {_ASKED[test][key]}")
    return table


def _slurm(table: dict[str, Any]) -> dict[str, Any]:
    """Parameters of the job that are data; what could become a line of the job's script is code."""
    for key, value in () if imports_allowed() else table.items():
        if key not in _SLURM or not re.fullmatch(r"[\w.:,=@/+-]+", str(value), re.ASCII):
            raise StudyError(
                f"slurm.{key} is none of {', '.join(sorted(_SLURM))} as a number or one word, and could run "
                "commands; where you trust the file, give --allow-imports"
            )
    return table


def _split(table: dict[str, Any]) -> dict[str, Any]:
    for key, value in table.items():
        known_key(key, _SPLIT_KEYS, f"split has an unknown key '{key}'")
        if key != "seed" and not isinstance(value, list | int | float):
            raise StudyError(f"split.{key} must be a list of patients or a share of them; correct it")
    sides = [table[side] for side in SPLITS if side in table]
    if len({isinstance(side, list) for side in sides}) > 1:
        raise StudyError("the split mixes lists of patients and shares; give one kind")
    if sides and not isinstance(sides[0], list) and abs(sum(sides) - 1) > 1e-6:
        raise StudyError(f"the shares of the split add up to {sum(sides):g} and must to 1; correct them")
    return table
