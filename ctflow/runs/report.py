"""What a run found: report.json and report.html, which shows its slices."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ctflow.errors import UsageError
from ctflow.runs.figures import Figures, MethodFigures, Threshold, figure
from ctflow.runs.html import render
from ctflow.runs.protocol import ACCEPT
from ctflow.runs.support import Support
from ctflow.runs.viewer import Pictures, parts, pictures_of
from ctflow.system.version import release
from ctflow.volume import Volume

INPUT = "input series"
"""Name of the reference volume among a report's volumes."""

ASTRA_BIBTEX = """\
@article{vanaarle2016astra,
  author  = {van Aarle, Wim and Palenstijn, Willem Jan and Cant, Jeroen and Janssens, Eline and
             Bleichrodt, Folkert and Dabravolski, Andrei and De Beenhouwer, Jan and Batenburg, K. Joost and
             Sijbers, Jan},
  title   = {Fast and flexible {X}-ray tomography using the {ASTRA} toolbox},
  journal = {Optics Express},
  volume  = {24},
  number  = {22},
  pages   = {25129--25147},
  year    = {2016},
  doi     = {10.1364/OE.24.025129}
}"""


@dataclass(frozen=True)
class Report:
    """Figures and volumes of a run.

    Args:
        figures: what report.json holds.
        volumes: what is compared with (the input series), and the reconstruction of every method, HU.
        papers: BibTeX by method.
        spreads: standard deviation over the samples, of the methods that drew several, HU.
        support: what the data determine of one slice; None where it was not asked for.
    """

    figures: Figures
    volumes: dict[str, Volume]
    papers: dict[str, str]
    spreads: dict[str, Volume] = field(default_factory=dict)
    support: Support | None = None

    @property
    def failures(self) -> list[str]:
        """Thresholds of the protocol that were missed, in words."""
        return failures(self.figures)

    @property
    def compared_with(self) -> str:
        """Name of the first volume, which the others are compared with."""
        return next(iter(self.volumes))

    def methods(self) -> Iterator[tuple[str, Volume]]:
        """Every method and its reconstruction, reference first."""
        return ((name, volume) for name, volume in list(self.volumes.items())[1:])

    def deidentified(self) -> Report:
        """The same figures without texts that a person chose or that tell of the source.

        A protocol's or a prior's file may be named after a patient, and its first line may speak of one;
        their hashes cannot. The date is left out, and the hashed names of series with it.
        """
        protocol, provenance = self.figures["protocol"], self.figures["provenance"]
        named, prior = protocol["sha256"][:12], provenance["prior"]
        tables = protocol["text"].removeprefix(f"# {protocol['summary']}\n")
        replaced = {f"'{prior['name']}'": prior["sha256"][:12]} if prior else {}
        undated = provenance.copy()
        undated.pop("created", None)
        figures: Figures = {
            **self.figures,
            "protocol": {**protocol, "name": named, "summary": "", "text": tables, "overrides": []},
            "warnings": _unnamed(self.figures["warnings"], replaced),
            "provenance": {
                **undated,
                "prior": {**prior, "name": prior["sha256"][:12]} if prior else None,
                "skipped_files": _unnamed(provenance["skipped_files"], replaced),
            },
        }
        return replace(self, figures=figures)

    def html(self) -> str:
        """The report as one page that needs nothing else, with as many slices as mail takes."""
        return self._page(self._pictures())

    def write(self, folder: Path) -> None:
        """Write report.json, report.html, and all slices for it, viewer/, into a folder."""
        pictures = self._pictures()
        text = json.dumps(self.figures, indent=2, allow_nan=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        (folder / "report.html").write_text(self._page(pictures), encoding="utf-8")
        pictures.write(folder)

    def _pictures(self) -> Pictures:
        return pictures_of(self.volumes, self.spreads, self.support, self.figures)

    def _page(self, pictures: Pictures) -> str:
        header, rows = table(self.figures)
        return render(
            "runs/report.html.j2",
            **parts([pictures.viewer], self.compared_with),
            title=self.figures["protocol"]["name"],
            figures=self.figures,
            failures=self.failures,
            header=header,
            rows=rows,
            best=_best(self.figures),
            conventions={key: sentence(value) for key, value in self.figures["conventions"].items()},
            provenance={key: sentence(value) for key, value in self.figures["provenance"].items()},
            citation=citation(self.papers, "geometry" in self.figures["protocol"]["text"]),
        )


def _unnamed(texts: list[str], replaced: dict[str, str]) -> list[str]:
    """Texts without the hashed names of series, and with other words in place of some."""
    for old, new in replaced.items():
        texts = [text.replace(old, new) for text in texts]
    return [re.sub(r" \[[0-9a-f]{8}\]", "", text) for text in texts]


# Title, format and which end is best, by the figure's path in report.json.
_COLUMNS = {
    "rmse_hu": ("RMSE [HU]", "{:.1f}", min),
    "body.bias_hu": ("bias [HU]", "{:+.1f}", None),
    "psnr": ("PSNR [dB]", "{:.2f}", max),
    "ssim": ("SSIM", "{:.4f}", max),
    "body.psnr_soft_tissue": ("PSNR soft [dB]", "{:.2f}", max),
    "body.ssim_soft_tissue": ("SSIM soft", "{:.4f}", max),
    "residual": ("residual", "{:.3f}", None),
    "seconds": ("seconds", "{:.1f}", None),
    "network": ("network calls", "{:.0f}", None),
}


def table(figures: Figures, against: str | None = None) -> tuple[list[str], list[list[str]]]:
    """The methods' figures as text.

    Args:
        figures: content of report.json.
        against: method to compare every RMSE with.

    Returns:
        Titles of the columns, and one row per method.

    Raises:
        UsageError: the report has no method `against`.
    """
    methods = figures["methods"]
    if against is not None and against not in methods:
        raise UsageError(f"the report has no method '{against}'; it has {', '.join(methods)}")
    header = ["method", *(title for title, _, _ in _COLUMNS.values())]
    rows = [[name, *_cells(found)] for name, found in methods.items()]
    if against is not None:
        header.insert(2, f"vs {against}")
        rmse = {name: figure(found, "rmse_hu") for name, found in methods.items()}
        for row in rows:
            row.insert(2, _change(rmse[row[0]], rmse[against]))
    return header, rows


def _change(value: float | None, than: float | None) -> str:
    return "–" if value is None or than is None else f"{100 * (value / than - 1):+.0f} %"


def _cells(found: MethodFigures) -> Iterator[str]:
    for key, (_, text, _) in _COLUMNS.items():
        value = figure(found, key)
        yield "–" if value is None else text.format(value)


def _best(figures: Figures) -> dict[int, str]:
    """The best method by column, for the columns where there is one."""
    best: dict[int, str] = {}
    for column, (key, (_, _, choose)) in enumerate(_COLUMNS.items(), start=1):
        known = {name: figure(found, key) for name, found in figures["methods"].items()}
        candidates = {name: value for name, value in known.items() if value is not None}
        if choose is not None and candidates:
            best[column] = choose(candidates, key=candidates.__getitem__)
    return best


def acceptance(thresholds: dict[str, float], figures: MethodFigures) -> dict[str, Threshold]:
    """How the main method's figures stand to the protocol's thresholds.

    Args:
        thresholds: the protocol's accept table.
        figures: figures of the main method.

    Returns:
        For every threshold: threshold, value, and whether it passed.
    """
    found = {key: (limit, figure(figures, key)) for key, limit in thresholds.items()}
    return {
        key: {"threshold": limit, "value": value, "passed": _passed(key, value, limit)}
        for key, (limit, value) in found.items()
    }


def _passed(key: str, value: float | None, limit: float) -> bool:
    return value is not None and (value <= limit if ACCEPT[key] == "<=" else value >= limit)


def failures(figures: Figures) -> list[str]:
    """Thresholds of the protocol that were missed, in words.

    Args:
        figures: content of report.json.
    """
    return [
        f"{figures['method']}: {key} {found['value']:.4g} where the protocol accepts {found['threshold']:.4g}"
        for key, found in figures["accept"].items()
        if not found["passed"]
    ]


def read_figures(out: Path) -> Figures:
    """The content of report.json in the folder that a run wrote.

    Raises:
        UsageError: there is none.
    """
    try:
        figures: Figures = json.loads((out / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError("there is no report.json to read; give the folder that ctflow run wrote") from error
    return figures


def citation(papers: dict[str, str], projects: bool) -> str:
    """BibTeX of ctflow, of the methods that were used, and of ASTRA where something was projected."""
    itself = (
        "@software{ctflow,\n  title={{ctflow: CT reconstruction from DICOM to DICOM with flow priors}},\n"
        f"  author={{{{The ctflow contributors}}}}, version={{{release()}}}}}"
    )
    text = "\n\n".join([itself, *papers.values(), *([ASTRA_BIBTEX] if projects else [])])
    return "\n\n".join(dict.fromkeys(entry.strip() for entry in text.split("\n\n") if entry.strip()))


def sentence(value: object) -> str:
    """A value of report.json in words: nested tables become "name value; name value"."""
    if isinstance(value, dict):
        return "; ".join(f"{key.replace('_', ' ')} {sentence(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return " to ".join(map(str, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value)
