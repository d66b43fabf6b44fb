"""Write what follows from the code: the stubs of `ctflow` and its packages, and tables in README.md and docs.

python .ci/generate.py          writes them
python .ci/generate.py --check  exits with 1 where one is not what this script would write
"""

import ast
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1] / "ctflow"

# A package of parts offers the first name in `__all__` of each of its files, and these beside that.
PARTS: dict[str, dict[str, list[str]]] = {
    "operators": {"_base": ["LinearOperator"], "_interop": ["wrap"]},
    "priors": {
        "_base": ["Prior"],
        "_conventions": ["CONVENTIONS", "Convention", "denoiser", "diffusion", "flow", "linear_schedule"],
        "network": ["PriorWarning"],
    },
    "recon": {},
    "samplers": {},
}

# A package whose names are listed by hand, since its files are no parts.
LISTED = {"experiments": {"study": ["Study"], "run": ["run_one", "run_study"]}}

# Beside every operator, prior and method, `ctflow` itself offers these.
DOOR = {
    "blind": ["find_parameter"],
    "dicom": ["ReadOptions", "read_projections", "read_series", "write_projections", "write_series"],
    "geometry": [
        "ConeBeam",
        "FanBeam",
        "HelicalBeam",
        "ParallelBeam",
        "ParallelBeam3D",
        "VectorBeam",
        "VolumeGeometry",
        "from_astra",
        "to_astra",
    ],
    "metrics": ["compare"],
    "nifti": ["read_nifti", "write_nifti"],
    "noise": ["Gaussian", "Noise", "Poisson"],
    "operators._base": ["LinearOperator"],
    "operators._interop": ["wrap"],
    "operators._tomosipo": ["from_tomosipo", "to_tomosipo"],
    "runs.run": ["run"],
    "priors._base": ["Prior"],
    "problem": ["InverseProblem", "simulate"],
    "runs.protocol": ["Protocol"],
    "rawdata": ["read_scan", "write_rtk"],
    "rebinning.wfbp": ["wfbp"],
    "scanner": ["Scanner", "correct_scatter", "scatter_share"],
    "scan": ["Scan", "find_axis", "to_line_integrals"],
    "solving": ["Method", "Solution", "solve"],
    "volume": ["Volume"],
}
ROOMS = ["datasets", "errors", "evidence", "geometry", "metrics", "experiments", "testing", "units", *PARTS]


def parts(package: str) -> dict[str, list[str]]:
    """File of a package of parts -> what it adds."""
    files = [path for path in (ROOT / package).glob("*.py") if not path.name.startswith("_")]
    return {path.stem: [first_public(path)] for path in files}


def first_public(path: Path) -> str:
    """The first name in a file's `__all__`; read, not imported: a wrong stub must not stop its own repair."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return str(ast.literal_eval(node.value)[0])
    raise SystemExit(f"{path} has no __all__; name its public class there")


def stub(imports: dict[str, list[str]], rooms: list[str]) -> Iterator[str]:
    """Lines of a stub: what is imported from where, each name once."""
    yield "# Written by `make generated`.\n"
    if rooms:
        yield from (f"from . import {room} as {room}\n" for room in sorted(rooms))
    for module, offered in sorted(imports.items()):
        yield from (f"from .{module} import {name} as {name}\n" for name in sorted(offered))
    offered = sorted({name for listed in imports.values() for name in listed} | set(rooms))
    yield "\n__all__ = [\n"
    yield from (f'    "{name}",\n' for name in offered)
    yield "]\n"


def stubs() -> Iterator[tuple[Path, str]]:
    """Every stub's place and text."""
    door = {module: list(offered) for module, offered in DOOR.items()}
    for package, beside in PARTS.items():
        inside = parts(package)
        for module, offered in inside.items():
            door.setdefault(f"{package}.{module}", []).extend(offered)
        for module, offered in beside.items():
            inside.setdefault(module, []).extend(offered)
        yield ROOT / package / "__init__.pyi", "".join(stub(inside, []))
    for package, offered in LISTED.items():
        yield ROOT / package / "__init__.pyi", "".join(stub(offered, []))
    text = "".join(stub(door, ROOMS))
    yield ROOT / "__init__.pyi", text.replace("\n__all__", "\n__version__: str\n__all__")


def methods() -> Iterator[str]:
    """Rows of the table of methods."""
    from ctflow.cli.protocols import bibtex_fields
    from ctflow.registry import find_class, names

    yield "| name | class | published | a step costs | prior |"
    yield "|---|---|---|---|---|"
    found = {name: find_class("method", name) for name in names("method")}
    for name, method in sorted(found.items(), key=lambda pair: (pair[1].needs_prior, pair[0])):
        paper = bibtex_fields(method.paper)
        authors = paper["author"].split(" and ")
        first, second = (author.split(",")[0] for author in (authors * 2)[:2])
        by = {1: first, 2: f"{first} and {second}"}.get(len(authors), f"{first} et al.")
        prior = "yes" if method.needs_prior else "no"
        yield f"| `{name}` | `{method.__name__}` | {by} {paper['year']} | {method.cost} | {prior} |"


def protocols() -> Iterator[str]:
    """Rows of the table of protocols."""
    from ctflow.runs.protocol import summary_of

    yield "| name | measurement |"
    yield "|---|---|"
    for path in sorted((ROOT.parent / "protocols").glob("*.toml")):
        yield f"| `{path.stem}` | {summary_of(path.read_text(encoding='utf-8')).rstrip('.')} |"


# Tasks of `bench samplers`, in the words of `bench lesions` where it has them too.
TASKS = {
    "CT 60": "60 views",
    "CT 20": "20 views",
    "fan 60": "60 views, fan",
    "fan 20": "20 views, fan",
    "limited angle": "limited angle",
    "deblurring": "deblurring",
    "super-resolution": "super-resolution by 4",
    "inpainting": "half of the pixels",
}
LEADING = ("60 views", "20 views", "limited angle", "deblurring")  # in the README
CONTROLS = (
    ("fbp", 0),
    ("tv", 0),
    ("flow-dps", 16),
    ("refinement", 16),
    ("conjugate + refinement", 16),
    ("ms-flow", 16),
)
"""What the README shows: classical methods, the field's best simple ones, and ours, at one cost."""


def rows(place: str, having: str) -> list[dict[str, Any]]:
    """Rows of a bench's figures that have a key."""
    found: list[dict[str, Any]] = json.loads((ROOT / place).read_text(encoding="utf-8"))["rows"]
    return [row for row in found if having in row]


def decibels() -> dict[tuple[str, int], dict[str, float]]:
    """Method and network evaluations -> task -> mean body PSNR, dB."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows("benchmarks/samplers.json", "psnr"):
        found.setdefault((row["name"], row["nfe"]), {})[TASKS[row["task"]]] = fmean(row["psnr"])
    return found


def table(head: str, tasks: Iterable[str], shown: dict[str, dict[str, float]]) -> Iterator[str]:
    """Rows with a figure for every task, the largest of each in bold."""
    tasks = list(tasks)
    best = {task: max(row[task] for row in shown.values() if task in row) for task in tasks}
    yield f"| {head} | {' | '.join(tasks)} |"
    yield f"|{'---|' * head.count('|')}---|{'---|' * len(tasks)}"
    for name, row in shown.items():
        cells = [f"{row[task]:.2f}" if task in row else "–" for task in tasks]
        marked = [
            f"**{cell}**" if row.get(task) == best[task] else cell
            for task, cell in zip(tasks, cells, strict=True)
        ]
        yield f"| {name} | {' | '.join(marked)} |"


def results() -> Iterator[str]:
    """The README's table: body PSNR of some methods at one cost."""
    known = decibels()
    shown = {f"`{name}`": known[name, nfe] for name, nfe in CONTROLS}
    yield from table("body PSNR, dB", LEADING, shown)


def figures() -> Iterator[str]:
    """Body PSNR of every method that the bench runs, for every task."""
    shown = {
        f"`{name}` | {nfe}": row
        for (name, nfe), row in sorted(decibels().items(), key=lambda pair: (pair[0][1], pair[0]))
    }
    yield from table("method | network evaluations", TASKS.values(), shown)


def lesions() -> Iterator[str]:
    """What `bench lesions` has found of every method: what it keeps, and what it invents."""
    place = "runs/lesions.json"
    kept = {
        (row["task"], row["method"], row["diameter_mm"]): row
        for row in rows(place, "recovery")
        if row["contrast_hu"] == 60.0
    }
    heads = ("task", "method", "8 mm kept", "12 mm kept", "false signal", "discs off by > 100 HU", "largest")
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows(place, "above_100"):
        small, large = (kept.get((row["task"], row["method"], size)) for size in (8.0, 12.0))
        cells = [row["task"], f"`{row['method']}`"]
        cells += [f"{100 * one['recovery']:.0f} %" if one else "–" for one in (small, large)]
        cells += [f"{small['false_signal_hu']:.0f} HU" if small else "–"]
        cells += [f"{100 * row['above_100']:.2g} %", f"{row['largest_hu']:.0f} HU"]
        yield f"| {' | '.join(cells)} |"


def coverage() -> Iterator[str]:
    """What share of voxels the intervals of posterior samples hold, before and after calibration."""
    heads = ("task", "method", "body", "worst tissue", "body, calibrated", "worst tissue, calibrated")
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows("runs/lesions.json", "before"):
        shares = [
            share for part in ("before", "after") for share in (row[part]["all"], min(row[part].values()))
        ]
        cells = [row["task"], f"`{row['method']}`", *(f"{100 * share:.0f} %" for share in shares)]
        yield f"| {' | '.join(cells)} |"


def losses() -> Iterator[str]:
    """What the effects of a scanner cost every method from 60 views: RMSE, over that of the ideal scanner."""
    found = [
        row for row in rows("benchmarks/reality.json", "ideal_hu") if row["protocol"] == "sparse-view-60"
    ]
    methods = list(dict.fromkeys(row["method"] for row in found))
    shown = {(row["effect"], row["method"]): row for row in found}
    yield f"| | {' | '.join(f'`{method}`' for method in methods)} | largest error of `tv` | of `ms-flow` |"
    yield "|" + "---|" * (len(methods) + 3)
    for effect in dict.fromkeys(row["effect"] for row in found):
        of = [shown[effect, method] for method in methods]
        rmse = [fmean(row["rmse_hu"]) for row in of]
        cells = [f"{hu / fmean(row['ideal_hu']):.2f}" for hu, row in zip(rmse, of, strict=True)]
        if effect == "ideal":
            cells = [f"{hu:.1f} HU" for hu in rmse]
        cells += [f"{fmean(shown[effect, method]['largest_hu']):.0f} HU" for method in ("tv", "ms-flow")]
        yield f"| {effect} | {' | '.join(cells)} |"


def cones() -> Iterator[str]:
    """How every method solves cones over patients, means over the series; slice by slice on fans too."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows("benchmarks/volumes.json", "between_hu"):
        found.setdefault((row["views"], row["name"]), []).append(row)
    heads = ("views", "method", "RMSE", "of differences between slices", "coronal SSIM")
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for (views, name), of in found.items():
        rmse, between, similar = (
            fmean(row[key] for row in of) for key in ("rmse_hu", "between_hu", "coronal_ssim")
        )
        yield f"| {views} | {name} | {rmse:.1f} HU | {between:.1f} HU | {similar:.3f} |"


def series() -> Iterator[str]:
    """What slices of 512² cost by every method, and how far each is off."""
    heads = ("protocol: method", "core seconds a slice", "RMSE of the body", "PSNR")
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows("benchmarks/series.json", "core_seconds"):
        cells = [
            f"`{row['name']}`",
            f"{row['core_seconds']:.1f}",
            f"{row['rmse_hu']:.1f} HU",
            f"{row['psnr']:.2f} dB",
        ]
        yield f"| {' | '.join(cells)} |"


MARKED = {
    "README.md": (results,),
    "docs/reference/methods.md": (methods, figures),
    "docs/reference/protocols.md": (protocols,),
    "docs/explain/priors.md": (lesions, coverage),
    "docs/howto/scanner.md": (losses,),
    "docs/howto/speed.md": (series,),
    "docs/howto/volumes.md": (cones,),
}
"""Files with tables between marks, and what stands in them."""


def pages() -> Iterator[tuple[Path, str]]:
    """Every file with tables, with its tables as the code and the figures have them."""
    for place, tables in MARKED.items():
        path = ROOT.parent / place
        text = path.read_text(encoding="utf-8")
        for made in tables:
            start, end = f"<!-- {made.__name__} -->", "<!-- end -->"
            before, _, after = text.partition(start)
            if end not in after:
                raise SystemExit(f"{place} lacks {start} and {end}; put both where the table stands")
            text = "\n".join([before + start, *made(), end + after.partition(end)[2]])
        yield path, text


def main() -> int:
    """Write or check; the exit status."""
    status = 0
    for path, text in (*stubs(), *pages()):
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            place, status = path.relative_to(ROOT.parent), 1
            if "--check" in sys.argv:
                print(f"{place} is not what the code says; run `make generated`")
            else:
                path.write_text(text, encoding="utf-8")
                print(f"{place} is written anew")
    return status if "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT.parent))
    sys.exit(main())
