"""From a study and its cases to units: those that tune, and those that are reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ctflow.errors import StudyError
from ctflow.experiments.cases import Case
from ctflow.experiments.records import Chosen
from ctflow.experiments.study import Study, StudyMethod
from ctflow.experiments.unit import Unit
from ctflow.priors import FlowPrior
from ctflow.search_space import trials
from ctflow.solving import build_method, samples_of


class Planner:
    """Makes the units of a study.

    Args:
        study: the study.
        cases: its cases, each on its side of the split.

    Raises:
        StudyError: a method is to be tuned and no case is on the validation side, or none on the test side.
        UsageError: there is no such prior.
    """

    def __init__(self, study: Study, cases: Sequence[Case]) -> None:
        self.study, self.cases = study, cases
        needed = any(build_method(method.table).needs_prior for method in study.methods.values())
        self._prior_sha256 = FlowPrior.load(study.prior).sha256 if needed else ""
        if self._tuned() and not self._on("validation"):
            raise StudyError(
                "a method is to be tuned and no case is on the validation side; add one to the split"
            )
        if not self._on("test"):
            raise StudyError("no case is on the test side of the split; add one")

    def tuning(self) -> list[Unit]:
        """Units of the validation cases, as many trials for every method that is tuned."""
        study, tuning = self.study, self.study.tuning
        drawn = {
            method.label: trials(method.tune, tuning["trials"], tuning["seed"], method.label)
            for method in self._tuned()
        }
        return [
            self._unit(case, name, method, study.seeds[0], changes, trial=number)
            for case in self._on("validation")
            for name in study.protocols
            for method in self._tuned()
            for number, changes in enumerate(drawn[method.label])
        ]

    def test(self, chosen: Chosen) -> list[Unit]:
        """Units of the test cases, after those of validation cases whose spread calibrates intervals.

        Args:
            chosen: by protocol and method, what `tuning.choose` found.
        """
        spreading = [method for method in self.study.methods.values() if self._spreads(method)]
        every = list(self.study.methods.values())
        return [
            self._unit(
                case, name, method, seed, found.get("parameters", {}), refusal=found.get("refusal", "")
            )
            for side, methods in (("validation", spreading), ("test", every))
            for case in self._on(side)
            for name in self.study.protocols
            for seed in self.study.seeds
            for method in methods
            for found in [chosen.get(name, {}).get(method.label, {})]
        ]

    def _spreads(self, method: StudyMethod) -> bool:
        return samples_of(build_method(method.table), self.study.samples) > 1

    def _tuned(self) -> list[StudyMethod]:
        return [method for method in self.study.methods.values() if method.tune]

    def _on(self, side: str) -> list[Case]:
        return [case for case in self.cases if case.split == side]

    def _unit(
        self,
        case: Case,
        protocol: str,
        method: StudyMethod,
        seed: int,
        changes: Mapping[str, object],
        *,
        trial: int | None = None,
        refusal: str = "",
    ) -> Unit:
        study, table = self.study, {**method.table, **changes}
        built = build_method(method.table)
        prior = self._prior_sha256 if built.needs_prior else ""
        return Unit(
            case,
            study.protocols[protocol],
            method.label,
            table,
            seed,
            samples_of(built, study.samples),
            study.prior,
            prior,
            study.device,
            trial,
            refusal,
            study.asked if case.split == "test" else {},
        )
