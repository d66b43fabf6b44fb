"""Conventions of networks from other toolkits: path, time, and prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctflow.errors import UsageError

_PATHS: dict[str, Callable[[float], tuple[float, float]]] = {
    "flow": lambda sigma: (1 / (1 + sigma), sigma / (1 + sigma)),
    "vp": lambda sigma: (1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)),
    "ve": lambda sigma: (1.0, sigma),
}
# The clean image w from the output f at y = a w + b z.
_PREDICTIONS: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "velocity": lambda f, y, a, b: (y + b * f) / (a + b),
    "reverse-velocity": lambda f, y, a, b: (y - b * f) / (a + b),
    "epsilon": lambda f, y, a, b: (y - b * f) / a,
    "v": lambda f, y, a, b: (a * y - b * f) / (a * a + b * b),
    "sample": lambda f, y, a, b: f,
}


@dataclass(frozen=True)
class Convention:
    """How to obtain E[w | w + sigma z] from a network, with w the image in the network's own range.

    The network sees y = a w + b z with b / a = sigma, which fixes both on a given path; no other rescaling
    is needed to go from one path to another, so the conversion is exact: for the variance-preserving path
    and ours, x^flow = x^VP / (a + b) at t = a / (a + b).

    Args:
        path: "flow", a + b = 1; "vp", a² + b² = 1; "ve", a = 1.
        predicts: "velocity", w - z; "reverse-velocity", z - w; "epsilon", z; "v", a z - b w; "sample", w.
        clock: time that the network is given for a noise level sigma.
        time_first: whether it is called as network(time, image).
        levels: noise levels by integer training time, rising; empty where training was continuous. Between
            them the clock is interpolated in log sigma, which a network with sinusoidal time embedding
            accepts; one with a table of times needs `whole`.
        whole: whether to round the time to the nearest trained one. The result is exact at trained levels;
            between them its error is a share of the step in noise level, half a percent for most of 1000
            steps.
        lowest: below this noise level the score at it is used, w + sigma² · score, by Tweedie's formula.
        highest: above this noise level the input is shrunk to it, where the result is nearly the mean.
        learned_variance: whether later output channels hold a variance, which is dropped.

    Raises:
        UsageError: the path or the prediction is unknown.

    References:
        Karras et al., NeurIPS 2022, table 1; Salimans and Ho, ICLR 2022 (v); Lipman et al., ICLR 2023.
    """

    path: str
    predicts: str
    clock: Callable[[float], float]
    time_first: bool = False
    levels: tuple[float, ...] = ()
    whole: bool = False
    lowest: float = 0.0
    highest: float = math.inf
    learned_variance: bool = False

    def __post_init__(self) -> None:
        for value, known in ((self.path, _PATHS), (self.predicts, _PREDICTIONS)):
            if value not in known:
                raise UsageError(f"a convention must be one of {', '.join(known)} and is '{value}'")

    def denoise(self, network: Callable[..., Any], w: Tensor, sigma: float) -> Tensor:
        """Expected clean image for w with noise of level sigma, by one network evaluation.

        Shapes: w (batch, channels, Y, X) -> the same, in the network's own range.

        Raises:
            UsageError: the output is not shaped like the image.
        """
        if sigma > self.highest:
            w, sigma = w * (self.highest / sigma), self.highest
        level = max(sigma, self.lowest)
        clean = self._ask(network, w, self.levels[round(self.clock(level))] if self.whole else level)
        return clean if level == sigma else w + (sigma / level) ** 2 * (clean - w)

    def _ask(self, network: Callable[..., Any], w: Tensor, level: float) -> Tensor:
        a, b = _PATHS[self.path](level)
        y, clock = a * w, self.clock(level)
        time = y.new_full((len(y),), round(clock) if self.whole else clock)
        time = time.long() if self.whole else time
        out = network(time, y) if self.time_first else network(y, time)
        f = out if isinstance(out, Tensor) else out.sample
        if self.learned_variance:
            f = f[:, : y.shape[1]]
        if f.shape != y.shape:
            raise UsageError(
                f"the network must return images of shape {tuple(y.shape)} and returned {tuple(f.shape)}; "
                "where further channels hold a variance declare learned_variance=True"
            )
        return _PREDICTIONS[self.predicts](f, y, a, b)


# Clocks are partial functions of these, not closures: a prior that holds one can be copied and pickled.
def _straight(scale: float, falling: bool, sigma: float) -> float:
    return scale * (sigma if falling else 1.0) / (1 + sigma)


def _trained(logarithms: Tensor, sigma: float) -> float:
    here = torch.tensor(math.log(sigma), dtype=torch.float64)
    after = int(torch.searchsorted(logarithms, here).clamp(1, len(logarithms) - 1))
    low, high = logarithms[after - 1], logarithms[after]
    return float(after - 1 + (here - low) / (high - low))


def flow(
    scale: float = 1.0, *, falling: bool = False, predicts: str = "velocity", time_first: bool = False
) -> Convention:
    """Straight path w t + z (1 - t); the network is given scale · t, or scale · (1 - t) if `falling`."""
    return Convention("flow", predicts, partial(_straight, scale, falling), time_first)


def diffusion(
    alphas_cumprod: Sequence[float],
    predicts: str = "epsilon",
    *,
    whole: bool = False,
    learned_variance: bool = False,
) -> Convention:
    """Variance-preserving diffusion y = √ᾱ_k w + √(1 - ᾱ_k) z; the network is given the integer time k.

    Args:
        alphas_cumprod: ᾱ_k, falling; entries of zero signal are left out.
        predicts: "epsilon", "sample" or "v".
        whole: round to integer times, for a network with a table of times.
        learned_variance: whether the network returns a variance in further channels.

    References:
        Ho et al., NeurIPS 2020, equation 4.
    """
    levels = tuple(math.sqrt((1 - alpha) / alpha) for alpha in alphas_cumprod if alpha > 0)
    clock = partial(_trained, torch.tensor(levels, dtype=torch.float64).log())
    return Convention(
        "vp", predicts, clock, False, levels, whole, levels[0], levels[-1], learned_variance=learned_variance
    )


def denoiser() -> Convention:
    """A denoiser that is given the noise level in the unit of its images: network(w + sigma z, sigma)."""
    return Convention("ve", "sample", float)


def linear_schedule(steps: int = 1000) -> list[float]:
    """ᾱ_k of the linear schedule: β from 0.1 / steps to 20 / steps (Ho et al., NeurIPS 2020, section 4)."""
    beta = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    return [float(value) for value in (1 - beta).cumprod(0)]


CONVENTIONS: dict[str, Convention] = {
    "torchcfm": flow(time_first=True),
    "rectified-flow": flow(999.0),
    "monai": flow(1000.0, falling=True),
    "flow-match-euler": flow(1000.0, falling=True, predicts="reverse-velocity"),
    "edm": denoiser(),
    "deepinv": denoiser(),
    "guided-diffusion": diffusion(linear_schedule(), learned_variance=True),
}
"""By name: Tong et al.'s torchcfm; Liu et al.'s Rectified Flow; MONAI's RFlowScheduler; diffusers'
FlowMatchEulerDiscreteScheduler; Karras et al.'s EDMPrecond; deepinv's denoisers; Dhariwal and Nichol's
guided-diffusion with its linear schedule of 1000 steps."""


def find_convention(convention: str | Convention) -> Convention:
    """Find the convention of that name; a `Convention` is returned as it is.

    Raises:
        UsageError: there is none of that name.
    """
    if isinstance(convention, Convention):
        return convention
    if convention not in CONVENTIONS:
        raise UsageError(
            f"no convention is named '{convention}'; there are {', '.join(CONVENTIONS)}, "
            "or give one made by ctflow.priors.flow, diffusion or denoiser"
        )
    return CONVENTIONS[convention]
