"""List what is available: `ctflow protocols`, `show`, `methods` and `cite`."""

from __future__ import annotations

import re
from pathlib import Path

from ctflow.cli.options import AllowImports, Json, Name
from ctflow.cli.terminal import say, say_json, say_text
from ctflow.runs.protocol import Protocol, summary_of, texts


def protocols(as_json: Json = False) -> None:
    """List the protocols by name: those of $CTFLOW_PROTOCOLS first, then those of ctflow."""
    known = {name: summary_of(text) for name, text in texts().items()}
    if as_json:
        say_json({"protocols": known})
        return
    width = max(map(len, known))
    say(*(f"{name:<{width}}  {summary}" for name, summary in known.items()))


def show(protocol: Name) -> None:
    """Print the file of a protocol."""
    path = Path(protocol)
    Protocol.load(protocol)
    say_text((path.read_text(encoding="utf-8") if path.is_file() else texts()[protocol]).rstrip())


def methods(as_json: Json = False) -> None:
    """List the methods that a protocol can name, with their cost, their needs and their publication."""
    from ctflow.registry import names

    listed = {name: _described(name) for name in sorted(names("method"))}
    if as_json:
        say_json({"methods": listed})
        return
    for name, one in listed.items():
        needs = "a prior" if one["needs_prior"] else "no prior"
        needs += " with gradients" if one["needs_gradients"] else ""
        say(
            f"{name:<16} {one['class']}: {one['summary']}",
            f"{'':<16} {one['cost']}; needs {needs}",
            f"{'':<16} {one['title']} ({one['year']})",
            "",
        )


def _described(name: str) -> dict[str, object]:
    from ctflow.solving import build_method, spread_of

    method = build_method({"name": name})
    spent = getattr(method, "evaluations", (0, 0))  # None: known only afterwards, by backpropagation
    paper = bibtex_fields(method.paper)
    return {
        "class": type(method).__name__,
        "summary": (method.__doc__ or "").splitlines()[0],
        "cost": method.cost,
        "needs_prior": method.needs_prior,
        "needs_gradients": spent is None or spent[1] > 0,
        "samples_differ_by": spread_of(method),
        "title": paper["title"],
        "year": paper["year"],
    }


def bibtex_fields(paper: str) -> dict[str, str]:
    """Parse the fields of a BibTeX entry, {"title": ..., "year": ...}, without braces and line breaks."""
    braced = r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
    fields = re.findall(rf"(\w+)\s*=\s*{braced}", paper)
    return {key: " ".join(re.sub(r"[{}]", "", value).split()) for key, value in fields}


def cite(protocol: Name, allow_imports: AllowImports = False) -> None:
    """Print BibTeX entries of ctflow, the methods that a protocol uses, and the work that they build on."""
    from ctflow.runs.report import citation

    chosen = Protocol.load(protocol)
    papers = {name: str(method.paper) for name, method in chosen.methods().items()}
    say_text(citation(papers, "geometry" in chosen.tables))
