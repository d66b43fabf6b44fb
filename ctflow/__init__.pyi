# Written by `make generated`.
from . import datasets as datasets
from . import errors as errors
from . import evidence as evidence
from . import experiments as experiments
from . import geometry as geometry
from . import metrics as metrics
from . import operators as operators
from . import priors as priors
from . import recon as recon
from . import samplers as samplers
from . import testing as testing
from . import units as units
from .blind import find_parameter as find_parameter
from .dicom import ReadOptions as ReadOptions
from .dicom import read_projections as read_projections
from .dicom import read_series as read_series
from .dicom import write_projections as write_projections
from .dicom import write_series as write_series
from .geometry import ConeBeam as ConeBeam
from .geometry import FanBeam as FanBeam
from .geometry import HelicalBeam as HelicalBeam
from .geometry import ParallelBeam as ParallelBeam
from .geometry import ParallelBeam3D as ParallelBeam3D
from .geometry import VectorBeam as VectorBeam
from .geometry import VolumeGeometry as VolumeGeometry
from .geometry import from_astra as from_astra
from .geometry import to_astra as to_astra
from .metrics import compare as compare
from .nifti import read_nifti as read_nifti
from .nifti import write_nifti as write_nifti
from .noise import Gaussian as Gaussian
from .noise import Noise as Noise
from .noise import Poisson as Poisson
from .operators._base import LinearOperator as LinearOperator
from .operators._interop import wrap as wrap
from .operators._tomosipo import from_tomosipo as from_tomosipo
from .operators._tomosipo import to_tomosipo as to_tomosipo
from .operators.blur import Blur as Blur
from .operators.convolution import Convolution as Convolution
from .operators.downsample import Downsample as Downsample
from .operators.mask import Mask as Mask
from .operators.motion_blur import MotionBlur as MotionBlur
from .operators.radon import Radon as Radon
from .priors._base import Prior as Prior
from .priors.coupled import Coupled as Coupled
from .priors.foreign import ForeignPrior as ForeignPrior
from .priors.gaussian import GaussianPrior as GaussianPrior
from .priors.latent import LatentPrior as LatentPrior
from .priors.mixture import MixturePrior as MixturePrior
from .priors.network import FlowPrior as FlowPrior
from .problem import InverseProblem as InverseProblem
from .problem import simulate as simulate
from .rawdata import read_scan as read_scan
from .rawdata import write_rtk as write_rtk
from .rebinning.wfbp import wfbp as wfbp
from .recon.cgls import CGLS as CGLS
from .recon.fbp import FBP as FBP
from .recon.fdk import FDK as FDK
from .recon.sirt import SIRT as SIRT
from .recon.tv import TV as TV
from .recon.wfbp import WFBP as WFBP
from .runs.protocol import Protocol as Protocol
from .runs.run import run as run
from .samplers.conjugate import ConjugateIntegrator as ConjugateIntegrator
from .samplers.conjugate_gdm import ConjugateGDM as ConjugateGDM
from .samplers.daps import DAPS as DAPS
from .samplers.ddnm import DDNM as DDNM
from .samplers.ddrm import DDRM as DDRM
from .samplers.diffpir import DiffPIR as DiffPIR
from .samplers.dps import DPS as DPS
from .samplers.flow_admm import FlowADMM as FlowADMM
from .samplers.flow_dps import FlowDPS as FlowDPS
from .samplers.flower import Flower as Flower
from .samplers.fmct import FMCT as FMCT
from .samplers.moment_matching import MomentMatching as MomentMatching
from .samplers.ms_flow import MSFlow as MSFlow
from .samplers.ms_flow_paper import MSFlowPaper as MSFlowPaper
from .samplers.pi_gdm import PiGDM as PiGDM
from .samplers.pi_gfm import PiGFM as PiGFM
from .samplers.pnp_flow import PnPFlow as PnPFlow
from .samplers.red_diff import REDDiff as REDDiff
from .samplers.refinement import Refinement as Refinement
from .samplers.single_shooting import SingleShooting as SingleShooting
from .scan import Scan as Scan
from .scan import find_axis as find_axis
from .scan import to_line_integrals as to_line_integrals
from .scanner import Scanner as Scanner
from .scanner import correct_scatter as correct_scatter
from .scanner import scatter_share as scatter_share
from .solving import Method as Method
from .solving import Solution as Solution
from .solving import solve as solve
from .volume import Volume as Volume

__version__: str
__all__ = [
    "Blur",
    "CGLS",
    "ConeBeam",
    "ConjugateGDM",
    "ConjugateIntegrator",
    "Convolution",
    "Coupled",
    "DAPS",
    "DDNM",
    "DDRM",
    "DPS",
    "DiffPIR",
    "Downsample",
    "FBP",
    "FDK",
    "FMCT",
    "FanBeam",
    "FlowADMM",
    "FlowDPS",
    "FlowPrior",
    "Flower",
    "ForeignPrior",
    "Gaussian",
    "GaussianPrior",
    "HelicalBeam",
    "InverseProblem",
    "LatentPrior",
    "LinearOperator",
    "MSFlow",
    "MSFlowPaper",
    "Mask",
    "Method",
    "MixturePrior",
    "MomentMatching",
    "MotionBlur",
    "Noise",
    "ParallelBeam",
    "ParallelBeam3D",
    "PiGDM",
    "PiGFM",
    "PnPFlow",
    "Poisson",
    "Prior",
    "Protocol",
    "REDDiff",
    "Radon",
    "ReadOptions",
    "Refinement",
    "SIRT",
    "Scan",
    "Scanner",
    "SingleShooting",
    "Solution",
    "TV",
    "VectorBeam",
    "Volume",
    "VolumeGeometry",
    "WFBP",
    "compare",
    "correct_scatter",
    "datasets",
    "errors",
    "evidence",
    "experiments",
    "find_axis",
    "find_parameter",
    "from_astra",
    "from_tomosipo",
    "geometry",
    "metrics",
    "operators",
    "priors",
    "read_nifti",
    "read_projections",
    "read_scan",
    "read_series",
    "recon",
    "run",
    "samplers",
    "scatter_share",
    "simulate",
    "solve",
    "testing",
    "to_astra",
    "to_line_integrals",
    "to_tomosipo",
    "units",
    "wfbp",
    "wrap",
    "write_nifti",
    "write_projections",
    "write_rtk",
    "write_series",
]
