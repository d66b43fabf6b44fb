"""The published update formulas, written out anew with dense matrices, against the samplers step by step.

Images of 8 x 8 pixels of which half are measured, so that every prox is one division; the prior is Gaussian,
so that its denoiser and the denoiser's Jacobian are matrices. Times run from noise at 0 to the image at 1;
papers with σ or ᾱ are read as σ = 1 - t and ᾱ = t² / (t² + (1 - t)²).
"""

from itertools import pairwise

import numpy as np
import pytest
import torch

from ctflow.noise import Gaussian
from ctflow.operators import Mask
from ctflow.problem import simulate
from ctflow.samplers import DPS, FlowDPS, Flower, PiGDM, PiGFM, PnPFlow
from ctflow.solving import solve
from ctflow.system.randomness import normal, seeded
from tests.dense import stationary_prior

SIGMA, SIDE = 0.1, 8
PRIOR, VALUES, VECTORS = stationary_prior(side=SIDE)
IMAGE = torch.randn(1, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
PROBLEM = simulate(Mask((1, SIDE, SIDE), missing=0.5), IMAGE, Gaussian(SIGMA))
SEEN = PROBLEM.A(torch.ones_like(IMAGE)).flatten().numpy()  # the diagonal of AᵀA
Y = PROBLEM.y.flatten().double().numpy()  # what is not seen has noise too
DATA = Y * SEEN


class Draws:
    """The sampler's own random images, one after the other."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = seeded(seed)

    def __call__(self) -> np.ndarray:
        return normal((1, 1, SIDE, SIDE), self.generator).double().numpy().reshape(-1)


def denoiser(t: float) -> tuple[np.ndarray, np.ndarray]:
    """J and b of D(x) = J x + b, for images N(m, S): J = t S / (t² S + (1 - t)²)."""
    S, V = VALUES.numpy(), VECTORS.numpy()
    J = V @ np.diag(t * S / (t**2 * S + (1 - t) ** 2)) @ V.T
    mean = np.full(SIDE**2, float(PRIOR.mean))
    return J, mean - t * J @ mean


def prox(center: np.ndarray, variance: float) -> np.ndarray:
    """argmin ½ |A x - y|² / σ² + |x - center|² / (2 variance), pixel by pixel."""
    return (DATA / SIGMA**2 + center / variance) / (SEEN / SIGMA**2 + 1 / variance)


def unit_variance(t: float) -> float:
    return (1 - t) ** 2 / ((1 - t) ** 2 + t**2)


def tikhonov() -> np.ndarray:
    return prox(np.full(SIDE**2, float(PRIOR.mean)), PRIOR.residual_variance(0.0))


def falling(steps: int, high: float, low: float) -> list[float]:
    return [*(1 / (1 + high * (low / high) ** (np.arange(steps) / (steps - 1)))), 1.0]


def flow_dps(steps: int, interpolate: bool) -> np.ndarray:
    """sd3_sampler.py of the official code: D̃ = σ D_y + (1 - σ) D, Ẽ = √σ' E + √(1 - σ') ε."""
    draw = Draws()
    x = draw()
    for k in range(steps):
        sigma, after = 1 - k / steps, 1 - (k + 1) / steps
        t = 1 - sigma
        J, b = denoiser(t)
        D = J @ x + b
        E = x - t * (D - x) / (1 - t)  # x - t v
        D_y = prox(D, unit_variance(t))
        D_y = sigma * D_y + (1 - sigma) * D if interpolate else D_y
        x = (1 - after) * D_y + after * (np.sqrt(after) * E + np.sqrt(1 - after) * draw())
    return x


def flower(steps: int, sample: bool) -> np.ndarray:
    draw = Draws()
    x = draw()
    for k in range(steps):
        t, u = k / steps, (k + 1) / steps
        J, b = denoiser(t)
        variance = unit_variance(t)
        mean = J @ x + b
        if sample:  # a draw of the posterior, by the prox of perturbed data and a perturbed mean
            perturbed = DATA + SIGMA * draw() * SEEN
            center = mean + variance**0.5 * draw()
            mean = (perturbed / SIGMA**2 + center / variance) / (SEEN / SIGMA**2 + 1 / variance)
        else:
            mean = prox(mean, variance)
        x = u * mean + (1 - u) * draw()
    return x


def pnp_flow(steps: int, draws: int, update: str, decay: float) -> np.ndarray:
    """Algorithm 3: z = x - (1 - t)^α ∇f(x) with |A| = 1, x = mean of D(t z + (1 - t) ε)."""
    draw = Draws()
    x = tikhonov()
    for k in range(steps):
        t = k / steps
        weight = (1 - t) ** decay
        z = x - weight * SEEN * (SEEN * x - DATA) if update == "gradient" else prox(x, weight)
        J, b = denoiser(t)
        x = np.mean([J @ (t * z + (1 - t) * draw()) + b for _ in range(draws)], 0)
    return x


def pi_gfm(steps: int, tau: float, w: float) -> np.ndarray:
    """OT-ODE: x' = x + Δt (v + w (1 - t) / t Jᵀ Aᵀ (r² A Aᵀ + σ²)⁻¹ (y - A D)), r² = 1 - ᾱ."""
    x = tau * tikhonov() + (1 - tau) * Draws()()
    for k in range(steps):
        t = tau + k * (1 - tau) / steps
        J, b = denoiser(t)
        D = J @ x + b
        pull = SEEN * (DATA - SEEN * D) / (unit_variance(t) * SEEN + SIGMA**2)
        x = x + (1 - tau) / steps * ((D - x) / (1 - t) + w * (1 - t) / t * J.T @ pull)
    return x


def ddim(D: np.ndarray, x: np.ndarray, t: float, u: float, eta: float, fresh: np.ndarray) -> np.ndarray:
    """DDIM's next state x' / √(u² + (1 - u)²) on the path of the diffusion, as a state of the flow."""
    bar, bar_next = 1 - unit_variance(t), 1 - unit_variance(u)
    eps = (x - t * D) / (1 - t)
    c1 = eta * np.sqrt((1 - bar / bar_next) * (1 - bar_next) / (1 - bar))
    c2 = np.sqrt(1 - bar_next - c1**2)
    return (np.sqrt(bar_next) * D + c1 * fresh + c2 * eps) * np.hypot(u, 1 - u)


def pi_gdm(steps: int, start: float, w: float, eta: float, low: float) -> np.ndarray:
    """Algorithm 1: DDIM, and w √(ᾱ ᾱ') Jᵀ r² Aᵀ (r² A Aᵀ + σ²)⁻¹ (y - A D) with the diffusion's Jacobian."""
    draw = Draws()
    x = start * tikhonov() + (1 - start) * draw()
    times = falling(steps, (1 - start) / start, low)
    for t, u in pairwise(times):
        J, b = denoiser(t)
        D, r2 = J @ x + b, unit_variance(t)
        pull = r2 * SEEN * (DATA - SEEN * D) / (r2 * SEEN + SIGMA**2)
        bars = np.sqrt((1 - unit_variance(t)) * (1 - unit_variance(u)))
        guidance = w * bars * np.hypot(t, 1 - t) * J.T @ pull  # x_VP = x / √(t² + (1 - t)²)
        x = ddim(D, x, t, u, eta, draw()) + guidance * np.hypot(u, 1 - u)
    return x


def dps(steps: int, zeta: float, eta: float, high: float, low: float) -> np.ndarray:
    """Algorithm 1: DDIM, then minus ζ times the gradient of the residual's norm, with |W½ A| = 1."""
    draw = Draws()
    x = draw()
    times = falling(steps, high, low)
    for t, u in pairwise(times):
        J, b = denoiser(t)
        D = J @ x + b
        misfit = SEEN * D - Y
        gradient = np.hypot(t, 1 - t) * J.T @ (SEEN * misfit) / np.linalg.norm(misfit)
        x = ddim(D, x, t, u, eta, draw()) - zeta * gradient * np.hypot(u, 1 - u)
    return x


CASES = {
    "FlowDPS": (FlowDPS(6), flow_dps(6, False)),
    "FlowDPS, interpolated": (FlowDPS(6, interpolate=True), flow_dps(6, True)),
    "Flower": (Flower(6), flower(6, False)),
    "Flower, γ = 1": (Flower(6, sample=True), flower(6, True)),
    "PnP-Flow, gradient": (
        PnPFlow(6, draws=2, update="gradient", decay=0.3),
        pnp_flow(6, 2, "gradient", 0.3),
    ),
    "PnP-Flow, prox": (PnPFlow(6), pnp_flow(6, 1, "prox", 1.0)),
    "ΠGFM": (PiGFM(6, 0.3, 0.8), pi_gfm(6, 0.3, 0.8)),
    "ΠGDM": (PiGDM(6, 0.3, 0.8, 0.7), pi_gdm(6, 0.3, 0.8, 0.7, 0.02)),
    "DPS": (DPS(6, 0.8, 0.7), dps(6, 0.8, 0.7, 20.0, 0.02)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_sampler_is_the_published_formula(name):
    method, published = CASES[name]
    found = solve(PROBLEM, method, PRIOR).mean.flatten().numpy()
    difference = np.abs(found - published).max()
    print(f"{name:<24} largest difference {difference:.1e}")
    # Float64, and images of a few units; guidance divides by 1 - t, down to 0.02.
    assert difference < 1e-12


def test_interpolation_follows_the_data_first_and_the_prior_last():
    D = torch.zeros(1, SIDE, SIDE, dtype=torch.float64)
    plain, mixed = FlowDPS(), FlowDPS.paper_form()
    pulls = []
    for t in (0.0, 0.5, 0.99):
        full = plain.correct(PROBLEM, PRIOR, D, t, torch.Generator())
        pulls.append(float(mixed.correct(PROBLEM, PRIOR, D, t, torch.Generator()).norm() / full.norm()))
    assert pulls == pytest.approx([1.0, 0.5, 0.01])
