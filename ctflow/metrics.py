"""Error of an image against its reference, in HU, with window, range and mask of every number stated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity
from torch import Tensor

from ctflow.errors import GeometryError, UsageError
from ctflow.solving import Solution
from ctflow.tables import JSON
from ctflow.units import AIR_HU, SOFT_TISSUE_HU, attenuation_to_hu
from ctflow.volume import Volume

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_WINDOWS = ((-1000.0, 1000.0), SOFT_TISSUE_HU)  # HU
_BODY_HU = -500.0  # half-way between air and tissue
_SSIM_PIXELS = 11  # width of the Gaussian window of Wang et al.

HU_CLASSES = {
    "air_lung": (-np.inf, -190.0),
    "fat": (-190.0, -30.0),
    "soft_tissue": (-30.0, 150.0),
    "bone": (150.0, np.inf),
}
"""Lower and upper CT number of each class, HU, the lower one included; contrast medium counts as bone."""

CONVENTIONS: dict[str, JSON] = {
    "regions": {
        "fov": "voxels the scanner reconstructed, inside the largest centred disc of the slice",
        "body": "largest connected part of the reference above -500 HU, without the table, holes filled",
    },
    "rmse_hu": {"unit": "HU", "window": None},
    "bias_hu": {"unit": "HU", "window": None, "value": "mean of image minus reference"},
    "psnr": {"unit": "dB", "window_hu": [-1000, 1000], "data_range_hu": 2000, "clipped": True},
    "psnr_soft_tissue": {"unit": "dB", "window_hu": [-160, 240], "data_range_hu": 400, "clipped": True},
    "ssim": {
        "window_hu": [-1000, 1000],
        "data_range_hu": 2000,
        "clipped": True,
        "weights": "Gaussian, sigma 1.5 pixels, 11 × 11 (Wang et al. 2004), K1 0.01, K2 0.03",
        "mean": "of the SSIM map of every slice over the region; both images are air outside fov",
    },
    "ssim_soft_tissue": {"like": "ssim", "window_hu": [-160, 240], "data_range_hu": 400},
    "classes": {
        "voxels": "of the body, by the reference's HU; a class without voxels is left out",
        "limits_hu": "air, lung below -190, fat to -30, soft tissue to 150, bone and contrast medium above",
    },
    "headline": {"rmse_hu": "body", "psnr": "fov", "ssim": "fov"},
}
"""Definition of every number; written beside the numbers in reports."""


class Errors(TypedDict):
    """Root mean square and mean of image minus reference, HU."""

    rmse_hu: float
    bias_hu: float


class RegionMetrics(Errors):
    """Metrics of one region; PSNR in dB, infinite where the images agree."""

    psnr: float
    ssim: float
    psnr_soft_tissue: float
    ssim_soft_tissue: float


class Metrics(TypedDict):
    """What `evaluate` finds: the headline, both regions, and every class of `HU_CLASSES` that occurs."""

    rmse_hu: float
    psnr: float
    ssim: float
    fov: RegionMetrics
    body: RegionMetrics
    classes: dict[str, Errors]


class Row(Metrics):
    """Metrics of a solution and what it cost; see `Solution.stats`."""

    residual: float
    seconds: float
    network: float
    forward: float
    adjoint: float
    backward: float
    network_seconds: float
    operator_seconds: float


def evaluate(
    image_hu: Tensor | Floats,
    reference_hu: Tensor | Floats,
    mask_fov: Tensor | Bools,
    mask_body: Tensor | Bools,
) -> Metrics:
    """Error of an image against its reference, by the conventions in `CONVENTIONS`.

    Args:
        image_hu: (Z, Y, X), HU.
        reference_hu: (Z, Y, X), HU.
        mask_fov: (Z, Y, X), True where the scanner reconstructed something.
        mask_body: (Z, Y, X), True inside the patient; counted inside the field of view only.

    Returns:
        "fov" and "body", each with rmse_hu, bias_hu, psnr, ssim, psnr_soft_tissue and ssim_soft_tissue (psnr
        in dB, infinite where the images agree); "classes", where every class of `HU_CLASSES` that occurs in
        the body has rmse_hu and bias_hu; and the headline: rmse_hu of the body, psnr and ssim of fov.

    Raises:
        GeometryError: the shapes differ, a mask is empty, or the slices are smaller than the SSIM window.

    References:
        Wang et al., IEEE Trans. Image Process. 13 (2004) (SSIM).
    """
    image, reference = _floats(image_hu), _floats(reference_hu)
    regions = {"fov": _bools(mask_fov), "body": _bools(mask_body) & _bools(mask_fov)}
    _check(image, reference, regions)
    # The SSIM window reaches over the edge of the field of view, where nothing was measured.
    image, reference = (np.where(regions["fov"], x, AIR_HU) for x in (image, reference))
    similar = [_ssim_map(image.clip(*ends), reference.clip(*ends), ends[1] - ends[0]) for ends in _WINDOWS]
    fov, body = (_of_region(image, reference, similar, mask) for mask in regions.values())
    inside = {name: mask & regions["body"] for name, mask in hu_classes(reference).items()}
    classes = {name: _errors(image, reference, mask) for name, mask in inside.items() if mask.any()}
    return {
        "rmse_hu": body["rmse_hu"],
        "psnr": fov["psnr"],
        "ssim": fov["ssim"],
        "fov": fov,
        "body": body,
        "classes": classes,
    }


def hu_classes(hu: Tensor | Floats) -> dict[str, Bools]:
    """Voxels of every class of `HU_CLASSES`.

    Args:
        hu: (Z, Y, X), HU.
    """
    values = _floats(hu)
    return {name: (values >= low) & (values < high) for name, (low, high) in HU_CLASSES.items()}


def _floats(x: Tensor | Floats) -> Floats:
    return np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64)


def _bools(x: Tensor | Bools) -> Bools:
    return np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.bool_)


def _check(image: Floats, reference: Floats, regions: dict[str, Bools]) -> None:
    shapes = [image.shape, reference.shape, *(mask.shape for mask in regions.values())]
    if len(set(shapes)) > 1 or image.ndim != 3:
        raise GeometryError(
            f"image, reference and masks must be one shape (Z, Y, X) and are {shapes}; reshape them"
        )
    if min(image.shape[1:]) < _SSIM_PIXELS:
        raise GeometryError(
            f"slices of {image.shape[1:]} pixels are too small for SSIM; give 11 × 11 or more"
        )
    for name, mask in regions.items():
        if not mask.any():
            raise GeometryError(
                f"the {name} mask is empty; check that the reference is in HU and that the masks belong to it"
            )


def _errors(image: Floats, reference: Floats, mask: Bools) -> Errors:
    error = image[mask] - reference[mask]
    return {"rmse_hu": float(np.sqrt(np.mean(error**2))), "bias_hu": float(error.mean())}


def _of_region(image: Floats, reference: Floats, similar: list[Floats], mask: Bools) -> RegionMetrics:
    x, truth = image[mask], reference[mask]
    whole, soft = (_psnr(x.clip(*ends) - truth.clip(*ends), ends[1] - ends[0]) for ends in _WINDOWS)
    ssim_whole, ssim_soft = (float(values[mask].mean()) for values in similar)
    return {
        **_errors(image, reference, mask),
        "psnr": whole,
        "ssim": ssim_whole,
        "psnr_soft_tissue": soft,
        "ssim_soft_tissue": ssim_soft,
    }


def _psnr(error: Floats, data_range: float) -> float:
    square = float(np.mean(error**2))
    return float(10 * np.log10(data_range**2 / square)) if square else float("inf")


def _ssim_map(image: Floats, reference: Floats, data_range: float) -> Floats:
    maps = [
        structural_similarity(  # type: ignore[no-untyped-call]
            x,
            y,
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )[1]
        for x, y in zip(image, reference, strict=True)
    ]
    return np.stack(maps)


def fov_mask(volume: Volume) -> Bools:
    """Field-of-view mask of a volume, (Z, Y, X): its mask inside the largest centred disc (mm)."""
    _, dy, dx = volume.geometry.spacing
    y, x = (np.arange(n) - (n - 1) / 2 for n in volume.geometry.shape[1:])
    inside = np.hypot(y[:, None] * dy, x * dx) <= volume.geometry.fov / 2
    measured: Bools = _bools(volume.mask) & inside
    return measured


def body_mask(reference_hu: Tensor | Floats, fov_mask: Tensor | Bools) -> Bools:
    """Mask of the patient without the table: largest connected part above -500 HU, holes filled.

    Sheets thinner than five pixels, such as table tops, are removed by an opening first.

    Args:
        reference_hu: (Z, Y, X), HU.
        fov_mask: (Z, Y, X), True where the scanner reconstructed something.

    Returns:
        (Z, Y, X); empty where nothing is denser than -500 HU.
    """
    dense = (_floats(reference_hu) > _BODY_HU) & _bools(fov_mask)
    diamond = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), 2)[None]
    parts, number = ndimage.label(ndimage.binary_opening(dense, diamond))
    if not number:
        return np.zeros_like(dense)
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return np.stack([ndimage.binary_fill_holes(plane) for plane in largest])


@dataclass(frozen=True)
class Comparison:
    """Methods side by side against one reference; prints itself as a table.

    Args:
        rows: metrics of every method (see `evaluate`), with residual, seconds and network calls.
    """

    rows: dict[str, Row]

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        width = max(6, *map(len, self.rows))
        head = f"{'method':{width}}  RMSE [HU]  PSNR [dB]   SSIM  residual  seconds  network calls"
        lines = [
            f"{name:{width}}  {row['rmse_hu']:9.1f}  {row['psnr']:9.2f}  {row['ssim']:.3f}  "
            f"{row['residual']:8.3g}  {row['seconds']:7.1f}  {row['network']:13.0f}"
            for name, row in self.rows.items()
        ]
        note = (
            "RMSE inside the body; PSNR and SSIM (Gaussian 1.5) inside the field of view, clipped to "
            "[-1000, 1000] HU, range 2000 HU; residual per datum, 1 = fitted to the noise."
        )
        return "\n".join([head, *lines, note])


def compare(solutions: Mapping[str, Solution], reference: Volume) -> Comparison:
    """Compare solutions with the truth.

    Args:
        solutions: solution of each method by name, in 1/mm; the mean over its samples is compared.
        reference: the truth, in HU or 1/mm.

    Returns:
        A table that prints itself.

    Raises:
        UsageError: one is no solution.
        GeometryError: a solution does not have the reference's number of voxels.

    Examples:
        >>> import ctflow as ct
        >>> from ctflow.datasets.phantoms import disc
        >>> grid = ct.VolumeGeometry((1, 64, 64), (3.0, 3.0, 3.0))  # (Z, Y, X), mm
        >>> truth = disc(radius=60.0).rasterise(grid)  # of water, 0.0192 / mm
        >>> problem = ct.simulate(ct.Radon(grid, ct.ParallelBeam(angles=30)), truth, ct.Poisson(photons=1e5))
        >>> print(ct.compare({"FBP": ct.solve(problem, ct.FBP())}, reference=truth))  # doctest: +ELLIPSIS
        method  RMSE [HU]  PSNR [dB]   SSIM  residual  seconds  network calls
        FBP    ...
    """
    truth = reference.to_hu().data
    fov = fov_mask(reference)
    body = body_mask(truth, fov)
    rows = {}
    for name, solution in solutions.items():
        if not hasattr(solution, "stats"):
            raise UsageError(f"'{name}' is {type(solution).__name__}; give what solve returns")
        image = attenuation_to_hu(_as_volume(name, solution, reference), reference.mu_water)
        rows[name] = as_row(evaluate(image, truth, fov, body), solution.stats)
    return Comparison(rows)


def as_row(errors: Metrics, stats: Mapping[str, float]) -> Row:
    """What `evaluate` found, and `Solution.stats`."""
    return cast(Row, {**errors, **stats})  # keys of `solve`


def _as_volume(name: str, solution: Solution, reference: Volume) -> Tensor:
    mean = solution.mean
    if mean.numel() != reference.data.numel():
        raise GeometryError(
            f"'{name}' has shape {tuple(mean.shape)} and the reference {tuple(reference.data.shape)}; "
            "compare with the slices that were reconstructed"
        )
    return mean.reshape(reference.data.shape)
