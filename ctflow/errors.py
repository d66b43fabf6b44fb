"""Errors that ctflow explains, one class per cause, each with the exit status of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Collection

_MOST_REASONS = 12  # that a message holds


def suggestion(name: str, known: Collection[str]) -> str:
    """Suggest the nearest known name for an unknown one, or list all known names where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(known))}"


class CTFlowError(Exception):
    """Any failure that ctflow explains; `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(CTFlowError):
    """The request cannot be understood: an unknown name, keyword, option or prior."""

    exit_code = 2


class ProtocolError(UsageError):
    """A protocol file or an override in it is malformed."""


class StudyError(UsageError):
    """A study file is malformed, or its split puts one patient into two parts."""


class NoDicomError(CTFlowError):
    """There is no CT series where one was expected."""

    exit_code = 2


class SeriesError(CTFlowError):
    """The files do not form one volume; every reason is listed in `reasons`."""

    exit_code = 3

    def __init__(self, reasons: list[str], advice: str) -> None:
        self.reasons = reasons
        more = len(reasons) - _MOST_REASONS
        words = [*reasons[:_MOST_REASONS], *([f"{more} more"] if more > 0 else [])]
        super().__init__(f"{'; '.join(words)}. {advice[:1].upper()}{advice[1:]}")
        self._advice = advice

    def __reduce__(self) -> tuple[type[SeriesError], tuple[list[str], str]]:
        return type(self), (self.reasons, self._advice)


class GeometryError(CTFlowError):
    """A geometry is impossible, or the detector does not see the object."""

    exit_code = 3


class UnreadableError(CTFlowError):
    """A file is damaged: truncated pixels, not DICOM, a checkpoint cut short."""

    exit_code = 4


class DecoderError(CTFlowError):
    """No installed decoder reads this transfer syntax."""

    exit_code = 5


class OutputError(CTFlowError):
    """The output exists already or cannot be written."""

    exit_code = 6


class BackendError(CTFlowError):
    """The requested device or library is not available."""

    exit_code = 7


class AcceptanceError(CTFlowError):
    """The run finished and a threshold of the protocol's `accept` table failed."""

    exit_code = 8


class UnitError(CTFlowError):
    """A volume is not in the unit that the call needs."""

    exit_code = 3


class StudyUnfinishedError(CTFlowError):
    """A study ended with some of its units failed or not done; finished units are kept."""

    exit_code = 9


class WorkerDiedError(CTFlowError):
    """A process that did a part of the work was killed, and so was whichever did the part again."""

    exit_code = 9


class PacsError(CTFlowError):
    """A PACS cannot be reached, refuses the request, or sent or accepted only a part."""

    exit_code = 10
