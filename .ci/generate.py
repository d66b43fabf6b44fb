"""Write what follows from the code: the stubs of `ctflow` and its packages, and the tables in README.md.

python .ci/generate.py          writes them
python .ci/generate.py --check  exits with 1 where one is not what this script would write
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

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
    """Rows of the README's table of methods."""
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
    """Rows of the README's table of protocols."""
    from ctflow.runs.protocol import summary_of

    yield "| name | measurement |"
    yield "|---|---|"
    for path in sorted((ROOT.parent / "protocols").glob("*.toml")):
        yield f"| `{path.stem}` | {summary_of(path.read_text(encoding='utf-8')).rstrip('.')} |"


def readme() -> tuple[Path, str]:
    """README.md with its tables as the code has them."""
    path = ROOT.parent / "README.md"
    text = path.read_text(encoding="utf-8")
    for table in (methods, protocols):
        start, end = f"<!-- {table.__name__} -->\n", "\n<!-- end -->"
        before, _, after = text.partition(start)
        text = before + start + "\n".join(table()) + end + after.partition(end)[2]
    return path, text


def main() -> int:
    """Write or check; the exit status."""
    status = 0
    for path, text in (*stubs(), readme()):
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
