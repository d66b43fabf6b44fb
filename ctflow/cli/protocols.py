"""List what is available: `ctflow protocols`, `show`, `methods` and `cite`."""

from __future__ import annotations

import re
from pathlib import Path

from ctflow.cli.options import AllowImports, Name
from ctflow.cli.terminal import say, say_text
from ctflow.runs.protocol import Protocol, summary_of, texts


def protocols() -> None:
    """List the protocols by name: those of $CTFLOW_PROTOCOLS first, then those of ctflow."""
    known = texts()
    width = max(map(len, known))
    say(*(f"{name:<{width}}  {summary_of(text)}" for name, text in known.items()))


def show(protocol: Name) -> None:
    """Print the file of a protocol."""
    path = Path(protocol)
    Protocol.load(protocol)
    say_text((path.read_text(encoding="utf-8") if path.is_file() else texts()[protocol]).rstrip())


def methods() -> None:
    """List the methods that a protocol can name, with their cost, their needs and their publication."""
    from ctflow.registry import names
    from ctflow.solving import build_method

    for name in sorted(names("method")):
        method = build_method({"name": name})
        needs = "a prior" if method.needs_prior else "no prior"
        spent = getattr(method, "evaluations", (0, 0))  # None: known only afterwards, by backpropagation
        needs += " with gradients" if spent is None or spent[1] > 0 else ""
        paper = bibtex_fields(method.paper)
        say(
            f"{name:<16} {type(method).__name__}: {(method.__doc__ or '').splitlines()[0]}",
            f"{'':<16} {method.cost}; needs {needs}",
            f"{'':<16} {paper['title']} ({paper['year']})",
            "",
        )


def bibtex_fields(paper: str) -> dict[str, str]:
    """Parse the fields of a BibTeX entry, {"title": ..., "year": ...}, without braces and line breaks."""
    braced = r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
    fields = re.findall(rf"(\w+)\s*=\s*{braced}", paper)
    return {key: " ".join(re.sub(r"[{}]", "", value).split()) for key, value in fields}


def cite(protocol: Name, allow_imports: AllowImports = False) -> None:
    """Print BibTeX entries of the methods that a protocol uses, and of the work that they build on."""
    from ctflow.runs.report import citation

    chosen = Protocol.load(protocol)
    papers = {name: str(method.paper) for name, method in chosen.methods().items()}
    say_text(citation(papers, "geometry" in chosen.tables))
