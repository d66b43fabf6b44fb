"""A cone beam against ITK-RTK, where that is installed: projection, adjoint and FDK, by processor time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.benchmarks.bars import Bar, interleaved, median_ratio, one_thread
from ctflow.datasets.phantoms import Phantom
from ctflow.geometry import ConeBeam, VolumeGeometry
from ctflow.noise import Gaussian
from ctflow.operators import Radon
from ctflow.problem import InverseProblem
from ctflow.recon import FBP, FDK
from ctflow.units import MU_WATER

_BOUND = 0.5  # of RTK's time
_TURNS = 3

Array = NDArray[np.float32]
Size = tuple[float, float, float]  # x, y, z, mm


def against_rtk(size: int = 128, views: int = 60) -> list[Bar]:
    """Our time over that of ITK-RTK in the same turns, in one thread: forward, adjoint and FDK.

    RTK's projectors are Joseph's method too; each gets numbers of its own axes, which do not matter for time.

    Args:
        size: voxels of 2 mm a side.
        views: of a full turn.

    Returns:
        Three bars, dimensionless; none where ITK-RTK (the package `itk-rtk`) is not installed.
    """
    try:
        itk = import_module("itk")
        rtk = itk.RTK
    except (ImportError, AttributeError):
        return []
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    volume = VolumeGeometry((size, size, size), (2.0, 2.0, 2.0))
    A = Radon(volume, ConeBeam(views))
    x = torch.rand(volume.shape, generator=torch.Generator().manual_seed(0))
    with one_thread():
        calls = _ours(A, x) | _theirs(itk, rtk, A, x)
        for call in calls.values():
            call()  # compile, and load
        times = interleaved(calls, _TURNS, processor=True)
    return [
        Bar(
            f"cone {size}³×{views}: {way}, over ITK-RTK's time",
            median_ratio(times[way], times[f"RTK {way}"]),
            _BOUND,
            at_most=True,
        )
        for way in ("forward", "adjoint", "FDK")
    ]


def accuracy_against_rtk(phantom: Phantom, A: Radon) -> list[Bar]:
    """Our projections and FDK of a phantom beside those of ITK-RTK, from the same numbers.

    Our (x, y, z) are RTK's (x, z, y); its gantry angle is half a turn less our view's, and its bins run the
    other way.

    Args:
        phantom: ellipsoids.
        A: projection by a flat full fan of a full turn.

    Returns:
        Two bars: error against the exact line integrals over RTK's, and how far both FDK are apart inside the
        field of view, HU; none where ITK-RTK is not installed.
    """
    try:
        itk = import_module("itk")
        rtk = itk.RTK
    except (ImportError, AttributeError):
        return []
    beam, mm = A.beam, A.volume.spacing[0]
    assert isinstance(beam, ConeBeam)
    assert beam.pitch is not None  # the beam is fitted
    assert beam.row_pitch is not None
    orbit = rtk.ThreeDCircularProjectionGeometry.New()
    for angle in beam.views:
        orbit.AddProjection(beam.source_axis, beam.source_detector, 180 - float(np.degrees(angle)))
    x, exact = phantom.rasterise(A.volume).data, phantom.line_integrals(A.volume, beam, rays_per_bin=4)
    panel, cube = (beam.pitch, beam.row_pitch, 1.0), (mm, mm, mm)
    kind = itk.Image[itk.F, 3]

    def data(y: Tensor) -> Any:
        return _image(itk, y.flip(-1).movedim(0, 1).contiguous().numpy(), panel)

    def volume(x: Tensor) -> Any:
        return _image(itk, x.flip(1).movedim(0, 1).contiguous().numpy(), cube)

    forward = rtk.JosephForwardProjectionImageFilter[kind, kind].New()
    forward.SetGeometry(orbit)
    forward.SetInput(0, data(torch.zeros_like(exact)))
    forward.SetInput(1, volume(x))
    forward.Update()
    theirs = torch.from_numpy(itk.array_from_image(forward.GetOutput())).movedim(1, 0).flip(-1)
    fdk = rtk.FDKConeBeamReconstructionFilter[kind].New()
    fdk.SetGeometry(orbit)
    fdk.SetInput(0, volume(torch.zeros_like(x)))
    fdk.SetInput(1, data(exact))
    fdk.Update()
    image = torch.from_numpy(itk.array_from_image(fdk.GetOutput())).movedim(1, 0).flip(1)
    ours = inverted(FDK(), InverseProblem(A, exact, Gaussian(1.0)))
    places = (torch.arange(x.shape[-1]) - (x.shape[-1] - 1) / 2) * mm
    inside = torch.hypot(places[:, None], places) < 0.45 * A.volume.fov
    apart = float((ours - image)[:, inside].square().mean().sqrt()) * 1000 / MU_WATER
    ratio = float((A(x) - exact).norm() / (theirs - exact).norm())
    return [
        Bar("cone: error against ellipsoids, over ITK-RTK's", ratio, 1.0, at_most=True),
        Bar("FDK: ours against ITK-RTK's, HU", apart, 3.0, at_most=True),
    ]


def inverted(method: FBP | FDK, problem: InverseProblem) -> Tensor:
    """Image in 1/mm, (*batch, Z, Y, X), without the residual that `solve` measures."""
    return method(problem, None, torch.Generator(), lambda step, steps: None)


def _ours(A: Radon, x: Tensor) -> dict[str, Callable[[], object]]:
    y = A(x)
    return {
        "forward": partial(A, x),
        "adjoint": partial(A.T, y),
        "FDK": partial(inverted, FDK(), InverseProblem(A, y, Gaussian(1.0))),
    }


def _theirs(itk: Any, rtk: Any, A: Radon, x: Tensor) -> dict[str, Callable[[], object]]:
    beam, (Z, Y, X) = A.beam, A.domain_shape
    assert isinstance(beam, ConeBeam)
    assert beam.pitch is not None  # the beam is fitted
    assert beam.row_pitch is not None
    orbit = rtk.ThreeDCircularProjectionGeometry.New()
    for angle in beam.views:
        orbit.AddProjection(beam.source_axis, beam.source_detector, float(np.degrees(angle)))
    rows, views, bins = A.range_shape
    panel = beam.pitch, beam.row_pitch, 1.0
    empty, no_data = (
        _image(itk, np.zeros(shape, np.float32), mm)
        for shape, mm in (((Z, Y, X), (2.0, 2.0, 2.0)), ((views, rows, bins), panel))
    )
    volume = _image(itk, x.numpy(), (2.0, 2.0, 2.0))
    data = _image(itk, A(x).movedim(0, 1).contiguous().numpy(), panel)
    kind = itk.Image[itk.F, 3]

    def run(filter: Any, *inputs: Any) -> object:
        filter.InPlaceOff()  # which would take the memory of the first input away
        filter.SetGeometry(orbit)
        for number, one in enumerate(inputs):
            filter.SetInput(number, one)
        filter.Update()
        return filter.GetOutput()

    return {
        "RTK forward": lambda: run(rtk.JosephForwardProjectionImageFilter[kind, kind].New(), no_data, volume),
        "RTK adjoint": lambda: run(rtk.JosephBackProjectionImageFilter[kind, kind].New(), empty, data),
        "RTK FDK": lambda: run(rtk.FDKConeBeamReconstructionFilter[kind].New(), empty, data),
    }


def _image(itk: Any, numbers: Array, spacing: Size) -> Any:
    """An image of ITK around the origin of two or three axes; views count from zero."""
    image = itk.image_from_array(numbers)
    image.SetSpacing(spacing)
    image.SetOrigin([-(n - 1) / 2 * mm for n, mm in zip(numbers.shape[::-1], spacing, strict=True)])
    return image
