"""Classical reconstruction: one method per file."""

from ctflow.recon.cgls import CGLS
from ctflow.recon.fbp import FBP
from ctflow.recon.fdk import FDK
from ctflow.recon.sirt import SIRT
from ctflow.recon.tv import TV

__all__ = ["CGLS", "FBP", "FDK", "SIRT", "TV"]
