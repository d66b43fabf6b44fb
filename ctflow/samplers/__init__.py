"""Reconstruction with flow priors: one method per file."""

from ctflow.samplers.conjugate import ConjugateIntegrator
from ctflow.samplers.conjugate_gdm import ConjugateGDM
from ctflow.samplers.daps import DAPS
from ctflow.samplers.ddnm import DDNM
from ctflow.samplers.ddrm import DDRM
from ctflow.samplers.diffpir import DiffPIR
from ctflow.samplers.dps import DPS
from ctflow.samplers.flow_admm import FlowADMM
from ctflow.samplers.flow_dps import FlowDPS
from ctflow.samplers.flower import Flower
from ctflow.samplers.fmct import FMCT
from ctflow.samplers.ms_flow import MSFlow
from ctflow.samplers.pi_gdm import PiGDM
from ctflow.samplers.pi_gfm import PiGFM
from ctflow.samplers.pnp_flow import PnPFlow
from ctflow.samplers.red_diff import REDDiff
from ctflow.samplers.single_shooting import SingleShooting

__all__ = [
    "DAPS",
    "DDNM",
    "DDRM",
    "DPS",
    "FMCT",
    "ConjugateGDM",
    "ConjugateIntegrator",
    "DiffPIR",
    "FlowADMM",
    "FlowDPS",
    "Flower",
    "MSFlow",
    "PiGDM",
    "PiGFM",
    "PnPFlow",
    "REDDiff",
    "SingleShooting",
]
