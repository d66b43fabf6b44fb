"""Flow priors: closed forms and networks."""

from ctflow.priors._base import Prior
from ctflow.priors.gaussian import GaussianPrior
from ctflow.priors.mixture import MixturePrior
from ctflow.priors.network import FlowPrior

__all__ = ["FlowPrior", "GaussianPrior", "MixturePrior", "Prior"]
