"""Checks that every part of ctflow passes, for use on your own parts.

Each check tests all its laws, returns the figures, and raises `CheckError` with those that exceeded a bound:

    from ctflow.testing import check_operator
    for finding in check_operator(MyOperator.example()):
        print(finding)
"""

from ctflow.testing._dataset import check_dataset
from ctflow.testing._finding import CheckError, Finding
from ctflow.testing._noise import check_noise
from ctflow.testing._operator import adjoint_gap, check_operator
from ctflow.testing._prior import check_prior
from ctflow.testing._sampler import check_sampler

__all__ = [
    "CheckError",
    "Finding",
    "adjoint_gap",
    "check_dataset",
    "check_noise",
    "check_operator",
    "check_prior",
    "check_sampler",
]
