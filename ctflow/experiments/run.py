"""Running a study: what is not done yet is done, tuning first; figures and report follow."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import Timeout

from ctflow.errors import OutputError, UsageError
from ctflow.experiments.cases import cases
from ctflow.experiments.executors import Engine, outcomes
from ctflow.experiments.pacs_cases import pulled
from ctflow.experiments.plan import Planner
from ctflow.experiments.records import (
    INPUTS,
    PLAN,
    SOFTWARE,
    TUNED,
    Plan,
    Record,
    Status,
    record_file,
)
from ctflow.experiments.spreadsheet import csv_text
from ctflow.experiments.store import Store
from ctflow.experiments.study import Study
from ctflow.experiments.tuning import frozen_choice
from ctflow.experiments.unit import Unit
from ctflow.experiments.worker import Worker, attempt, finished, log, portions, run_portion
from ctflow.runs.figures import inside
from ctflow.system.files import below, reserved
from ctflow.system.progress import Progress
from ctflow.system.version import changes, software

logger = logging.getLogger(__name__)

_COLUMNS = ("rmse_hu", "psnr", "ssim", "residual", "seconds")


@dataclass(frozen=True)
class Summary:
    """How far a study is.

    Args:
        tuning: number of tuning units by status: "done", "failed", "pending".
        test: the same for the units that are reported; None while they wait for the tuning of other shards.
        reasons: how often units failed, by reason.
        units: description and status of every unit.
        report: the page, once it is written.
    """

    tuning: Counter[str]
    test: Counter[str] | None
    reasons: Counter[str] = field(default_factory=Counter)
    units: list[Status] = field(default_factory=list)
    report: Path | None = None

    @property
    def counts(self) -> Counter[str]:
        """Number of all units by status."""
        return self.tuning + (self.test or Counter())

    @property
    def whole(self) -> bool:
        """Whether every unit is done."""
        return self.test is not None and not self.counts["failed"] and not self.counts["pending"]


def run_study(
    study: Study,
    out: Path,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    shard: tuple[int, int] = (1, 1),
    engine: Engine | None = None,
    progress: Progress = lambda fraction, stage: None,
) -> Summary:
    """Do the units of a study that are not done, and write figures and report.

    Args:
        study: the study.
        out: the study's folder.
        resume: go on in a folder that a study has begun.
        retry_failed: do those units again that failed; implies `resume`.
        shard: (i, n): the i-th of n parts of the units; implies `resume`.
        engine: where units run; this process by default.
        progress: called as progress(fraction, stage).

    Returns:
        Counts, reasons of failures and the report.

    Raises:
        OutputError: the folder exists without `resume` or is no study's; the disk is full.
        StudyError: the cases or the split are not what they must be.
        StudyUnfinishedError: a worker died.
    """
    store = Store(out)
    with store.swept():
        planner = _begun(study, store, resume or retry_failed or shard[1] > 1)
        shares = _Shard(store, engine or Engine(slurm=study.slurm), shard, retry_failed, progress)
        trials = planner.tuning()
        shares.do(trials, "tuning")
        if trials and _counts(store, trials)["pending"]:
            return Summary(_counts(store, trials), None, units=_units(store, trials))
        units = planner.test(frozen_choice(store, trials, study.tuning["objective"]) if trials else {})
        store.replace(PLAN, _plan(study, trials, units))
        shares.do(units, "test")
        _relabel(store, units)
        _write_figures(store, units)
        return _summary(store, trials, units, _report(store, units))


def preview(study: Study, out: Path, shard: tuple[int, int] = (1, 1)) -> Summary:
    """What `run_study` would do, with nothing computed and nothing written.

    Args:
        study: the study.
        out: the study's folder, whether it is there or not.
        shard: (i, n): the i-th of n parts of the units.
    """
    store = Store(out)
    _say_other_software(store)
    planner = Planner(study, cases(study, store.read(INPUTS) or {}, partial(pulled, store, fetch=False)))
    trials = _part(planner.tuning(), shard)
    pending = _counts(store, trials)["pending"] > 0
    known = store.read(TUNED)
    # The hashes of tuned methods hang on the tuning; until then they are those of the file's own values.
    units = _part(planner.test({} if pending or known is None else known["chosen"]), shard)
    return _summary(store, trials, units, None)


def run_one(study: Study, out: Path, unit: str) -> Record:
    """Do one unit of a study, whatever its status is and whoever else may be doing others.

    Args:
        study: the study.
        out: the study's folder.
        unit: hash of the unit, as `ctflow study run --dry-run` lists it.

    Returns:
        Content of its unit.json.

    Raises:
        UsageError: the study has no such unit.
        CTFlowError: why it failed.
    """
    store = Store(out)
    planner = _opened(study, store)
    trials = planner.tuning()
    pending = _counts(store, trials)["pending"] > 0
    test = (
        []
        if pending
        else planner.test(frozen_choice(store, trials, study.tuning["objective"]) if trials else {})
    )
    found = {one.hash: one for one in [*trials, *test]}
    if unit not in found:
        raise UsageError(f"the study has no unit '{unit}'; ctflow study run --dry-run lists all {len(found)}")
    for portion in portions(out, [found[unit]], 1, retry_failed=True, wait=True):
        run_portion(portion)
    record = store.record(found[unit].place)
    if record is None or record["status"] == "failed":
        Worker().compute(found[unit])  # raises what the record can only quote
    return record or attempt(Worker(), found[unit])[0]


class _Shard:
    """Gives units to the engine and waits for those that other processes are doing."""

    def __init__(
        self, store: Store, engine: Engine, shard: tuple[int, int], retry_failed: bool, progress: Progress
    ) -> None:
        self.store, self.engine, self.shard = store, engine, shard
        self.retry_failed, self.progress = retry_failed, progress

    def do(self, units: Sequence[Unit], stage: str) -> None:
        mine = _part(units, self.shard)
        _record_forgotten(self.store, mine)
        todo = [unit for unit in mine if not finished(self.store.record(unit.place), self.retry_failed)]
        todo = list({unit.hash: unit for unit in todo}.values())  # two trials may draw one value
        total, ended = len(todo), 0
        for wait in (False, True):
            shared = portions(
                self.store.out,
                todo,
                self.engine.jobs,
                retry_failed=self.retry_failed and not wait,
                wait=wait,
            )
            busy: set[str] = set()
            for outcome in outcomes(self.engine, shared):
                busy |= {unit for unit, status in outcome.items() if status == "busy"}
                ended += sum(status != "busy" for status in outcome.values())
                self.progress(ended / total, stage)
            todo = [unit for unit in todo if unit.hash in busy]
        _record_forgotten(self.store, mine)  # those of a worker that was killed and replaced meanwhile


def _check(out: Path, resume: bool) -> None:
    begun = (out / "locks").is_dir() and (out / "units").is_dir()
    if out.exists() and not begun and not (out.is_dir() and not any(below(out))):
        raise OutputError("the output folder exists and is no study's; give another one")
    if begun and not resume:
        raise OutputError(
            "a study has begun in the output folder; give --resume to go on with it, or another folder"
        )


def _begun(study: Study, store: Store, resume: bool) -> Planner:
    _check(store.out, resume)
    if resume:
        return _opened(study, store)
    # Of two that begin at the same moment, one is refused.
    with reserved(store.out / "locks", Path.is_dir, "--resume"):
        return _opened(study, store)


def _opened(study: Study, store: Store) -> Planner:
    known = store.read(INPUTS) or {}
    before = dict(known)
    planner = Planner(study, cases(study, known, partial(pulled, store)))
    _say_other_software(store)
    store.create()
    store.replace(SOFTWARE, software())
    if known != before:
        store.replace(INPUTS, known)
    return planner


def _say_other_software(store: Store) -> None:
    """The hashes of units hold the software: what another one computed stays, and is not taken."""
    changed = changes(store.read(SOFTWARE) or {}, software())
    if changed and any(store.out.glob("units/*")):
        logger.warning("this study's units are done again, for they are of other software: %s", changed)


def _part(units: Sequence[Unit], shard: tuple[int, int]) -> list[Unit]:
    """The i-th of n parts, each of neighbours, which share volume and operator."""
    i, n = shard
    return list(units[len(units) * (i - 1) // n : len(units) * i // n])


def _record_forgotten(store: Store, units: Sequence[Unit]) -> None:
    """Append to the manifest the units whose process died between their folder and their line."""
    known = store.manifest.recorded()
    for unit in units:
        record = store.record(unit.place)
        if record is None or known.get(unit.hash) == record["status"]:
            continue
        try:
            with store.lock(unit.hash).acquire(blocking=False):
                if store.manifest.recorded().get(unit.hash) != record["status"]:
                    log(store, unit, record)
        except Timeout:
            continue  # its owner lives, and will write the line


def _relabel(store: Store, units: Sequence[Unit]) -> None:
    """Names of cases and patients may change in the study file while the content, and so the hash, stays."""
    for unit in units:
        record = store.record(unit.place)
        if record is not None and record != (renamed := Record({**record, **unit.description()})):
            store.replace(record_file(unit.place), renamed)


def _counts(store: Store, units: Sequence[Unit]) -> Counter[str]:
    return Counter(found["status"] for found in _units(store, units))


def _units(store: Store, units: Sequence[Unit]) -> list[Status]:
    return [_status(unit, store.record(unit.place)) for unit in units]


def _status(unit: Unit, record: Record | None) -> Status:
    status, reason = (record["status"], record["reason"]) if record else ("pending", "")
    return {**unit.planned(), "status": status, "reason": reason}


def _summary(store: Store, trials: Sequence[Unit], units: Sequence[Unit], report: Path | None) -> Summary:
    every = _units(store, [*trials, *units])
    reasons = Counter(unit["reason"] for unit in every if unit["status"] == "failed")
    return Summary(_counts(store, trials), _counts(store, units), reasons, every, report)


def _plan(study: Study, trials: Sequence[Unit], units: Sequence[Unit]) -> Plan:
    return {
        "study": study.name,
        "summary": study.summary,
        "ctflow": software()["ctflow"],
        "protocols": {name: protocol.dump() for name, protocol in study.protocols.items()},
        "methods": {label: method.table for label, method in study.methods.items()},
        "tuning": study.tuning,
        "statistics": study.statistics,
        "trials": [unit.planned() for unit in trials],
        "units": [unit.planned() for unit in units],
    }


def _write_figures(store: Store, units: Sequence[Unit]) -> None:
    """figures.csv: one row for each unit, for whoever wants to compute with them."""
    keys = ("unit", "case", "patient", "protocol", "method", "seed", "status")
    rows: list[list[object]] = []
    for unit in units:
        record = store.record(unit.place)
        said: Mapping[str, object] = _status(unit, record)
        figures = record["figures"] if record else None
        rows.append([*(said[key] for key in keys), *(inside(figures, key) for key in _COLUMNS)])
    store.write("figures.csv", csv_text([*keys, *_COLUMNS], rows))


def _report(store: Store, units: Sequence[Unit]) -> Path | None:
    from importlib.util import find_spec

    counts = _counts(store, units)
    if counts["pending"] or not counts["done"] or find_spec("ctflow.experiments.report") is None:
        return None
    from ctflow.experiments.report import write_report

    with store.lock("report"):
        return write_report(store.out)
