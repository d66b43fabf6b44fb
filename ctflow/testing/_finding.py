"""Result of checking a law, and the error that lists the broken ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ctflow.errors import CTFlowError

Laws = Iterator[tuple[str, Callable[[], float], float]]
"""Name, measurement and bound of each law."""


@dataclass(frozen=True)
class Finding:
    """One law: the measured value and its bound.

    Args:
        law: name of the law.
        value: measured value; NaN exceeds every bound.
        bound: largest value that satisfies the law; infinite where the value is only reported.
        note: why there is no value, if there is none.
    """

    law: str
    value: float
    bound: float
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the value is within its bound."""
        return self.value <= self.bound

    def __str__(self) -> str:
        if self.note:
            return f"{self.law}: {self.note}"
        return f"{self.law}: {self.value:.3g} (at most {self.bound:.3g})"


class CheckError(CTFlowError, AssertionError):
    """A check failed; `findings` holds the figures of all laws, satisfied or broken."""

    def __init__(self, subject: str, findings: list[Finding]) -> None:
        self.findings = findings
        broken = "; ".join(str(finding) for finding in findings if not finding.holds)
        kept = sum(finding.holds for finding in findings)
        super().__init__(f"{subject} keeps {kept} of {len(findings)} laws and breaks: {broken}")


def check_laws(subject: str, laws: Laws) -> list[Finding]:
    """Measure every law.

    A law that raises counts as broken, and its error is quoted; so does one that cannot be prepared.

    Raises:
        CheckError: a law is broken.
    """
    findings: list[Finding] = []
    try:
        for law in laws:
            findings.append(_measure(*law))
    except Exception as error:
        findings.append(_raised("preparation", 0.0, error))
    if not all(finding.holds for finding in findings):
        raise CheckError(subject, findings)
    return findings


def _measure(law: str, measure: Callable[[], float], bound: float) -> Finding:
    try:
        return Finding(law, float(measure()), bound)
    except Exception as error:  # whatever it is, it is the finding
        return _raised(law, bound, error)


def _raised(law: str, bound: float, error: Exception) -> Finding:
    return Finding(law, math.inf, bound, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value of b, both (*shape,); infinite if shapes differ."""
    if a.shape != b.shape:
        return math.inf
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30))


def white_noise(
    shape: tuple[int, ...], *batch: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw white noise of unit variance, (*batch, *shape)."""
    return torch.randn(*batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
