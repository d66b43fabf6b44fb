"""Laws of noise models."""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow.noise import Noise
from ctflow.testing._finding import Finding, Laws, check_laws

_DRAWS = 4000


def check_noise(noise: Noise, clean: Tensor | None = None) -> list[Finding]:
    """Check a noise model by its samples: their mean is the clean datum, their variance 1 / precision.

    Four thousand draws per datum detect a bias of 5 % of a standard deviation and an error of 3 % in the
    variance. Where a model is an approximation (the logarithm of few photons), give data where it should
    hold.

    Args:
        noise: the model.
        clean: noiseless data (rows, views, bins), dimensionless line integrals; by default 0.1 to 2.

    Returns:
        The figure of every law.

    Raises:
        CheckError: a law is broken.
    """
    clean = torch.linspace(0.1, 2.0, 60).reshape(1, 6, 10) if clean is None else clean
    return check_laws(type(noise).__name__, _laws(noise, clean))


def _laws(noise: Noise, clean: Tensor) -> Laws:
    drawn = _draw(noise, clean.expand(_DRAWS, *clean.shape)).double()
    precision = noise.precision(clean).double()
    error = (drawn - clean) * precision.sqrt()
    yield "values that are not finite", lambda: float((~drawn.isfinite()).sum()), 0.0
    yield "precision not positive", lambda: float((~(precision > 0)).sum()), 0.0
    # In standard deviations. 1 / sqrt(4000) = 0.016 is the error of each mean; four and a half of them.
    yield "bias of a datum", lambda: float(error.mean(0).abs().max()), 0.07
    # 1 / sqrt(4000 · 60) = 0.002 for all data together; the logarithm's own bias is 0.004 at 1e4 photons.
    yield "bias of all data", lambda: float(error.mean().abs()), 0.02
    # sqrt(2 / 4000) = 0.022 for each variance; five of them.
    yield "variance of a datum", lambda: float((error.var(0) - 1).abs().max()), 0.12
    yield "variance of all data", lambda: float((error.var(0).mean() - 1).abs()), 0.03
    yield "correlation of neighbours", lambda: _correlation(error), 0.02
    yield "shape and type", lambda: _kind_changes(noise, clean), 0.0
    yield "input unchanged", lambda: _mutation(noise, clean), 0.0
    yield "same seed, same noise", lambda: float((_draw(noise, clean) != _draw(noise, clean)).sum()), 0.0
    yield (
        "other seed, other noise",
        lambda: float(torch.equal(_draw(noise, clean), _draw(noise, clean, 1))),
        0.0,
    )


def _draw(noise: Noise, clean: Tensor, seed: int = 0) -> Tensor:
    return noise.sample(clean, torch.Generator().manual_seed(seed))


def _correlation(error: Tensor) -> float:
    """Correlation of every datum with the next bin and the next view, over all data."""
    pairs = ((error[..., 1:], error[..., :-1]), (error[..., 1:, :], error[..., :-1, :]))
    return max(abs(float((a * b).mean())) for a, b in pairs)


def _kind_changes(noise: Noise, clean: Tensor) -> float:
    y = _draw(noise, clean)
    weighted = noise.precision(y) * y
    kinds = [(data.shape, data.dtype, data.device) for data in (clean, y, weighted)]
    return float(kinds[1:] != kinds[:1] * 2)


def _mutation(noise: Noise, clean: Tensor) -> float:
    before = clean.clone()
    noise.precision(_draw(noise, clean))
    return float((clean != before).sum())
