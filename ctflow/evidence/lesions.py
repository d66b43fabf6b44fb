"""Insertion and removal of lesions: whether a method shows what is there, and only that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import mannwhitneyu

from ctflow.errors import GeometryError
from ctflow.evidence.detectability import npw
from ctflow.evidence.discs import FINE, distance
from ctflow.metrics import body_mask, fov_mask, hu_classes
from ctflow.noise import Noise
from ctflow.operators import LinearOperator
from ctflow.priors import Prior
from ctflow.problem import InverseProblem, simulate
from ctflow.solving import Method, solve
from ctflow.system.devices import available_device
from ctflow.units import hu_to_attenuation
from ctflow.volume import Volume

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LesionRow:
    """Results for one diameter and contrast.

    Args:
        diameter_mm: diameter of the disc.
        contrast_hu: contrast that it adds to the truth, HU.
        recovery: reconstructed contrast with the lesion minus without it, in % of the true one; 100 is ideal.
        recovery_sd: standard deviation of the recovery over the places, %.
        false_signal_hu: contrast at the place of the lesion where there is none, HU: mean error of the twins.
        false_rate: share of the twins that show more than half the contrast with its sign.
        detectability: d' of the non-prewhitening observer between images with and without the lesion.
        auc: probability that an image with the lesion scores above one without.
    """

    diameter_mm: float
    contrast_hu: float
    recovery: float
    recovery_sd: float
    false_signal_hu: float
    false_rate: float
    detectability: float
    auc: float


def lesion_test(
    truth: Volume,
    A: LinearOperator,
    noise: Noise,
    method: Method,
    prior: Prior | None = None,
    *,
    diameters_mm: Sequence[float] = (6.0, 12.0),
    contrasts_hu: Sequence[float] = (-50.0, 20.0, 50.0),
    places: int = 8,
    seed: int = 0,
    device: str = "cpu",
) -> list[LesionRow]:
    """Insert discs into soft tissue of a slice and reconstruct it with and without them, in equal noise.

    Every place has a twin: the same slice without the lesion, with the same noise. The difference of the two
    reconstructions is the lesion (recovery); whatever a twin shows there beyond the truth is false structure.
    The same pair tests the removal of a lesion that is present.

    Args:
        truth: one slice, HU or 1/mm.
        A: operator of one slice.
        noise: noise model.
        method: reconstruction method.
        prior: flow prior, for methods that need one.
        diameters_mm: diameters of the lesions, mm.
        contrasts_hu: contrasts of the lesions, HU.
        places: number of random centres; one pair is reconstructed for each, every diameter and contrast.
        seed: seed of places, noise and method.
        device: where the prior is, "cpu" or "cuda".

    Returns:
        A row for every diameter and contrast.

    Raises:
        GeometryError: the truth is more than a slice, or the largest lesion and its surround fit nowhere.
        BackendError: the device is not on this machine.
    """
    hu = truth.to_hu()
    if hu.geometry.shape[0] != 1:
        raise GeometryError(f"lesions are tested in one slice and there are {hu.geometry.shape[0]}; take one")
    centres = _centres(hu, max(diameters_mm), places, seed)

    plain = hu.data.to(available_device(device)).expand(places, *hu.geometry.shape)
    empty = hu_to_attenuation(plain.clamp_min(-1000), hu.mu_water)
    # The same seed does not give the same counts: drawn by rejection, they diverge at the first ray that
    # differs.
    scatter = simulate(A, empty, noise, seed).y - A(empty)

    def found(added: Floats) -> Floats:
        lesions = torch.from_numpy(added[:, None]).to(plain)
        mu = hu_to_attenuation((plain + lesions).clamp_min(-1000), hu.mu_water)
        problem = InverseProblem(A, A(mu) + scatter, noise)
        x = solve(problem, method, prior, seed=seed).mean.cpu().double().numpy()[:, 0]
        return np.asarray(1000 * (x / hu.mu_water - 1))

    twins = found(np.zeros((places, *hu.geometry.shape[1:])))
    rows = []
    for diameter in diameters_mm:
        discs = np.stack([_disc(hu, centre, diameter) for centre in centres])
        for contrast in contrasts_hu:
            images = found(contrast * discs)
            rows.append(_row(images, twins, hu, discs, centres, diameter, contrast))
    return rows


def _row(
    images: Floats,
    twins: Floats,
    hu: Volume,
    discs: Floats,
    centres: Floats,
    diameter: float,
    contrast: float,
) -> LesionRow:
    templates = np.stack([_template(hu, c, d, diameter) for c, d in zip(centres, discs, strict=True)])
    truth = hu.data.double().numpy()

    def signal(x: Floats) -> Floats:
        """Mean inside the disc minus mean of the ring around it, for every place, HU."""
        return np.asarray((x * templates).sum((1, 2)))

    recovery = 100 * signal(images - twins) / signal(contrast * discs)
    false = signal(twins - truth)
    sign = np.sign(contrast)
    one = np.ones((1, 1))  # the observer's outputs, as images of one pixel
    present, absent = (sign * signal(x - truth)[:, None, None] for x in (images, twins))
    wins = mannwhitneyu(present.ravel(), absent.ravel()).statistic / len(images) ** 2
    return LesionRow(
        diameter,
        contrast,
        float(recovery.mean()),
        float(recovery.std(ddof=1)),
        float(false.mean()),
        float((sign * false > abs(contrast) / 2).mean()),
        npw(one, present, absent),
        float(wins),
    )


def _disc(hu: Volume, centre: Floats, diameter: float) -> Floats:
    """Fraction of every pixel that the disc covers, (Y, X)."""
    inside = distance(hu.geometry, centre, FINE) <= diameter / 2
    rows, columns = hu.geometry.shape[1:]
    return np.asarray(inside.reshape(rows, FINE, columns, FINE).mean((1, 3)))


def _template(hu: Volume, centre: Floats, disc: Floats, diameter: float) -> Floats:
    r = distance(hu.geometry, centre)
    ring = (r > diameter / 2 + hu.geometry.spacing[2]) & (r <= _reach(hu, diameter))
    return np.asarray(disc / disc.sum() - ring / ring.sum())


def _reach(hu: Volume, diameter: float) -> float:
    """Outer radius of the comparison ring, mm: of the lesion's area, at least two pixels wide."""
    return max(diameter / 2**0.5, diameter / 2 + 3 * hu.geometry.spacing[2])


def _centres(hu: Volume, diameter: float, places: int, seed: int) -> Floats:
    """Draw pixels at random whose whole surroundings are soft tissue of the body."""
    fov = fov_mask(hu)
    tissue = hu_classes(hu.data)["soft_tissue"] & body_mask(hu.data, fov)
    # Single voxels of noise leave the class and are no structure.
    closed = ndimage.median_filter(tissue[0].astype(np.uint8), 3) > 0
    distance = ndimage.distance_transform_edt(closed, hu.geometry.spacing[1:])
    room = np.argwhere(distance > _reach(hu, diameter))
    if len(room) < places:
        raise GeometryError(
            f"lesions of {diameter:g} mm fit at {len(room)} places in soft tissue and {places} are needed; "
            "take a smaller lesion or another slice"
        )
    chosen = np.random.default_rng(seed).choice(len(room), places, replace=False)
    return np.asarray(room[chosen], np.float64)


def lesion_table(rows: Sequence[LesionRow]) -> str:
    """Format the rows as text."""
    head = "diameter [mm]  contrast [HU]  recovery [%]  false [HU]  false rate     d'    AUC"
    lines = [
        f"{row.diameter_mm:13.1f}  {row.contrast_hu:+13.0f}  {row.recovery:6.1f} ± {row.recovery_sd:3.0f}  "
        f"{row.false_signal_hu:+10.1f}  {row.false_rate:10.2f}  {row.detectability:5.2f}  {row.auc:5.2f}"
        for row in rows
    ]
    return "\n".join([head, *lines])
