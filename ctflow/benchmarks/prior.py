"""The shipped prior as a denoiser of patients it has not seen: against its peers, its cost, its memory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ctflow.benchmarks.bars import Bar, Figure, Findings, Row, interleaved, median_ratio
from ctflow.benchmarks.copies import Library
from ctflow.experiments.patients import patients
from ctflow.priors import FlowPrior, Prior
from ctflow.priors._base import HU_CENTRE, HU_WIDTH
from ctflow.system.progress import Progress
from ctflow.training.slices import Slices
from ctflow.training.validation import TIMES, draw_samples

_RANGE = 2000 / HU_WIDTH  # of the PSNR, network range
NOISE_HU = (25, 50, 100)
UNTOLD = "network, spacing unknown"
# Least advantage of the network, dB: what an early network of this kind and its growth promised.
_AHEAD = {("NLM", 50): 2.0, ("BM3D", 25): 0.7, ("BM3D", 50): 0.7, ("BM3D", 100): 0.7}
_COST = 12  # 3 × 3 convolutions of 64 channels

Picture = NDArray[np.float32]
Denoiser = Callable[[Picture, float, Picture], Picture]
"""From a noisy slice, the noise's deviation and the truth, which only chooses the strength, to a slice."""


def measure(quick: bool, progress: Progress, data: Path | None = None) -> Findings:
    """Denoise validation slices, time a call, look for copies of training slices, test the Jacobian.

    Args:
        quick: 8 slices in place of 32, 4 of 512² in place of 16.
        progress: told the fraction that is done and what comes next.
        data: folder of `Slices`.
    """
    folder, found = patients(data), Findings()
    prior = shipped()
    held_out = Slices(folder, "validation", ("256",)).spread(8 if quick else 32)
    for number, hu in enumerate(NOISE_HU):
        progress(0.15 * number, "denoising")
        _judge(hu, _denoise(prior, held_out, hu), found)
    progress(0.45, "denoising 512²")
    large = _denoise(prior, Slices(folder, "validation", ("512",)).spread(4 if quick else 16), 50)
    found.rows += [Figure(f"50 HU, 512²: {name}", psnr, "dB") for name, psnr in large.items()]
    progress(0.6, "time")
    _time(prior, 3 if quick else 9, found)
    progress(0.7, "symmetry")
    found.rows += [_asymmetry(prior, held_out[:4], t) for t in TIMES]
    progress(0.75, "samples")
    _copies(prior, folder, found)
    progress(1.0, "done")
    return found


def shipped() -> FlowPrior:
    """The network that ships."""
    prior = FlowPrior.load("ct-256")
    if not isinstance(prior, FlowPrior):
        raise TypeError(f"'ct-256' is a {type(prior).__name__} and no network")
    return prior


def _denoise(prior: FlowPrior, slices: list[tuple[Tensor, float]], hu: int) -> dict[str, float]:
    """Mean PSNR over slices of the network, told the pixel spacing and not told, and of its peers, dB."""
    generator, sigma, denoisers = torch.Generator().manual_seed(hu), hu / HU_WIDTH, peers()
    psnr: dict[str, list[float]] = {name: [] for name in ("network", UNTOLD, *denoisers)}
    for u, spacing in slices:
        noisy = u + sigma * torch.randn(u.shape, generator=generator)
        for name, told in (("network", spacing), (UNTOLD, math.nan)):
            prior.spacing = told
            psnr[name].append(_psnr(_by_prior(prior, noisy, sigma), u))
        for name, denoiser in denoisers.items():
            image = denoiser(noisy.numpy(), sigma, u.numpy())
            psnr[name].append(_psnr(torch.from_numpy(image), u))
    return {name: statistics.mean(values) for name, values in psnr.items()}


def _judge(hu: int, psnr: dict[str, float], found: Findings) -> None:
    """How far the network is ahead of each peer at a noise level, and what holds."""
    found.rows += [Figure(f"{hu} HU: {name}", value, "dB") for name, value in psnr.items()]
    for name, value in psnr.items():
        if name not in ("network", UNTOLD):
            ahead, bound = psnr["network"] - value, _AHEAD.get((name, hu), 0)
            found.bars.append(Bar(f"{hu} HU: network over {name}, dB", ahead, bound))
    if "BM3D" not in psnr:
        advice = "not installed: pip install bm3d (its licence allows non-commercial use only)"
        found.rows.append(Figure(f"{hu} HU: BM3D", float("nan"), advice))


def peers() -> dict[str, Denoiser]:
    """Denoisers by name; BM3D where it is installed."""
    gaussian = FlowPrior.load("ct-gaussian")
    found: dict[str, Denoiser] = {
        "Gaussian prior": lambda y, sigma, _: _by_prior(gaussian, torch.from_numpy(y), sigma).numpy(),
        "TV": _tv,
        "NLM": _nlm,
    }
    return found | ({"BM3D": _bm3d} if find_spec("bm3d") else {})


def _by_prior(prior: Prior, noisy: Tensor, sigma: float) -> Tensor:
    t = 1 / (1 + sigma)
    with torch.no_grad():
        return prior.denoise(t * noisy[None], t)[0]


def _best(candidates: list[Picture], truth: Picture) -> Picture:
    """The candidate nearest the truth: a choice that no user has, in the peer's favour."""
    return min(candidates, key=lambda image: float(((image - truth) ** 2).sum()))


def _tv(noisy: Picture, sigma: float, truth: Picture) -> Picture:
    tv = import_module("skimage.restoration").denoise_tv_chambolle
    return _best([tv(noisy, weight=factor * sigma).astype(np.float32) for factor in (0.6, 0.9, 1.2)], truth)


def _nlm(noisy: Picture, sigma: float, truth: Picture) -> Picture:
    nlm = partial(import_module("skimage.restoration").denoise_nl_means, patch_size=5, patch_distance=9)
    strengths = (0.4, 0.6, 0.8)
    return _best([nlm(noisy, h=h * sigma, sigma=sigma, preserve_range=True) for h in strengths], truth)


def _bm3d(noisy: Picture, sigma: float, _: Picture) -> Picture:
    image: Picture = import_module("bm3d").bm3d(noisy, sigma).astype(np.float32)
    return image


def _psnr(image: Tensor, truth: Tensor) -> float:
    return float(10 * torch.log10(_RANGE**2 / ((image - truth) ** 2).mean()))


def _time(prior: FlowPrior, repetitions: int, found: Findings) -> None:
    """One call in units of a convolution, and in milliseconds."""
    convolution = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = torch.zeros(1, 64, 256, 256).contiguous(memory_format=torch.channels_last)
    name = "3×3 convolution of 64 channels, 256²"
    calls: dict[str, Callable[[], object]] = {name: partial(convolution, features)}
    for size in (256, 512):
        for kind in (torch.float32, torch.bfloat16):
            calls[f"call at {size}², {str(kind).partition('.')[2]}"] = partial(_call, prior, size, kind)
    with torch.no_grad():
        for call in calls.values():
            call()
        times = interleaved(calls, repetitions)
    found.rows += [Row(call, statistics.median(s), median_ratio(times[name], s)) for call, s in times.items()]
    ratio = median_ratio(times["call at 256², float32"], times[name])
    found.bars.append(Bar("call at 256² over 3×3 convolution of 64 channels", ratio, _COST, at_most=True))


def _call(prior: FlowPrior, size: int, kind: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        prior.denoise(torch.zeros(1, size, size), 0.5)


def _asymmetry(prior: FlowPrior, slices: list[tuple[Tensor, float]], t: float) -> Figure:
    """‖Ja − Jᵀa‖ / ‖Ja + Jᵀa‖ for white a, 0 for the Jacobian of a conditional mean, which is symmetric."""
    generator = torch.Generator().manual_seed(1)
    defects = []
    for u, prior.spacing in slices:
        z, a = (torch.randn(1, *u.shape, generator=generator) for _ in range(2))
        x = (t * u + (1 - t) * z).requires_grad_()
        v = torch.zeros_like(x, requires_grad=True)
        denoised = prior.denoise(x, t)
        # Jᵀv is linear in v: its own derivative along a is Ja.
        (pulled,) = torch.autograd.grad(denoised, x, v, create_graph=True)
        (forward,) = torch.autograd.grad(pulled, v, a, retain_graph=True)
        (backward,) = torch.autograd.grad(denoised, x, a)
        defects.append(float((forward - backward).norm() / (forward + backward).norm()))
    return Figure(f"asymmetry of the Jacobian at t = {t}", statistics.mean(defects), "of its symmetric part")


def _copies(prior: FlowPrior, folder: Path, found: Findings) -> None:
    """Samples that lie nearer to a training slice than its own neighbour in the patient would be copies."""
    training = Slices(folder, "train", ("256",))
    library = Library([torch.from_numpy(hu) for hu in training.by_kind["256"]])
    prior.spacing = statistics.median(training.known_spacings())
    samples = library.nearest(HU_WIDTH * draw_samples(prior, 256) + HU_CENTRE)
    validation = Slices(folder, "validation", ("256",)).by_kind["256"][::10]
    unseen = library.nearest(torch.stack([torch.from_numpy(hu).float() for hu in validation]))
    neighbours = library.between_neighbours().median().item()
    found.rows += [
        Figure("samples to the nearest training slice, median", samples.median().item(), "HU"),
        Figure("validation slices to the nearest training slice, median", unseen.median().item(), "HU"),
        Figure("validation slices to the nearest training slice, least", unseen.min().item(), "HU"),
        Figure("training slices to the next slice of their patient, median", neighbours, "HU"),
    ]
    found.bars.append(Bar("nearest of 16 samples to a training slice, HU", samples.min().item(), neighbours))
