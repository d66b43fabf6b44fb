"""`solve` says what a method is to those who give another thing, and how far it is to those who ask."""

import pytest

from ctflow.errors import UsageError
from ctflow.recon import CGLS, FBP
from ctflow.solving import solve
from tests.dense import random_problem


def threshold(problem):
    """A reconstruction as a plain function."""


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("fbp", r"give ctflow.FBP\(\)$"),
        ("ms-flow", r"give ctflow.MSFlow\(\)$"),
        ("msflow", "did you mean 'ms-flow'"),
        (FBP, r"FBP is a class; give FBP\(\)$"),
        (threshold, "a function is no method.*write a class as CONTRIBUTING.md shows$"),
        (None, "a NoneType is no method"),
    ],
)
def test_what_is_no_method_is_refused_with_what_to_give(method, said):
    with pytest.raises(UsageError, match=said):
        solve(random_problem()[0], method)


def test_progress_is_shown_on_stderr_when_asked_for(capsys):
    problem, seen = random_problem()[0], []
    for progress, lines in ((False, 0), (True, 5)):
        solve(problem, CGLS(iterations=5), callback=lambda step, of: seen.append(step), progress=progress)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count(" % CGLS") == lines
    assert seen == [1, 2, 3, 4, 5] * 2
