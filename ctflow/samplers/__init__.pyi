# Written by `make generated`.
from .conjugate import ConjugateIntegrator as ConjugateIntegrator
from .conjugate_gdm import ConjugateGDM as ConjugateGDM
from .daps import DAPS as DAPS
from .ddnm import DDNM as DDNM
from .ddrm import DDRM as DDRM
from .diffpir import DiffPIR as DiffPIR
from .dps import DPS as DPS
from .flow_admm import FlowADMM as FlowADMM
from .flow_dps import FlowDPS as FlowDPS
from .flower import Flower as Flower
from .fmct import FMCT as FMCT
from .moment_matching import MomentMatching as MomentMatching
from .ms_flow import MSFlow as MSFlow
from .ms_flow_paper import MSFlowPaper as MSFlowPaper
from .pi_gdm import PiGDM as PiGDM
from .pi_gfm import PiGFM as PiGFM
from .pnp_flow import PnPFlow as PnPFlow
from .red_diff import REDDiff as REDDiff
from .refinement import Refinement as Refinement
from .single_shooting import SingleShooting as SingleShooting

__all__ = [
    "ConjugateGDM",
    "ConjugateIntegrator",
    "DAPS",
    "DDNM",
    "DDRM",
    "DPS",
    "DiffPIR",
    "FMCT",
    "FlowADMM",
    "FlowDPS",
    "Flower",
    "MSFlow",
    "MSFlowPaper",
    "MomentMatching",
    "PiGDM",
    "PiGFM",
    "PnPFlow",
    "REDDiff",
    "Refinement",
    "SingleShooting",
]
