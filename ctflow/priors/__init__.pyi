# Written by `make generated`.
from ._base import Prior as Prior
from ._conventions import CONVENTIONS as CONVENTIONS
from ._conventions import Convention as Convention
from ._conventions import denoiser as denoiser
from ._conventions import diffusion as diffusion
from ._conventions import flow as flow
from ._conventions import linear_schedule as linear_schedule
from .coupled import Coupled as Coupled
from .foreign import ForeignPrior as ForeignPrior
from .gaussian import GaussianPrior as GaussianPrior
from .latent import LatentPrior as LatentPrior
from .mixture import MixturePrior as MixturePrior
from .network import FlowPrior as FlowPrior
from .network import PriorWarning as PriorWarning

__all__ = [
    "CONVENTIONS",
    "Convention",
    "Coupled",
    "FlowPrior",
    "ForeignPrior",
    "GaussianPrior",
    "LatentPrior",
    "MixturePrior",
    "Prior",
    "PriorWarning",
    "denoiser",
    "diffusion",
    "flow",
    "linear_schedule",
]
