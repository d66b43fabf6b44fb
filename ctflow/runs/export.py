"""What a run leaves behind: a CT series and a side-car per method, spreads, a difference, and the report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ctflow.errors import OutputError, UsageError
from ctflow.runs.report import Report, read_figures
from ctflow.runs.viewer import FOLDER
from ctflow.solving import Method, Spread, samples_of
from ctflow.system.files import Reservation, check_target, reserved
from ctflow.system.version import full_version
from ctflow.volume import Volume

if TYPE_CHECKING:
    from ctflow.dicom import WrittenSeries

_LONG_STRING = 64  # characters of a DICOM LO attribute
_IN_SIDE_CAR: Final = ("protocol", "conventions", "measurement", "grid", "warnings", "provenance")
# What a series of a spread is called, short of SeriesDescription's 64 characters.
_SHORT = {
    Spread.POSTERIOR: " posterior SD (HU, not for diagnosis)",
    Spread.STARTS: " SD over starts (HU, not for diagnosis)",
    Spread.NONE: "",
}
# Steps between the series numbers of images, spreads and the difference.
_NUMBERS = {"image": 0, "spread": 100, "difference": 200}


@dataclass(frozen=True)
class Exports:
    """How the images of a run are written, and what beside them.

    Args:
        hu_scale: HU per stored unit of the images, 0.04 to 1.
        difference: a series of the main method minus the image that the methods are compared with.
        parametric_map: the spread also as a DICOM Parametric Map in floating point; needs highdicom.
        deidentify: name no patient, no date, no scanner and no source image (PS3.15 Basic Profile).
    """

    hu_scale: float = 1.0
    difference: bool = False
    parametric_map: bool = False
    deidentify: bool = False

    def check(self, samples: int, methods: Mapping[str, Method]) -> None:
        """Refuse, before anything is computed, what cannot be written.

        Args:
            samples: images that are asked for of every method that draws.
            methods: the methods of the run by name.

        Raises:
            UsageError: hu_scale is out of range, or there will be no samples, or no spread to map.
            BackendError: highdicom is not installed.
        """
        if not 0.04 <= self.hu_scale <= 1:
            raise UsageError(f"--hu-scale is {self.hu_scale}; expected 0.04 to 1 HU per stored unit")
        if (samples > 1 or self.parametric_map) and not _draws(methods):
            raise UsageError(
                f"expected a method that draws random numbers and came {', '.join(methods)}, whose samples "
                "would be alike; leave out --samples and --parametric-map, or give --beside moment-matching, "
                "whose samples are draws of the posterior"
            )
        if self.parametric_map:
            from ctflow.dicom.writing.parametric_map import require_highdicom

            require_highdicom()
            if samples < 2:
                raise UsageError("a map of the spread needs more than one sample; give --samples 8")


def _draws(methods: Mapping[str, Method]) -> bool:
    return any(samples_of(method, 2) > 1 for method in methods.values())


def check_output(out: Path | None, series: Path | Volume, overwrite: bool) -> None:
    """Refuse an output folder that would destroy something.

    Args:
        out: the folder; None is never refused.
        series: the input, files or HU, which must lie elsewhere.
        overwrite: whether an earlier run may be replaced.

    Raises:
        OutputError: it exists without `overwrite`, is no earlier run's, holds the input, or cannot be made.
    """
    if out is None:
        return
    inputs = getattr(series.source, "files", ()) if isinstance(series, Volume) else (series,)
    if overwrite and any(path.resolve().is_relative_to(out.resolve()) for path in inputs):
        raise OutputError("expected an output apart from the input but the folder holds it; give another")
    check_target(out, written_run, "" if overwrite else "--overwrite")


def reserved_run(out: Path | None, overwrite: bool) -> AbstractContextManager[Reservation | None]:
    """Keep an output folder for this run; None keeps nothing.

    Raises:
        OutputError: as `check_output`, or another run is writing it.
    """
    if out is None:
        return nullcontext()
    return reserved(out, written_run, "" if overwrite else "--overwrite")


def written_run(folder: Path) -> bool:
    """Whether a folder holds what a run wrote, and nothing else."""
    try:
        figures = read_figures(folder)
        ours = "ctflow" in figures["provenance"]
        return ours and all(_written(entry, figures["methods"]) for entry in folder.iterdir())
    except (UsageError, KeyError, TypeError):
        return False


def _written(entry: Path, methods: Iterable[str]) -> bool:
    from ctflow.dicom.writing.folder import holds_written_series, written_by_ctflow

    if entry.name in ("report.json", "report.html", *(f"{method}.json" for method in methods)):
        return entry.is_file() and not entry.is_symlink()
    if entry.name == FOLDER:
        return entry.is_dir() and not entry.is_symlink() and all(map(_picture, entry.iterdir()))
    if entry.name in (f"{method}-spread-map.dcm" for method in methods):
        return written_by_ctflow(entry)
    series = (f"{method}{ending}" for method in methods for ending in ("", "-spread", "-difference"))
    return entry.name in series and not entry.is_symlink() and holds_written_series(entry)


def _picture(entry: Path) -> bool:
    ours = re.fullmatch(r"index\.js|(images|spreads)-\d+-\d+\.js", entry.name, re.ASCII) is not None
    return ours and entry.is_file() and not entry.is_symlink()


def export(report: Report, folder: Path, exports: Exports | None = None) -> None:
    """Write a CT series and a side-car for every method, then report.json, report.html and its slices.

    Methods that drew several samples have a series of their standard deviation beside the mean; series and
    side-car say whether it is the posterior's. The UIDs are a function of the input, the protocol, the seed
    and these settings.

    Args:
        report: what a run found; volumes in HU.
        folder: empty folder.
        exports: how to write the images; whole HU, and nothing beside them, by default.
    """
    exports = exports or Exports()
    report = report.deidentified() if exports.deidentify else report
    writer = _Writer(report, folder, exports)
    for number, (method, volume) in enumerate(report.methods(), start=1):
        side_car: dict[str, object] = {
            "method": method,
            "figures": report.figures["methods"][method],
            "samples": report.figures["samples"][method],
        }
        image = writer.write(volume, method, "image", number)
        side_car["clipped_voxels"] = image.clipped
        if method in report.spreads:
            writer.write(report.spreads[method], method, "spread", number)
            if writer.exports.parametric_map:
                writer.map_spread(report.spreads[method], method, image)
        if writer.exports.difference and method == report.figures["method"]:
            change = volume.with_data(volume.data - report.volumes[report.compared_with].data)
            writer.write(change, method, "difference", number)
        side_car |= {key: report.figures[key] for key in _IN_SIDE_CAR}
        text = json.dumps(side_car, indent=2, allow_nan=False)
        (folder / f"{method}.json").write_text(text + "\n", encoding="utf-8")
    report.write(folder)


@dataclass(frozen=True)
class _Writer:
    """The series of one run: one study, one way of writing."""

    report: Report
    folder: Path
    exports: Exports

    def write(self, volume: Volume, method: str, content: str, number: int) -> WrittenSeries:
        from ctflow.dicom import write_series

        return write_series(
            volume,
            self.folder / (method if content == "image" else f"{method}-{content}"),
            like=self.report.volumes[self.report.compared_with],
            description=self._description(method, content),
            derivation=self._derivation(method, content),
            content=content,
            hu_scale=self.exports.hu_scale if content != "spread" else 1.0,
            series_number=1000 + number + _NUMBERS[content],
            deidentify=self.exports.deidentify,
            seed_uid=self._seed(method),
        )

    def map_spread(self, spread: Volume, method: str, image: WrittenSeries) -> None:
        from ctflow.dicom.writing.parametric_map import write_parametric_map

        write_parametric_map(
            spread,
            self.folder / f"{method}-spread-map.dcm",
            of=image,
            description=self._description(method, "spread"),
            meaning=self.report.figures["samples"][method]["meaning"],
        )

    def _description(self, method: str, content: str) -> str:
        """SeriesDescription, cut at its 64 characters: names give way to what must be read."""
        kind = Spread(self.report.figures["samples"][method]["spread"])
        words = {"image": "", "spread": _SHORT[kind], "difference": " minus input (HU)"}
        name = f"ctflow {method}"[: _LONG_STRING - len(words[content])]
        return f"{name}{words[content]}, {self._named}"[:_LONG_STRING]

    def _derivation(self, method: str, content: str) -> str:
        samples = self.report.figures["samples"][method]
        made = f"{samples['meaning']}:" if content == "spread" else "mean of"
        by = f"{made} {samples['number']} samples of {method}" if samples["number"] > 1 else method
        sha256 = self.report.figures["protocol"]["sha256"]
        return f"{by} by protocol {self._named} ({sha256[:12]}), ctflow {full_version()}"

    @property
    def _named(self) -> str:
        from ctflow.dicom.writing.valid_values import as_text

        return as_text(self.report.figures["protocol"]["name"])

    def _seed(self, method: str) -> str:
        """All that decides the pixels: the same run has the same UIDs, another run has others."""
        provenance = self.report.figures["provenance"]
        decisive = ("ctflow", "seed", "samples", "slices", "prior", "input_sha256")
        sha256 = self.report.figures["protocol"]["sha256"]
        return json.dumps([sha256, method, *(provenance.get(key) for key in decisive)])
