"""What the shell offers where a name is due; a press of TAB must not wait for torch."""

from __future__ import annotations

from importlib.resources import files

from ctflow.errors import CTFlowError


def complete_protocol(incomplete: str) -> list[tuple[str, str]]:
    """Protocols whose name begins so, and what each measures."""
    from ctflow.runs.protocol import summary_of, texts

    try:
        known = texts()
    except CTFlowError:  # a file in $CTFLOW_PROTOCOLS that cannot be read is told of when it is used
        return []
    return [(name, summary_of(text)) for name, text in known.items() if name.startswith(incomplete)]


def complete_method(incomplete: str) -> list[str]:
    """Methods whose name begins so; after a comma the next one of a list."""
    from ctflow.registry import names

    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in sorted(names("method")) if name.startswith(last)]


def complete_bench(incomplete: str) -> list[tuple[str, str]]:
    """Benches whose name begins so, and what each measures."""
    from ctflow.benchmarks import BENCHES

    return [(name, what) for name, what in BENCHES.items() if name.startswith(incomplete)]


def complete_study(incomplete: str) -> list[str]:
    """Packaged studies whose name begins so."""
    return _packaged("experiments", ".toml", incomplete)


def complete_prior(incomplete: str) -> list[str]:
    """Shipped priors whose name begins so."""
    return _packaged("priors", ".safetensors", incomplete)


def _packaged(room: str, ending: str, incomplete: str) -> list[str]:
    """Names of the files of a room; the modules that read them load torch."""
    found = (path.name for path in files(f"ctflow.{room}").iterdir())
    stems = sorted(name.removesuffix(ending) for name in found if name.endswith(ending))
    return [name for name in stems if name.startswith(incomplete)]
