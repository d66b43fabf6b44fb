"""What there is: `ctflow protocols`, `show`, `methods` and `cite`."""

from __future__ import annotations

import re
from pathlib import Path

from ctflow.commands import AllowImports, Name
from ctflow.protocol import Protocol, summary_of, texts
from ctflow.terminal import say, say_text


def protocols() -> None:
    """List the protocols by name: $CTFLOW_PROTOCOLS first, then those that come with ctflow."""
    known = texts()
    width = max(map(len, known))
    say(*(f"{name:<{width}}  {summary_of(text)}" for name, text in known.items()))


def show(protocol: Name) -> None:
    """Print a protocol as it stands in its file."""
    path = Path(protocol)
    Protocol.load(protocol)
    say_text((path.read_text(encoding="utf-8") if path.is_file() else texts()[protocol]).rstrip())


def methods() -> None:
    """List the methods that a protocol can name: what they cost, what they need, and whose they are."""
    from ctflow.registry import find, names

    for name in sorted(names("method")):
        method = find("method", name)
        needs = "a prior" if method.needs_prior else "no prior"
        spent = getattr(method(), "evaluations", (0, 0))  # None: known only afterwards, by backpropagation
        needs += " with gradients" if spent is None or spent[1] > 0 else ""
        title = re.search(r"title\s*=\s*\{(.*?)\},?\s*\n", method.paper, re.DOTALL)
        year = re.search(r"year\s*=\s*\{(\d+)\}", method.paper)
        named = re.sub(r"[{}]|\s(?=\s)", "", title[1]) if title else "no title"
        say(
            f"{name:<16} {method.__name__}: {(method.__doc__ or '').splitlines()[0]}",
            f"{'':<16} {method.cost}; needs {needs}",
            f"{'':<16} {named} ({year[1] if year else 'no year'})",
            "",
        )


def cite(protocol: Name, allow_imports: AllowImports = False) -> None:
    """Print BibTeX of the methods that a protocol uses, and of what they stand on."""
    from ctflow.report import citation

    chosen = Protocol.load(protocol)
    papers = {name: str(method.paper) for name, method in chosen.methods().items()}
    say_text(citation(papers, "geometry" in chosen.tables))
