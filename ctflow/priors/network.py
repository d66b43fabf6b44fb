"""Flow priors on disk: weights and manifest in one safetensors file, never a pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ctflow.errors import UnreadableError, UsageError
from ctflow.priors._base import Prior
from ctflow.priors._unet import UNet
from ctflow.priors.gaussian import GaussianPrior
from ctflow.units import MU_WATER

__all__ = ["FlowPrior"]

SCHEMA = 1
_PIXELS_AT_ONCE = 2**20  # one 1024² slice, or sixteen of 256²: bounds the memory of the activations


def precondition(network: UNet, x: Tensor, sigma: Tensor, spacing: Tensor) -> Tensor:
    """Denoise x = u + sigma z with a network that sees unit variance and predicts unit variance.

    D = x / (sigma² + 1) + sigma / √(sigma² + 1) · F(x / √(sigma² + 1), ln sigma / 4, ln spacing).

    Shapes: x (batch, 1, Y, X), sigma (batch,), both in network range; spacing (batch,), mm, NaN if unknown.

    References:
        Karras et al., NeurIPS 2022, table 1, with sigma_data = 1.
    """
    s = sigma[:, None, None, None]
    norm = (s**2 + 1).sqrt()
    inside = (x / norm).contiguous(memory_format=torch.channels_last)
    predicted: Tensor = network(inside, sigma.log() / 4, spacing.log())
    return x / norm**2 + s / norm * predicted.to(x.dtype)


class FlowPrior(Prior):
    """A trained network as flow prior: x_t / t is the image with noise of level (1 - t) / t.

    Shapes: x (*batch, Z, Y, X), network range, any size.

    Args:
        network: denoising network.
        manifest: what the file says of itself: data, HU range, error table, licence.
        mu_water: attenuation of water, 1/mm.
        spacing: pixel spacing of the images to reconstruct, mm; None where it is not known.
    """

    def __init__(
        self,
        network: UNet,
        manifest: dict[str, Any],
        mu_water: float = MU_WATER,
        spacing: float | None = None,
    ) -> None:
        super().__init__(mu_water, manifest["hu_centre"], manifest["hu_width"])
        self.network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.manifest = manifest
        self.name = manifest["name"]
        self.mean = manifest["mean"]
        self.spacing = math.nan if spacing is None else spacing

    def to(self, device: str | torch.device) -> FlowPrior:
        """The same prior with its weights on a device."""
        self.network.to(device)
        return self

    def _denoise(self, x: Tensor, t: float) -> Tensor:
        rows, columns = x.shape[-2:]
        stride = self.network.stride
        padded = functional.pad(
            x.reshape(-1, 1, rows, columns) / t, (0, -columns % stride, 0, -rows % stride), mode="replicate"
        )
        sigma = torch.full((len(padded),), (1 - t) / t, dtype=x.dtype, device=x.device)
        chunk = max(1, _PIXELS_AT_ONCE // (rows * columns))
        parts = [
            precondition(self.network, piece, level, torch.full_like(level, self.spacing))
            for piece, level in zip(torch.split(padded, chunk), torch.split(sigma, chunk), strict=True)
        ]
        return torch.cat(parts)[..., :rows, :columns].reshape(x.shape)

    def residual_variance(self, t: float) -> float:
        """Mean squared error per pixel measured on validation slices, network range: r_t²."""
        sigma, error = zip(*self.manifest["denoiser_error"], strict=True)
        level = max((1 - t) / max(t, 1e-9), 1e-9)
        # Below the table the error falls with the noise; above it, it stays what it is.
        known = math.exp(np.interp(math.log(level), np.log(sigma), np.log(error)))
        return float(known * min(1.0, level / sigma[0])) ** 2

    @classmethod
    def load(cls, name: str | Path, mu_water: float = MU_WATER, spacing: float | None = None) -> Prior:
        """Load a prior by its shipped name or from a file.

        Args:
            name: "ct-256", "ct-gaussian", or the path of a .safetensors file.
            mu_water: attenuation of water, 1/mm, of the images to reconstruct.
            spacing: their pixel spacing, mm; a network prior works better when it is told.

        Returns:
            A `FlowPrior` or a `GaussianPrior`, as the manifest says.

        Raises:
            UsageError: there is no such prior; the shipped names are listed.
            UnreadableError: the file is not a prior, is cut short, or its weights do not match its manifest.
        """
        path = Path(name)
        if not path.is_file():
            path = Path(str(files("ctflow.priors"))) / f"{name}.safetensors"
        if not path.is_file():
            raise UsageError(
                f"there is no prior '{name}'; give a .safetensors file or one of {', '.join(shipped())}"
            )
        tensors, manifest = _read(path)
        prior: Prior
        if manifest["kind"] == "gaussian":
            prior = GaussianPrior(
                tensors["spectrum"], manifest["mean"], mu_water, manifest["hu_centre"], manifest["hu_width"]
            )
            prior.name = manifest["name"]
        else:
            network = UNet(**manifest["network"])
            _fill(network, tensors, path.name)
            prior = cls(network, manifest, mu_water, spacing)
        prior.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return prior

    @classmethod
    def example(cls) -> Prior:
        """The network that ships."""
        return cls.load("ct-256")


def shipped() -> list[str]:
    """Names of the priors that come with ctflow."""
    folder = Path(str(files("ctflow.priors")))
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def save(path: Path, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    """Write a prior: half-precision weights, and the manifest in the header; written beside and renamed.

    Args:
        path: .safetensors file.
        tensors: weights, or the Gaussian prior's spectrum (n,), by name.
        manifest: kind, name, hu_centre, hu_width, mean and what else describes the prior.
    """
    half = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in tensors.items()}
    if manifest["kind"] == "gaussian":
        half = {key: value.detach().float().contiguous() for key, value in tensors.items()}
    text = json.dumps({**manifest, "schema": SCHEMA, "weights_sha256": _hash(half)})
    partial = path.with_suffix(".partial")
    save_file(half, partial, {"manifest": text})
    os.replace(partial, path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("manifest")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise UnreadableError(
            f"prior '{path.name}' is not a whole safetensors file ({error}); fetch or train it again"
        ) from error
    if text is None:
        raise UnreadableError(
            f"prior '{path.name}' has no ctflow manifest in its header; train one with ctflow train"
        )
    manifest: dict[str, Any] = json.loads(text)
    if manifest["weights_sha256"] != _hash(tensors):
        raise UnreadableError(
            f"the weights of prior '{path.name}' do not match their hash in its manifest; "
            "fetch or train it again"
        )
    return tensors, manifest


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode() + str(tuple(tensors[key].shape)).encode() + tensors[key].numpy().tobytes())
    return digest.hexdigest()


def _fill(network: UNet, tensors: dict[str, Tensor], name: str) -> None:
    own = network.state_dict()
    for key in own.keys() | tensors.keys():
        here, there = (tuple(state[key].shape) if key in state else None for state in (own, tensors))
        if here != there:
            raise UnreadableError(
                f"prior '{name}': '{key}' is {there} in the file and {here} in the network that its manifest "
                "describes; it belongs to another architecture, train or fetch it again"
            )
    network.load_state_dict({key: value.float() for key, value in tensors.items()})
