"""The cases of a study: where each comes from, whose it is, and a hash of its content."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ctflow.datasets.synthetic import toy_volume
from ctflow.dicom import patient_key, read_series
from ctflow.dicom.reading.files import listing
from ctflow.errors import CTFlowError, OutputError, StudyError
from ctflow.experiments.pacs_cases import ACCESS, NOT_PULLED, QUERY
from ctflow.experiments.split import sides
from ctflow.experiments.study import Study, known_key
from ctflow.system.handwritten import read_text
from ctflow.tables import Listed, Real, Table, Text, Whole, require_kind, value_of
from ctflow.volume import Volume

_FOLDER = ("folder", "name", "patient", "series", "slices", "split")
_PACS = (*QUERY, *ACCESS, "name", "patient", "slices", "split")
_PHANTOMS = {
    "phantoms": Listed(Whole(0, 2**31), 1, 100_000),
    "size": Whole(8, 4096),
    "slices": Whole(1, 1000),
    "noise_hu": Real(0, 10_000),
    "split": Text(),
}

Pull = Callable[[Mapping[str, object]], list[Path]]
"""Called as pull(table of a PACS case); gives the folders of its series."""


@dataclass(frozen=True)
class Case:
    """One series of one patient.

    Args:
        label: the study file's name for it, else "case-" and the beginning of its hash; never a file's name.
        patient: pseudonym of the patient: "patient-" and the beginning of the hash of a case.
        split: "train", "validation" or "test".
        sha256: hash of the content and of the slices that were chosen.
        folder: where its files lie; never printed.
        series: which series of the folder.
        slices: first and one past the last slice.
        phantom: slices, size, seed and noise (HU) of `toy_volume`, for a case without files.
        refusal: why it cannot be used, where that is known before it is read.
    """

    label: str
    patient: str
    split: str
    sha256: str
    folder: Path | None = None
    series: str | None = None
    slices: tuple[int, int] | None = None
    phantom: tuple[int, int, int, float] | None = None
    refusal: str = ""

    def read(self) -> Volume:
        """The whole series in HU, (Z, Y, X).

        Raises:
            SeriesError: the files are not one CT volume.
        """
        if self.phantom is not None:
            return toy_volume(*self.phantom)
        return read_series(self.folder or "", series=self.series)


def cases(study: Study, remembered: dict[str, str], pull: Pull | None = None) -> list[Case]:
    """All cases of a study, with pseudonyms, each on its side of the split.

    Args:
        study: the study.
        remembered: hashes of folders by their listing, filled in here; saves reading all files again.
        pull: gives the folders of a PACS case; without it such a case is refused.

    Raises:
        StudyError: a key is unknown, two cases have one name, or a patient is on two sides.
    """
    found: list[Case] = []
    for table in study.cases:
        found += _cases(table, study.home, remembered, pull)
    labels = [case.label for case in found]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise StudyError(
            f"{len(twice)} cases are given twice, the first is '{twice[0]}'; give each a name of its own"
        )
    contents = {case.sha256: case.label for case in reversed(found)}
    if copy := next((case for case in found if contents[case.sha256] != case.label), None):
        raise StudyError(
            f"cases '{contents[copy.sha256]}' and '{copy.label}' have the same content; a copy counts a "
            "patient twice, or puts one on two sides: take one out"
        )
    chosen = sides(study.split, [(case.label, case.patient, case.split) for case in found])
    first: dict[str, str] = {}  # the least hash of a patient's cases says no more than the case's own
    for case in sorted(found, key=lambda case: case.sha256):
        first.setdefault(case.patient, f"patient-{case.sha256[:8]}")
    return [replace(case, patient=first[case.patient], split=chosen[case.patient]) for case in found]


def _cases(
    table: Mapping[str, object], home: Path, remembered: dict[str, str], pull: Pull | None
) -> Iterator[Case]:
    if "phantoms" in table:
        yield from _phantoms(table)
    elif "csv" in table:
        known_key(
            next((key for key in table if key != "csv"), "csv"),
            ["csv"],
            "cases from a CSV have an unknown key",
        )
        for number, row in enumerate(_rows(home / str(table["csv"])), start=1):
            given = {k: v for k, v in row.items() if v}
            yield from _listed(given, (home / str(table["csv"])).parent, remembered, number, pull)
    else:
        yield from _listed(table, home, remembered, 0, pull)


def _listed(
    table: Mapping[str, object], home: Path, remembered: dict[str, str], row: int, pull: Pull | None
) -> Iterator[Case]:
    """The case of a folder, or those of a PACS: one for each series that matches."""
    if "pacs" not in table:
        yield _folder(table, home, remembered, row)
        return
    where = f"row {row} of the CSV" if row else "a case"
    for key in table:
        known_key(key, _PACS, f"{where} from a PACS has an unknown key '{key}'")
    rest = {key: table[key] for key in table if key not in (*QUERY, *ACCESS)}
    try:
        if pull is None:
            raise StudyError(NOT_PULLED)
        folders = pull(table)
    except OutputError:  # of the study's folder, not of the case
        raise
    except CTFlowError as error:
        digest = _hash(["refused", *(str(table.get(key, "")) for key in QUERY)])
        label = str(rest.get("name", f"case-{digest[:8]}"))
        who, side = str(rest.get("patient", digest)), str(rest.get("split", ""))
        yield Case(label, who, side, digest, slices=_slices(rest.get("slices"), where), refusal=str(error))
        return
    for number, folder in enumerate(folders, start=1):
        name = {"name": f"{rest['name']}-{number}"} if "name" in rest and len(folders) > 1 else {}
        yield _folder({**rest, **name, "folder": str(folder)}, home, remembered, row)


def _phantoms(table: Mapping[str, object]) -> Iterator[Case]:
    for key in table:
        known_key(key, _PHANTOMS, f"phantom cases have an unknown key '{key}'")
    require_kind(table, Table(others=_PHANTOMS), "phantom cases", StudyError)
    seeds: list[int] = value_of(table, "phantoms", [])
    noise_hu = table.get("noise_hu", 12.0)
    assert isinstance(noise_hu, int | float)
    for seed in seeds:
        phantom = (value_of(table, "slices", 5), value_of(table, "size", 256), seed, float(noise_hu))
        label, side = f"phantom-{seed}", value_of(table, "split", "")
        yield Case(label, label, side, _hash(["phantom", *phantom]), phantom=phantom)


def _rows(path: Path) -> list[dict[str, str]]:
    text = read_text(path, "the CSV of the cases", StudyError).removeprefix("\ufeff")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey="more", restval="")
        rows = list(reader)
    except csv.Error as error:
        raise StudyError(
            "the CSV of the cases cannot be read; give a UTF-8 file with a column 'folder'"
        ) from error
    for key in reader.fieldnames or ():
        known_key(key, (*_FOLDER, *QUERY), f"the CSV of the cases has an unknown column '{key}'")
    if any("more" in row for row in rows):
        raise StudyError(
            "a row of the CSV of the cases has more fields than the header; quote what holds a comma"
        )
    return rows


def _folder(table: Mapping[str, object], home: Path, remembered: dict[str, str], row: int) -> Case:
    where = f"row {row} of the CSV" if row else "a case"
    for key in table:
        known_key(key, _FOLDER, f"{where} has an unknown key '{key}'")
    if "folder" not in table:
        raise StudyError(f"{where} lacks a folder; give folder, phantoms or csv")
    folder = home / str(table["folder"])
    series, slices = table.get("series"), _slices(table.get("slices"), where)
    refusal, who = "", None
    try:
        content = _content(folder, remembered)
        who = patient_key(folder)
    except CTFlowError as error:
        content, refusal = _hash(["refused", str(table["folder"])]), str(error)
    digest = _hash([content, None if series is None else str(series), slices])
    label = str(table.get("name", f"case-{digest[:8]}"))
    patient = str(table.get("patient", who or digest))
    return Case(
        label,
        patient,
        str(table.get("split", "")),
        digest,
        folder,
        None if series is None else str(series),
        slices,
        refusal=refusal,
    )


def _slices(text: object, where: str) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", str(text), re.ASCII)
    if found is None or int(found[1]) >= int(found[2]):
        raise StudyError(f'{where} has slices {text!r}; write slices = "10:14" for the slices 10 to 13')
    return int(found[1]), int(found[2])


def _content(folder: Path, remembered: dict[str, str]) -> str:
    """Hash of the files' bytes, whatever their names; not read again while names, sizes and times stay."""
    files = [(file, file.stat()) for file in listing(folder)]
    key = _hash([[str(file.absolute()), stat.st_size, stat.st_mtime_ns] for file, stat in files])
    if key not in remembered:
        digests = []
        for file, _ in files:
            with file.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        remembered[key] = _hash(sorted(digests))
    return remembered[key]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
