"""Manifest of a prior file: every entry is typed and bounded, and covered by one hash with the weights."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctflow.errors import UnreadableError, UsageError
from ctflow.priors._unet import NETWORK
from ctflow.tables import ANYTHING, Either, Listed, Nothing, Real, Table, Text, Whole, require_kind

SCHEMA = 2
SHIPPED = {
    "ct-256": "d2526e76d662b48552fe49bd3644bcd77ac6553ff2c7db8dffcb096bbc236fc8",
    "ct-gaussian": "b175b9e96a596788bdf4a4b767c9e252b8688e1076c738a293549e117282ab2c",
}
"""Hashes of the priors that ship with ctflow, by name; no other file may use these names."""

CONVENTION = "x_t = (1 - t) z + t u; the network denoises x_t / t at noise level (1 - t) / t"
NAME = Text(r"[^\x00-\x1f\x7f-\x9f]{1,100}", "a name of one line")

HU_ZERO, HU_UNIT = Real(-10_000, 10_000), Real(0, 20_000, above=True)
HU_RANGE = Listed(Real(-32_768, 65_535), 2, 2, rising=True)
SPACINGS = Listed(Real(0.001, 1_000), 2, 2, rising=True)
MEAN = Real(-100, 100)
ERRORS = Listed(Listed(Real(0, 1e6, above=True), 2, 2), 1, 1000, rising=True)
"""Kinds of entries of every manifest: HU at u = 0 and per unit of u; HU, mm and network range of training."""

SHA256 = Text("[0-9a-f]{64}", "a SHA-256")
_NEEDED = {
    "kind": Text("gaussian|network", "gaussian or network"),
    "name": NAME,
    "mean": MEAN,
    "hu_centre": HU_ZERO,
    "hu_width": HU_UNIT,
    "schema": Whole(SCHEMA, SCHEMA),
    "weights_sha256": SHA256,
    "sha256": SHA256,
}
_OTHERS = {
    "version": Text(),
    "ctflow": Text(),
    "collections": Listed(Text()),
    "data_sha256": SHA256,
    "licence": Text(),
    "hu_range": HU_RANGE,
    "spacings_mm": Either((SPACINGS, Nothing())),
}
_KINDS = {
    "gaussian": Table(_NEEDED, _OTHERS),
    "network": Table(
        {**_NEEDED, "network": NETWORK, "denoiser_error": ERRORS},
        {
            **_OTHERS,
            "training": ANYTHING,
            "shares": ANYTHING,
            "teacher": Text(),
            "steps": Whole(0, 2**40),
            "convention": Text(re.escape(CONVENTION), f"'{CONVENTION}'"),
            "sigma_data": Real(1, 1),
            "standard_deviation": Real(0, 100),
            "spectrum": Listed(Real(0, 1e12, above=True)),
        },
    ),
}
_HASHES = ("schema", "weights_sha256", "sha256")
_HOME = Path(__file__).parent
_ARRIVES = {"gaussian": torch.float32, "network": torch.float16}


def require_unit(hu_centre: float, hu_width: float) -> None:
    """Refuse impossible HU at 0 and per unit of a network's range.

    Raises:
        UsageError: one is not finite or exceeds its bounds.
    """
    require_kind(hu_centre, HU_ZERO, "hu_centre", UsageError)
    require_kind(hu_width, HU_UNIT, "hu_width", UsageError)


def manifest_text(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Write a manifest as text, with the hash of the weights and a hash over both.

    Args:
        manifest: entries of the manifest.
        tensors: weights by name, of any shape and unit.
    """
    said = {**manifest, "schema": SCHEMA, "weights_sha256": hash_of(tensors)}
    return json.dumps({**said, "sha256": _digest(said)})


def read_manifest(text: str, tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Read a manifest, after checking that no entry is missing, unknown, out of range or changed.

    Args:
        text: text of the manifest.
        tensors: weights by name, of any shape and unit.
        path: the file.

    Raises:
        UnreadableError: manifest or weights have been changed, or are not those that ship under that name.
    """
    manifest, name = _parsed(text, path), f"prior '{path.name}'"
    if manifest.get("schema") != SCHEMA:
        raise UnreadableError(
            f"{name} was written by an earlier version, and no hash covers its manifest; if "
            f"you trust it: ctflow priors {path.name} --rehash NEW.safetensors"
        )
    kind = manifest.get("kind")
    require_kind(manifest, _KINDS["gaussian" if kind == "gaussian" else "network"], name, UnreadableError)
    if manifest["weights_sha256"] != hash_of(tensors) or manifest["sha256"] != _digest(manifest):
        raise UnreadableError(
            f"{name}: its weights or its manifest do not match their hash in the manifest; "
            "fetch or train it again"
        )
    for called in {manifest["name"], *([path.stem] if path.parent == _HOME else [])} & SHIPPED.keys():
        if manifest["sha256"] != SHIPPED[called]:
            raise UnreadableError(
                f"{name} is called '{called}' and is not what this version of ctflow ships under that name; "
                "install ctflow again, or, if it is yours, rename it: "
                f"ctflow priors {path.name} --rehash NEW.safetensors"
            )
    _require_weights(tensors, _ARRIVES[manifest["kind"]], name)
    return manifest


def trusted_manifest(text: str, tensors: dict[str, Tensor], old: Path, new: Path) -> dict[str, Any]:
    """Read the manifest of a file that the user trusts, without hashes; a shipped name is replaced.

    Args:
        text: text of the manifest.
        tensors: weights by name, of any shape and unit.
        old: the file.
        new: the file to write.

    Raises:
        UnreadableError: the weights do not match their hash, or an entry of the manifest is impossible.
    """
    manifest = _parsed(text, old)
    if manifest.get("weights_sha256") != hash_of(tensors):
        raise UnreadableError(
            f"the weights of prior '{old.name}' do not match their hash in its manifest; fetch it again"
        )
    kept = {key: value for key, value in manifest.items() if key not in _HASHES}
    if kept.get("name") in SHIPPED:
        kept["name"] = new.stem
    read_manifest(manifest_text(kept, tensors), tensors, new)
    return kept


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(
            f"the manifest of prior '{path.name}' is not JSON; fetch or train it again"
        ) from error
    if not isinstance(manifest, dict):
        raise UnreadableError(f"the manifest of prior '{path.name}' is not a table; fetch or train it again")
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def hash_of(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values of tensors of any shape and unit."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        flat = tensors[key].contiguous().flatten().view(torch.uint8)
        digest.update(key.encode() + str(tuple(tensors[key].shape)).encode() + flat.numpy().tobytes())
    return digest.hexdigest()


def _require_weights(tensors: dict[str, Tensor], dtype: torch.dtype, name: str) -> None:
    for key, value in tensors.items():
        if value.dtype != dtype or not bool(torch.isfinite(value).all()):
            raise UnreadableError(
                f"{name}: '{key}' holds {value.dtype} and must hold finite {dtype}; fetch or train it again"
            )
