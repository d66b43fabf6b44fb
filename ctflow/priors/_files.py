"""Read prior files, check their hashes, and load their weights into a network."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ctflow.errors import UnreadableError, UsageError
from ctflow.priors._manifest import SHA256
from ctflow.priors.foreign import ForeignPrior
from ctflow.tables import ANYTHING, Table, kinds_of, read_toml, require_kind

_PICKLES = {".pt", ".pth", ".ckpt", ".pkl", ".bin", ".pickle"}
SIDE_CAR = "prior.toml"


def refuse_pickle(path: Path) -> None:
    """Refuse a file that would run code when it is read.

    Raises:
        UsageError: it is a pickle, judged by its name or its first bytes.
    """
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file begins with a length of eight bytes and a brace.
    packed = head[:1] == b"\x80" or head[:4] == b"PK\x03\x04"
    if path.suffix in _PICKLES or (packed and head[8:] != b"{"):
        # The suggested command must not overwrite the file that it reads.
        new = f"{path.stem}{'-weights' * (path.suffix == '.safetensors')}.safetensors"
        raise UsageError(
            f"'{path.name}' is a pickle, which runs code when it is read, and is not opened; if you trust "
            'it: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{path.name}', weights_only=True), '{new}')\", "
            "with the state dict alone where the file holds more"
        )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read the tensors, of any shape and unit, of a safetensors file, and the text of its manifest, if any.

    Raises:
        UsageError: it is a pickle.
        UnreadableError: it is truncated.
    """
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("manifest")
            return {key: file.get_tensor(key) for key in file.keys()}, text  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise UnreadableError(
            f"prior '{path.name}' is not a whole safetensors file ({error}); fetch or train it again"
        ) from error


def check_sha256(path: Path, expected: str | None) -> str:
    """Compute the SHA-256 of a file and compare it with the expected one, if any.

    Raises:
        UnreadableError: they differ.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if expected and found != expected.lower():
        raise UnreadableError(
            f"'{path.name}' should have the SHA-256 {expected} and has {found}; fetch it again"
        )
    return found


def load_weights(network: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Load weights into a network that they fit exactly.

    Shapes: each tensor as the network's state dict has it.

    Raises:
        UnreadableError: a key or a shape differs, the first is named with both shapes; or weights are not
            finite.
    """
    own = network.state_dict()
    for key in [*own, *(key for key in tensors if key not in own)]:
        here, there = (tuple(state[key].shape) if key in state else None for state in (own, tensors))
        if here != there:
            raise UnreadableError(
                f"prior '{name}': '{key}' is {_shape(there)} in the file and {_shape(here)} in the network; "
                "it belongs to another architecture, train or fetch it again"
            )
    broken = [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise UnreadableError(
            f"prior '{name}': {len(broken)} tensors are not finite, the first is '{broken[0]}'; "
            "train or fetch it again"
        )
    network.load_state_dict({key: value.to(own[key].dtype) for key, value in tensors.items()})


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(shape)


def declarations(beside: Path, declared: dict[str, Any]) -> dict[str, Any]:
    """Declarations of a checkpoint: the entries of its side-car file, overridden by those of the caller.

    Args:
        beside: the side-car, TOML; it may be missing.
        declared: keywords of the call.

    Raises:
        UnreadableError: the side-car is not TOML, or declares what only a call can.
    """
    if not beside.is_file():
        return dict(declared)
    what = f"the side-car '{beside.name}'"
    said = read_toml(beside, what, UnreadableError)
    require_kind(said, Table(others={"sha256": SHA256}, closed=False), what, UnreadableError)
    for key in said.keys() & {"network", "autoencoder", "mu_water"}:
        raise UnreadableError(f"{what} says {key}, which is given where the prior is loaded; remove it")
    return said | declared


def call_declared(call: Callable[..., Any], what: str, given: dict[str, Any]) -> Any:
    """Call with the declarations, after checking that none is missing, unknown or malformed.

    Raises:
        UsageError: a declaration is missing, unknown or malformed.
    """
    parameters = inspect.signature(call).parameters
    unknown = given.keys() - parameters.keys()
    needed = [name for name, p in parameters.items() if p.default is p.empty and name not in given]
    if unknown:
        known = ", ".join(name for name in parameters if name not in ("network", "autoencoder"))
        raise UsageError(f"{what} is declared with '{min(unknown)}'; possible declarations are {known}")
    if needed:
        raise UsageError(
            f"{what} does not say {', '.join(needed)}, and nothing is guessed; "
            f"give them to FlowPrior.load, or in a side-car ({SIDE_CAR}) where they are plain values"
        )
    kinds = kinds_of(call)
    for name, value in given.items():
        require_kind(value, kinds.get(name, ANYTHING), f"{what}: {name}", UsageError, depth=1)
    return call(**given)


def load_state(
    path: Path,
    tensors: dict[str, Tensor],
    network: nn.Module | None,
    mu_water: float,
    sha256: str | None,
    declared: dict[str, Any],
) -> ForeignPrior:
    """Load a state dict of another toolkit into the network that the caller built.

    The tensors have the shape and type that the network's state dict gives them.

    Raises:
        UsageError: its convention or HU mapping is not declared.
        UnreadableError: no network is given, the weights do not fit it, or the hash differs.
    """
    if network is None:
        raise UnreadableError(
            f"prior '{path.name}' has no ctflow manifest in its header; train one with ctflow train, or, "
            "where it is a state dict of another toolkit, load it in Python: "
            'FlowPrior.load(path, network=built, convention="torchcfm", hu_centre=..., hu_width=...)'
        )
    given = declarations(path.with_suffix(f".{SIDE_CAR}"), declared)
    found = check_sha256(path, sha256 or given.pop("sha256", None))
    given.pop("sha256", None)
    load_weights(network, tensors, path.name)
    prior: ForeignPrior = call_declared(
        ForeignPrior,
        f"checkpoint '{path.name}'",
        {"name": path.stem} | given | {"network": network, "mu_water": mu_water},
    )
    prior.sha256 = declared_hash([found], given)
    return prior


def declared_hash(weights: list[str], said: dict[str, Any]) -> str:
    """Hash of a checkpoint with its declarations: another declaration makes another prior.

    Args:
        weights: hashes of the weight files.
        said: declarations and configurations; objects built in Python count by their class.
    """
    text = json.dumps([weights, said], sort_keys=True, default=lambda built: type(built).__name__)
    return hashlib.sha256(text.encode()).hexdigest()
