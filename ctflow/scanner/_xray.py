"""Attenuation of materials and spectra of tubes, and what a detector makes of them."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.errors import ProtocolError

Array = NDArray[np.float64]

_MOST_AT_ONCE = 2**24  # rays times energies


@cache
def _table() -> dict[str, dict[str, dict[str, list[float]]]]:
    """The file `xray.json`, which says its sources."""
    table: dict[str, dict[str, dict[str, list[float]]]] = json.loads(
        files("ctflow.scanner").joinpath("xray.json").read_text(encoding="utf-8")
    )
    return table


def energies() -> Array:
    """Middles of the bins of all tables, keV."""
    return np.array(_table()["kev"])


def tubes() -> list[int]:
    """Peak voltages that have a spectrum, kV."""
    return [int(kvp) for kvp in _table()["photons"]]


def signal(kvp: int) -> Array:
    """What photons of each energy add to the signal of a detector that adds up energies; the sum is 1.

    Raises:
        ProtocolError: there is no spectrum of that voltage.
    """
    photons = _table()["photons"].get(str(kvp))
    if photons is None:
        raise ProtocolError(
            f"kvp {kvp} has no spectrum; give one of {', '.join(map(str, tubes()))} kV, or 0 for photons of "
            "one energy"
        )
    weights = energies() * np.array(photons)
    return np.asarray(weights / weights.sum())


def density(material: str) -> float:
    """Density of a solid material, g/cm³."""
    return float(_table()["materials"][material]["density_g_per_cm3"])  # type: ignore[arg-type]


def attenuation(material: str) -> Array:
    """Attenuation of 1 g/cm³ in every bin of `energies`, 1/mm."""
    return np.array(_table()["materials"][material]["cm2_per_g"]) / 10


def energy_of(mu_water: float) -> float:
    """Energy at which water attenuates by `mu_water` in 1/mm, keV.

    Raises:
        ProtocolError: it does so at none of the table.
    """
    water = attenuation("water")
    if not water[-1] <= mu_water <= water[0]:
        raise ProtocolError(
            f"water attenuates by {mu_water} / mm at no energy from {energies()[0]:.0f} to "
            f"{energies()[-1]:.0f} keV; correct mu_water or energy_kev, or leave kvp and metal out of the "
            "scanner"
        )
    return float(np.exp(np.interp(-np.log(mu_water), -np.log(water), np.log(energies()))))


def attenuation_at(material: str, kev: float) -> float:
    """Attenuation of 1 g/cm³ at an energy, 1/mm, interpolated between the logarithms of the table."""
    return float(np.exp(np.interp(np.log(kev), np.log(energies()), np.log(attenuation(material)))))


def transmitted(lengths: dict[str, Tensor], kvp: int) -> Tensor:
    """Share of the signal that passes materials.

    Args:
        lengths: density along each ray by material, in mm · g/cm³, shaped alike.
        kvp: of the tube.

    Returns:
        Between 0 and 1, shaped like them.
    """
    share = torch.from_numpy(signal(kvp)).float()
    mu = torch.stack([torch.from_numpy(attenuation(name)).float() for name in lengths])  # (materials, bins)
    every = torch.stack([length.flatten() for length in lengths.values()], 1)  # (rays, materials)
    passed = torch.cat(
        [torch.exp(-(part @ mu)) @ share for part in torch.split(every, _MOST_AT_ONCE // len(share))]
    )
    return passed.reshape(next(iter(lengths.values())).shape)


def behind_water(length: float, kvp: int) -> float:
    """-ln of the share of the signal that passes so many mm of water."""
    return float(-np.log(np.exp(-length * attenuation("water")) @ signal(kvp)))


def water_correction(y: Tensor, kvp: int, mu_water: float) -> tuple[Tensor, Tensor]:
    """Line integrals that water would have at one energy in place of what a spectrum makes of them.

    Args:
        y: -ln of the transmitted share.
        kvp: of the tube.
        mu_water: attenuation of water that images shall show, 1/mm.

    Returns:
        Corrected line integrals, and their derivative by y, each shaped like it.

    References:
        Herman, Phys. Med. Biol. 24 (1979), linearisation for water.
    """
    length = np.linspace(0, 1500, 3001)  # mm of water, beyond what any photon passes
    seen = -np.log(np.exp(-np.outer(length, attenuation("water"))) @ signal(kvp))
    slope = mu_water / np.gradient(seen, length)
    at = y.double().numpy()
    inside = mu_water * np.interp(at, seen, length)
    corrected = np.where(at < 0, slope[0] * at, inside)  # noise where there is air
    return torch.from_numpy(corrected).to(y), torch.from_numpy(np.interp(at, seen, slope)).to(y)
