"""What a user's type checker knows of ctflow; read by mypy in test_typing.py, never run.

A line that must be refused carries the refusal as its `type: ignore`: one that is not needed is an error.
"""

from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import ctflow as ct
from ctflow.geometry import Beam
from ctflow.runs.measurement import Measurement
from ctflow.runs.reconstruction import Reconstruction, reconstruct
from ctflow.solving import Method, Spread, build_method


def solved(problem: ct.InverseProblem, prior: ct.Prior) -> ct.Solution:
    fbp = ct.solve(problem, ct.FBP())
    assert_type(fbp, ct.Solution)
    assert_type(fbp.mean, Tensor)
    assert_type(fbp.std, Tensor)
    assert_type(fbp.spread, Spread)
    assert_type(fbp.stats, dict[str, float])
    assert_type(fbp.method, Method)
    assert_type(fbp.trace, list[tuple[int, float]])
    assert_type(ct.compare({"fbp": fbp}, volume()).rows["fbp"]["fov"]["psnr"], float)
    return ct.solve(problem, ct.MSFlow(), prior, samples=8, seed=1)


def volume() -> ct.Volume:
    read = ct.read_series("series")
    assert_type(read, ct.Volume)
    assert_type(read.data, Tensor)
    return read


def measured(image: ct.Volume) -> ct.InverseProblem:
    A = ct.Radon(image.geometry, ct.ParallelBeam(60))
    assert_type(A(image.data), Tensor)
    assert_type(A.T, ct.LinearOperator)
    assert_type(2.0 * A @ A.T, ct.LinearOperator)
    problem = ct.simulate(A, image, ct.Poisson(1e5))
    assert_type(problem, ct.InverseProblem)
    return problem


def reconstructed(measurement: Measurement, protocol: ct.Protocol) -> Reconstruction:
    assert_type(protocol.methods(), dict[str, Method])
    assert_type(protocol.noise(), ct.Noise)
    assert_type(protocol.beam(), Beam)
    assert_type(measurement.truth, ct.Volume)
    assert_type(measurement.A, ct.LinearOperator)
    assert_type(measurement.masks, tuple[NDArray[np.bool_], NDArray[np.bool_]])
    problem = measurement.problem(seed=0)
    assert_type(problem, ct.InverseProblem)
    found = reconstruct(measurement, problem, build_method({"name": "fbp"}))
    assert_type(found.figures["body"]["psnr"], float)
    assert_type(found.spread, ct.Volume | None)
    return found


METHODS: list[Method] = [ct.FBP(), ct.TV(), ct.CGLS(), ct.MSFlow(), ct.DPS(), ct.PnPFlow()]
PRIOR: ct.Prior = ct.FlowPrior.load("ct-256")
NOISES: list[ct.Noise] = [ct.Gaussian(0.1), ct.Poisson()]


class Nothing:
    """Has what a method tells of itself, and cannot be called."""

    needs_prior = False
    cost = "nothing"
    paper = ""


def refused(problem: ct.InverseProblem) -> None:
    ct.solve(problem, Nothing())  # type: ignore[arg-type]
    ct.solve(problem, ct.FBP)  # type: ignore[arg-type]
    ct.solve(problem, "fbp")  # type: ignore[arg-type]
    ct.solve(problem, ct.MSFlow(), "ct-256")  # type: ignore[arg-type]
    ct.solve(problem, ct.FBP(), sample=8)  # type: ignore[call-arg]
    ct.Radon(volume(), ct.ParallelBeam(60))  # type: ignore[arg-type]
    _ = ct.FBP().iterations  # type: ignore[attr-defined]
    ct.FBB()  # type: ignore[attr-defined]
