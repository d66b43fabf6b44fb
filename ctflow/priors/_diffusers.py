"""Load folders of diffusers: a UNet2DModel with its scheduler, and an AutoencoderKL for latents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import nn

from ctflow.errors import UnreadableError, UsageError
from ctflow.priors._base import Prior
from ctflow.priors._conventions import Convention, diffusion, flow
from ctflow.priors._files import (
    SIDE_CAR,
    call_declared,
    check_sha256,
    declarations,
    declared_hash,
    load_weights,
    read_tensors,
    refuse_pickle,
)
from ctflow.priors.foreign import ForeignPrior
from ctflow.priors.latent import LatentPrior
from ctflow.system.optional import optional_library
from ctflow.tables import Either, Listed, Nothing, Table, Whole, require_kind

_FLOW = "FlowMatchEulerDiscreteScheduler"
_DIFFUSION = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
_PREDICTIONS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}
# Entries that determine the size of the network; the others are bounded like those of any file.
_WIDTH, _LAYERS = Whole(1, 16_384), Whole(1, 64)
_CONFIG = Table(
    closed=False,
    others={
        "layers_per_block": Either((_LAYERS, Listed(_LAYERS, 1, 16))),
        "block_out_channels": Listed(_WIDTH, 1, 16),
        "in_channels": _WIDTH,
        "out_channels": _WIDTH,
        "latent_channels": _WIDTH,
        "norm_num_groups": Either((_WIDTH, Nothing())),
        "num_train_timesteps": Either((Whole(1, 100_000), Nothing())),
        "transformer_layers_per_block": Either((_LAYERS, Listed(_LAYERS, 1, 16))),
    },
)
_MOST_WEIGHTS = 2**33
# Names of the attention layers before diffusers 0.15.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_folder(folder: Path, mu_water: float, sha256: str | None, declared: dict[str, Any]) -> Prior:
    """Load the folder of a pipeline, `unet`, `scheduler` and perhaps `vae`, or one with both configurations.

    The network is given continuous times, which sinusoidal embeddings accept. With an integer schedule they
    are interpolated between the trained ones; declare `convention` if that is not wanted.

    Raises:
        UsageError: no such folder, another kind of network or scheduler, or a missing declaration.
        UnreadableError: a file is damaged, or the weights do not fit.
        BackendError: diffusers is not installed.
    """
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    config, what = _config(unet / "config.json", "UNet2DModel"), f"folder '{folder.name}'"
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise UsageError(f"{what} asks for a class with every image; a prior must be unconditional")
    vae = next((part for part in (folder / "vae", folder / "vqvae") if part.is_dir()), None)
    coder = config if vae is None else _config(vae / "config.json", "AutoencoderKL")
    if coder["in_channels"] != 1:
        raise UsageError(
            f"the network of {what} takes images of {coder['in_channels']} channels; CT has one, and a grey "
            "image copied into three is not one that it was trained on, so its output is not an expectation"
        )
    given = {"name": folder.name} | declarations(folder / SIDE_CAR, declared)
    expected = sha256 or given.get("sha256")
    given.pop("sha256", None)
    scheduler = {} if "convention" in given else _scheduler(folder)
    if scheduler:
        given["convention"] = _convention(scheduler, config)
    said = {"unet": config, "vae": coder, "scheduler": scheduler, **given}
    given["network"], digest = _module("UNet2DModel", unet, config, expected)
    digests = [digest]
    given["mu_water"] = mu_water
    prior: Prior
    if vae is None:
        prior = call_declared(
            ForeignPrior, what, {"stride": 2 ** (len(config["block_out_channels"]) - 1)} | given
        )
    else:
        given["autoencoder"], digest = _module("AutoencoderKL", vae, coder, None)
        digests.append(digest)
        # Defaults of diffusers, for a configuration without them.
        units = {"scaling": coder.get("scaling_factor", 0.18215), "latent_shift": coder.get("shift_factor")}
        prior = call_declared(LatentPrior, what, {k: v for k, v in units.items() if v is not None} | given)
    prior.sha256 = declared_hash(digests, said)
    return prior


def _require_room(config: dict[str, Any], path: Path) -> None:
    """Refuse a network of implausible size, judged by the weights of its convolutions."""
    layers = config.get("layers_per_block", 2)
    deepest = max(layers) if isinstance(layers, list) else layers
    weights = 9 * 4 * (deepest + 1) * sum(width**2 for width in config.get("block_out_channels", []))
    if weights > _MOST_WEIGHTS:
        raise UnreadableError(
            f"{path.name} of '{path.parent.name}' describes a network of about {weights:.1g} weights and "
            f"{_MOST_WEIGHTS:.1g} are the most; fetch it again"
        )


def _scheduler(folder: Path) -> dict[str, Any]:
    inner = folder / "scheduler" / "scheduler_config.json"
    return _config(inner if inner.is_file() else folder / "scheduler_config.json")


def _config(path: Path, kind: str | None = None) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(
            f"'{path.parent.name}' holds no {path.name}; a folder of diffusers has unet/config.json and "
            "scheduler/scheduler_config.json, or both beside each other"
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path.name} of '{path.parent.name}' is not JSON; fetch it again") from error
    require_kind(config, _CONFIG, f"{path.name} of '{path.parent.name}'", UnreadableError)
    _require_room(config, path)
    if kind and config.get("_class_name") != kind:
        raise UsageError(
            f"'{path.parent.name}' holds a {config.get('_class_name')} and a {kind} is understood; build it "
            "in Python and give it to ForeignPrior or LatentPrior with its convention"
        )
    return config


def _convention(scheduler: dict[str, Any], network: dict[str, Any]) -> Convention:
    kind = scheduler.get("_class_name")
    if kind == _FLOW:
        scale = float(scheduler.get("num_train_timesteps") or 1000)
        return flow(scale, falling=True, predicts="reverse-velocity")
    predicts = scheduler.get("prediction_type", "epsilon")
    if kind not in _DIFFUSION or predicts not in _PREDICTIONS:
        raise UsageError(
            f"scheduler {kind} with prediction_type '{predicts}' is not understood; known are {_FLOW} and "
            f"{', '.join(_DIFFUSION)} with {', '.join(_PREDICTIONS)}. Declare the convention instead"
        )
    given = {key: value for key, value in scheduler.items() if value is not None}
    betas = {key: value for key, value in given.items() if "beta" in key or key == "num_train_timesteps"}
    alphas = _diffusers().DDPMScheduler(**betas).alphas_cumprod.double().tolist()
    learned = network["out_channels"] == 2 * network["in_channels"]
    return diffusion(alphas, _PREDICTIONS[predicts], learned_variance=learned)


def _module(kind: str, folder: Path, config: dict[str, Any], sha256: str | None) -> tuple[nn.Module, str]:
    """The network of a configuration with its weights, and their SHA-256."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt"))
    weights = next((path for path in found if path.suffix == ".safetensors"), found[0] if found else None)
    if weights is None:
        raise UsageError(f"'{folder.name}' holds no .safetensors file; fetch the weights in that format")
    refuse_pickle(weights)
    digest = check_sha256(weights, sha256)
    tensors, _ = read_tensors(weights)
    try:
        network: nn.Module = getattr(_diffusers(), kind).from_config(config)
    # NotImplementedError is how torch and diffusers refuse a layer that a configuration names.
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        raise UnreadableError(
            f"diffusers builds no {kind} from config.json of '{folder.name}': {error}"
        ) from error
    load_weights(network, {_renamed(key): value for key, value in tensors.items()}, folder.name)
    return network, digest


def _renamed(key: str) -> str:
    return re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{_OLD[m[2]]}.", key)


def _diffusers() -> Any:
    with optional_library("diffusers", 'pip install "ctflow[diffusers]"'):
        import diffusers  # pyright: ignore[reportMissingImports] (it need not be here)

        library: Any = diffusers  # pyright sees no names in a module that imports lazily
        _ = (library.UNet2DModel, library.DDPMScheduler, library.AutoencoderKL)
    return library
