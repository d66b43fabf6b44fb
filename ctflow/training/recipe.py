"""Recipes: the settings of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict, cast

from ctflow.errors import ProtocolError
from ctflow.priors._manifest import NAME
from ctflow.priors._unet import build_unet
from ctflow.tables import ANYTHING, SEED, Real, Table, Text, Whole, kinds_of, read_toml, require_kind

_NEEDED = {"name": NAME, "network": ANYTHING, "training": Table(closed=False), "shares": Table(closed=False)}
_OTHERS = {"version": Text(), "start": Text(), "teacher": Text()}
_MOST_PIXELS = 2**27  # per batch, 512 MiB in single precision


@dataclass(frozen=True)
class Schedule:
    """The `training` table of a recipe.

    Noise levels are drawn as ln sigma ~ N(mean, std²). With sigma = (1 - t) / t this is a logit-normal
    distribution of the flow's time t.

    Args:
        steps: optimiser steps.
        batch: crops per step, of all processes together.
        crop: side of a crop, pixels.
        zoom: largest factor by which crops are resampled, up or down, so that spacings vary.
        told: share of the crops whose pixel spacing the network is given.
        lesions: share of the crops into which lesions are inserted, see `Batches`.
        rate: peak learning rate; it rises over `warmup` steps and falls to zero as a half cosine.
        warmup: steps over which the learning rate rises.
        log_sigma_mean: mean of ln sigma, network range.
        log_sigma_std: standard deviation of ln sigma.
        ema_half_life: half-life of the moving average of the weights, steps.
        every: steps between checkpoints with validation.
        seed: seed of weights, crops and noise.

    Raises:
        ProtocolError: a number is out of range.

    References:
        Karras et al., NeurIPS 2022, section 5 (log-normal noise levels); Esser et al., ICML 2024, section 3.1
        (logit-normal times).
    """

    steps: Annotated[int, Whole(most=10**8)]
    batch: Annotated[int, Whole(most=4096)] = 16
    crop: Annotated[int, Whole(most=4096)] = 128
    zoom: Annotated[float, Real(most=16)] = 1.0
    told: float = 0.8
    lesions: float = 0.0
    rate: Annotated[float, Real(most=10)] = 8e-4
    warmup: Annotated[int, Whole(most=10**8)] = 100
    log_sigma_mean: Annotated[float, Real(-20, 20)] = -1.6
    log_sigma_std: Annotated[float, Real(0, 10)] = 1.4
    ema_half_life: Annotated[float, Real(0, 1e9, above=True)] = 200.0
    every: Annotated[int, Whole(most=10**8)] = 250
    seed: Annotated[int, SEED] = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "crop": 1, "zoom": 1, "rate": 0, "warmup": 1, "every": 1}
        for key, bound in least.items():
            if not getattr(self, key) >= bound:
                raise ProtocolError(f"training.{key} must be at least {bound}, and is {getattr(self, key)}")
        for key in ("told", "lesions"):
            if not 0 <= getattr(self, key) <= 1:
                raise ProtocolError(f"training.{key} is a share, from 0 to 1, and is {getattr(self, key)}")

    @classmethod
    def parse(cls, table: Mapping[str, object]) -> Schedule:
        """The schedule of a table whose kinds have been checked.

        Raises:
            TypeError: it lacks the steps.
        """
        return _made(cls, table)


def _made(make: Callable[..., Schedule], table: Mapping[str, object]) -> Schedule:
    return make(**table)


class Plan(TypedDict):
    """Tables of a network and of its `Schedule`, and the name of its teacher if it has one."""

    network: Mapping[str, object]
    training: Mapping[str, object]
    teacher: NotRequired[str]


class Recipe(Plan):
    """The tables of a recipe; see `read_recipe`."""

    name: str
    shares: dict[str, float]
    version: NotRequired[str]
    start: NotRequired[str]


def read_recipe(path: Path) -> Recipe:
    """Read a training recipe.

    Args:
        path: TOML with `name`, `network`, `training` and `shares` (of each kind of slice); it may have
            `version`, `start`, the prior whose weights the run starts from, and `teacher`, a wider prior
            whose denoised images the run learns in place of the slices; without `start` it starts from a
            share of its channels.

    Raises:
        ProtocolError: it is not TOML, a table or key is missing or unknown, or a number is out of range.
    """
    what = f"recipe '{path.name}'"
    tables = read_toml(path, what)
    missing = _NEEDED.keys() - tables.keys()
    if missing:
        raise ProtocolError(f"{what} lacks {', '.join(sorted(missing))}; compare with ct-256.toml")
    require_kind(tables, Table(_NEEDED, _OTHERS), what)
    plan = cast(Recipe, tables)
    require_kind(plan["shares"], Table(others=dict.fromkeys(plan["shares"], Real(0, 1e6))), "shares")
    require_kind(plan["training"], Table({}, kinds_of(Schedule)), "training")
    try:
        schedule = Schedule.parse(plan["training"])
    except TypeError as error:  # without steps
        raise ProtocolError(f"{what}: {error}") from error
    network = build_unet(plan["network"])
    if schedule.batch * schedule.crop**2 > _MOST_PIXELS:
        raise ProtocolError(
            f"training.batch {schedule.batch} × training.crop {schedule.crop}² are more than "
            f"{_MOST_PIXELS:.2g} pixels at once; lower one of them"
        )
    if schedule.crop % network.stride:
        raise ProtocolError(
            f"training.crop is {schedule.crop} and must be a multiple of {network.stride}, "
            "the stride of this network"
        )
    if not sum(plan["shares"].values()) > 0:
        raise ProtocolError("shares must be numbers above 0, one for each kind of slice")
    return plan
