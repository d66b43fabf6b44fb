"""Flow priors on disk: weights and manifest in one safetensors file, never in a pickle."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialised
from torch import Tensor, nn
from torch.nn import functional

from ctflow.errors import OutputError, ProtocolError, UnreadableError, UsageError, suggestion
from ctflow.priors._base import PIXELS_AT_ONCE, Prior, error_at
from ctflow.priors._diffusers import load_folder
from ctflow.priors._files import check_sha256, load_state, load_weights, read_tensors
from ctflow.priors._manifest import SHIPPED, manifest_text, read_manifest, trusted_manifest
from ctflow.priors._unet import UNet, build_unet
from ctflow.priors._winograd import memory_format
from ctflow.priors.gaussian import GaussianPrior
from ctflow.system.counters import clock, count
from ctflow.system.devices import available_device
from ctflow.system.files import whole_file
from ctflow.units import MU_WATER

__all__ = ["FlowPrior"]

_CACHED_PIXELS = 2**16  # per call: a CPU takes longer over images of more, and no longer over fewer


def precondition(network: UNet, x: Tensor, sigma: Tensor, spacing: Tensor) -> Tensor:
    """Denoise x = u + sigma z with a network that sees unit variance and predicts unit variance.

    D = x / (sigma² + 1) + sigma / √(sigma² + 1) · F(x / √(sigma² + 1), ln sigma / 4, ln spacing).

    Shapes: x (batch, 1, Y, X), sigma (batch,), both in network range; spacing (batch,), mm, NaN if unknown.

    References:
        Karras et al., NeurIPS 2022, table 1, with sigma_data = 1.
    """
    s = sigma[:, None, None, None]
    norm = (s**2 + 1).sqrt()
    inside = (x / norm).contiguous(memory_format=memory_format(x.device))
    # A network computes in the type of its weights, whatever that of the images is.
    weights = next(network.parameters())
    predicted: Tensor = network(
        *(part.to(weights.dtype) for part in (inside, sigma.log() / 4, spacing.log()))
    )
    return x / norm**2 + s / norm * predicted.to(x.dtype)


def _in_one_call(x: Tensor) -> int:
    """Number of slices of these (*batch, Y, X) in one call of the network."""
    most = _CACHED_PIXELS if x.device.type == "cpu" else PIXELS_AT_ONCE
    return max(1, most // x.shape[-2:].numel())


class FlowPrior(Prior):
    """A trained network as flow prior: x_t / t is the image with noise of level (1 - t) / t.

    Shapes: x (*batch, Z, Y, X), network range, any size.

    Args:
        network: denoising network.
        manifest: manifest of the file: data, HU range, error table, licence.
        mu_water: attenuation of water, 1/mm.
        spacing: pixel spacing of the images to reconstruct, mm; None where it is not known.

    Examples:
        >>> import torch
        >>> import ctflow as ct
        >>> prior = ct.FlowPrior.load("ct-256", spacing=1.5)  # pixels of 1.5 mm
        >>> prior
        <FlowPrior 'ct-256', -1000 to 1500 HU, pixels of 0.439167 to 2.57808 mm>
        >>> noise = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> bool(prior.denoise(0.9 * 0.6 + 0.1 * noise, t=0.9).std() < 0.05)  # of soft tissue, u = 0.6: 0 HU
        True
    """

    def __init__(
        self,
        network: UNet,
        manifest: dict[str, Any],
        mu_water: float = MU_WATER,
        spacing: float | None = None,
    ) -> None:
        super().__init__(mu_water, manifest["hu_centre"], manifest["hu_width"])
        self.network = network.eval().requires_grad_(False)
        order = memory_format(next(network.parameters()).device)
        self.network.to(memory_format=order)  # type: ignore[call-overload]
        self.manifest = manifest
        self.name = manifest["name"]
        self.mean = manifest["mean"]
        self.spacings_mm, self.hu_range = manifest.get("spacings_mm"), manifest.get("hu_range")
        self.spacing = math.nan if spacing is None else spacing
        # A Gaussian of the training images' power, whose errors have the shape of the network's.
        spectrum = manifest.get("spectrum")
        self._images = None if spectrum is None else GaussianPrior(torch.tensor(spectrum), manifest["mean"])

    def to(self, device: str | torch.device) -> FlowPrior:
        """Move the weights to a device."""
        self.network.to(available_device(device))
        return self

    def _denoise(self, x: Tensor, t: float) -> Tensor:
        return self._denoise_each(x[None], [t])[0]

    def _denoise_each(self, x: Tensor, times: list[float]) -> Tensor:
        rows, columns = x.shape[-2:]
        stride = self.network.stride
        levels = torch.tensor(times, dtype=x.dtype, device=x.device)
        scaled = (x.flatten(1, -3) / levels[:, None, None, None]).reshape(-1, 1, rows, columns)
        padded = functional.pad(scaled, (0, -columns % stride, 0, -rows % stride), mode="replicate")
        sigma = ((1 - levels) / levels).repeat_interleave(len(padded) // len(times))
        chunk = _in_one_call(x)
        parts = [
            precondition(self.network, piece, level, torch.full_like(level, self.spacing))
            for piece, level in zip(torch.split(padded, chunk), torch.split(sigma, chunk), strict=True)
        ]
        return torch.cat(parts)[..., :rows, :columns].reshape(x.shape)

    def denoise_vjp(
        self, x: Tensor, t: float, cotangent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """As of every prior; more slices than one call holds are pulled back in portions.

        Each portion is denoised again, at the price of one more evaluation, so that the memory of one is
        enough for a volume.

        Returns:
            D and (dD/dx)ᵀ cotangent(D), both shaped like x.
        """
        rows, columns = x.shape[-2:]
        if x.numel() <= max(PIXELS_AT_ONCE, rows * columns):
            return super().denoise_vjp(x, t, cotangent)
        denoised = self.denoise(x, t)
        pull = cotangent(denoised)
        count("network")
        count("backward")
        with clock("network"), torch.enable_grad():
            flat = (values.reshape(-1, 1, rows, columns) for values in (x.detach(), pull))
            slices = (torch.split(values, _in_one_call(x)) for values in flat)
            pulled = [
                torch.autograd.grad(self._denoise(part.requires_grad_(), t), part, force)[0]
                for part, force in zip(*slices, strict=True)
            ]
        return denoised, torch.cat(pulled).reshape(x.shape)

    def coarsened(self, factor: int) -> FlowPrior:
        """The prior of the same images in pixels of `factor` times the side, with the same weights."""
        prior = copy.copy(self)
        prior.spacing = factor * self.spacing
        return prior

    def residual_variance(self, t: float) -> float:
        """Mean squared error per pixel measured on validation slices, network range: r_t²."""
        return error_at(self.manifest["denoiser_error"], (1 - t) / max(t, 1e-9)) ** 2

    def error_spectrum(self, t: float, rows: int, columns: int) -> Tensor:
        """That of Wiener's filter for the training images' power spectrum, white where it is not known."""
        if self._images is None:
            return super().error_spectrum(t, rows, columns)
        return self._images.error_spectrum(t, rows, columns)

    @classmethod
    def load(
        cls,
        name: str | Path,
        mu_water: float = MU_WATER,
        spacing: float | None = None,
        *,
        network: nn.Module | None = None,
        sha256: str | None = None,
        **declared: Any,
    ) -> Prior:
        """Load a prior by its shipped name, from a file, or from a folder of diffusers.

        What the checkpoint of another toolkit does not state is declared, here or in a side-car:
        `x.prior.toml` beside `x.safetensors`, `prior.toml` in a folder. Nothing is guessed, and pickles are
        not opened.

        Args:
            name: "ct-256", "ct-gaussian", the path of a .safetensors file, or a folder of diffusers.
            mu_water: attenuation of water, 1/mm, of the images to reconstruct.
            spacing: their pixel spacing, mm; a network prior works better when it is told.
            network: the built network, where the file is a state dict of another toolkit.
            sha256: expected SHA-256 of the file, or of the folder's weights.
            declared: further arguments of `ForeignPrior` or `LatentPrior`: convention, hu_centre, hu_width,
                ...

        Returns:
            A `FlowPrior` or `GaussianPrior`, as the manifest says; otherwise a `ForeignPrior` or
            `LatentPrior`.

        Raises:
            UsageError: there is no such prior, it is a pickle, or a declaration is missing or unknown.
            UnreadableError: the file is not a prior, is truncated, or its weights do not match its manifest,
                its hash or its network.
            BackendError: diffusers is needed and not installed.

        Warns:
            PriorWarning: the spacing is far from that of the training images.
        """
        path = _located(name)
        if path.is_dir():
            prior = load_folder(path, mu_water, sha256, declared)
        else:
            tensors, text = read_tensors(path)
            if text is None:
                prior = load_state(path, tensors, network, mu_water, sha256, declared)
            elif network is not None or declared:
                raise UsageError(
                    f"prior '{path.name}' is described by its manifest; give it no network and no "
                    f"{', '.join(declared) or 'other declaration'}"
                )
            else:
                prior = cls._own(path.name, tensors, read_manifest(text, tensors, path), mu_water, spacing)
                prior.sha256 = check_sha256(path, sha256)
        for mismatch in prior.mismatches(spacing):
            warnings.warn(mismatch, PriorWarning, stacklevel=2)
        return prior

    @classmethod
    def _own(
        cls,
        name: str,
        tensors: dict[str, Tensor],
        manifest: dict[str, Any],
        mu_water: float,
        spacing: float | None,
    ) -> Prior:
        if manifest["kind"] == "gaussian":
            spectrum = _spectrum(tensors, name)
            prior = GaussianPrior(
                spectrum, manifest["mean"], mu_water, manifest["hu_centre"], manifest["hu_width"]
            )
            prior.name = manifest["name"]
            return prior
        try:
            network = build_unet(manifest["network"])
        except ProtocolError as error:
            raise UnreadableError(
                f"prior '{name}' describes a network that this version does not know ({error}); "
                "it belongs to another architecture, train or fetch it again"
            ) from error
        load_weights(network.float(), tensors, name)
        return cls(network, manifest, mu_water, spacing)

    @classmethod
    def example(cls) -> Prior:
        """The network that ships."""
        return cls.load("ct-256")


class PriorWarning(UserWarning):
    """The images to reconstruct differ from those that the prior was trained on."""


def _located(name: str | Path) -> Path:
    path = Path(name)
    if path.is_dir() or path.is_file():
        return path
    path = Path(str(files("ctflow.priors"))) / f"{name}.safetensors"
    if str(name) not in SHIPPED or not path.is_file():
        raise UsageError(
            f"there is no prior '{name}' ({suggestion(str(name), SHIPPED)}); give one that ships with "
            "ctflow, a .safetensors file or a folder of diffusers"
        )
    return path


def shipped_priors() -> list[str]:
    """Names of the priors that ship with ctflow."""
    return sorted(SHIPPED)


def _spectrum(tensors: dict[str, Tensor], name: str) -> Tensor:
    found = tensors.get("spectrum")
    if found is None or len(tensors) > 1 or found.ndim != 1 or len(found) < 2 or not bool((found > 0).all()):
        raise UnreadableError(
            f"prior '{name}' is Gaussian and must hold 'spectrum' alone, two or more powers above 0; "
            "fetch or train it again"
        )
    return found


def save(path: Path, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    """Write a prior with half-precision weights and its manifest in the header; an earlier one is replaced.

    Args:
        path: .safetensors file.
        tensors: weights, or the Gaussian prior's spectrum (n,), by name.
        manifest: kind, name, hu_centre, hu_width, mean and further entries that describe the prior.
    """
    half = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in tensors.items()}
    if manifest["kind"] == "gaussian":
        half = {key: value.detach().float().contiguous() for key, value in tensors.items()}
    with whole_file(path, Path.is_file, wait=True) as new:
        new.write_bytes(serialised(half, {"manifest": manifest_text(manifest, half)}))


def rehash(old: Path, new: Path) -> None:
    """Write a prior again, with a new hash over manifest and weights; the weights do not change.

    Args:
        old: .safetensors file of an earlier version, or with a shipped name, which the user trusts.
        new: file to write; if the old name is a shipped one, the prior is named after this file.

    Raises:
        OutputError: the new file exists.
        UnreadableError: the old one is damaged, has no manifest, or its manifest is impossible.
    """
    tensors, text = read_tensors(old)
    if text is None:
        raise UnreadableError(
            f"'{old.name}' has no ctflow manifest, so there is nothing to hash; load it "
            "with its network and convention"
        )
    if new.exists():
        raise OutputError(f"'{new.name}' exists; name another file")
    save(new, tensors, trusted_manifest(text, tensors, old, new))
