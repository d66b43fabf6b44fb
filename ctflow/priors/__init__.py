"""Flow priors: closed forms, networks, and the checkpoints of other toolkits."""

from ctflow.priors._base import Prior
from ctflow.priors._conventions import CONVENTIONS, Convention, denoiser, diffusion, flow, linear_schedule
from ctflow.priors.foreign import ForeignPrior
from ctflow.priors.gaussian import GaussianPrior
from ctflow.priors.latent import LatentPrior
from ctflow.priors.mixture import MixturePrior
from ctflow.priors.network import FlowPrior, PriorWarning

__all__ = [
    "CONVENTIONS",
    "Convention",
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
