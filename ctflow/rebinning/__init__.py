"""Rebin helical and fan projections to parallel ones or to single slices, and reconstruct by weighted FBP."""

from ctflow.rebinning.detector_direction import inconsistency, orient_detector
from ctflow.rebinning.parallel import ParallelSet, to_parallel
from ctflow.rebinning.single_slice import to_fan_slices, to_parallel_slices
from ctflow.rebinning.wfbp import on_slices_of, wfbp

__all__ = [
    "ParallelSet",
    "inconsistency",
    "on_slices_of",
    "orient_detector",
    "to_fan_slices",
    "to_parallel",
    "to_parallel_slices",
    "wfbp",
]
