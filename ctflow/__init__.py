"""CT reconstruction from DICOM to DICOM with flow priors, validated against filtered backprojection."""

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In a checkout operators/, datasets/ and protocols/ lie beside this folder; in a wheel they lie inside it.
_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

# Public names and where they live; loaded on first use, so that `import ctflow` stays quick.
_HOME = {
    "VolumeGeometry": "geometry",
    "ParallelBeam": "geometry",
    "FanBeam": "geometry",
    "ConeBeam": "geometry",
    "HelicalBeam": "geometry",
    "ParallelBeam3D": "geometry",
    "VectorBeam": "geometry",
    "from_astra": "geometry",
    "to_astra": "geometry",
    "from_tomosipo": "operators._tomosipo",
    "to_tomosipo": "operators._tomosipo",
    "Volume": "volume",
    "Gaussian": "noise",
    "Poisson": "noise",
    "Scan": "scan",
    "find_axis": "scan",
    "to_line_integrals": "scan",
    "InverseProblem": "problem",
    "simulate": "problem",
    "solve": "solving",
    "Solution": "solving",
    "LinearOperator": "operators",
    "Radon": "operators",
    "Blur": "operators",
    "Convolution": "operators",
    "Downsample": "operators",
    "Mask": "operators",
    "MotionBlur": "operators",
    "wrap": "operators",
    "GaussianPrior": "priors",
    "MixturePrior": "priors",
    "FlowPrior": "priors",
    "ForeignPrior": "priors",
    "LatentPrior": "priors",
    "FBP": "recon",
    "FDK": "recon",
    "SIRT": "recon",
    "CGLS": "recon",
    "TV": "recon",
    "MSFlow": "samplers",
    "ConjugateIntegrator": "samplers",
    "compare": "metrics",
    "Protocol": "protocol",
    "run": "pipeline",
    "read_series": "dicom",
    "write_series": "dicom",
    "read_projections": "dicom",
    "write_projections": "dicom",
    "read_scan": "rawdata",
    "wfbp": "rebinning.wfbp",
    "ReadOptions": "dicom",
    "read_nifti": "nifti",
    "write_nifti": "nifti",
}
__all__ = ["__version__", *_HOME]  # noqa: PLE0604 (the keys are strings)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ctflow' has no attribute '{name}'")
    value = getattr(import_module(f"ctflow.{_HOME[name]}"), name)
    globals()[name] = value
    return value
