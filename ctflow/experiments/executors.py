"""The units of a study on an engine: portions of them, and what is said when a worker dies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ctflow.errors import StudyUnfinishedError, WorkerDiedError
from ctflow.experiments.worker import Portion, run_portion
from ctflow.system.executors import Engine

__all__ = ["Engine", "outcomes"]


def outcomes(engine: Engine, portions: Sequence[Portion]) -> Iterator[dict[str, str]]:
    """Outcomes of the portions of one study, in the order in which they end.

    Raises:
        StudyUnfinishedError: a worker died and nobody took over.
        OutputError: the study's folder cannot be written.
    """
    try:
        yield from engine.run(run_portion, portions, portions[0].out if portions else None)
    except WorkerDiedError as error:
        raise StudyUnfinishedError(
            f"{error}; units that are done are kept: go on with --resume, with fewer --jobs if memory was "
            "short"
        ) from error
