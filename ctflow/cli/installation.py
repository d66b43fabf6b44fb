"""Check what works in this installation, with the command to paste for what does not."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_EXTRAS = {
    "pacs": ("pynetdicom", "a PACS by DIMSE"),
    "dicomweb": ("dicomweb-client", "a PACS by DICOMweb"),
    "parametric-map": ("highdicom", "spreads as DICOM parametric maps"),
    "nifti": ("nibabel", "NIfTI in and out"),
    "hdf5": ("h5py", "measured data in HDF5 and MATLAB 7.3"),
    "slurm": ("submitit", "--executor slurm"),
    "dask": ("distributed", "--executor dask"),
    "diffusers": ("diffusers", "priors in folders of diffusers"),
}
"""The package that stands for an extra of ctflow, and what it is for."""


@dataclass(frozen=True)
class Check:
    """One line of `ctflow doctor`.

    Args:
        name: what was checked.
        works: whether it can be used.
        found: what is installed.
        remedy: command to paste where it is missing.
    """

    name: str
    works: bool
    found: str
    remedy: str = ""


def check_installation() -> list[Check]:
    """Check Python, torch, CUDA, ASTRA, Warp, the decoders, the priors, the validators and the extras."""
    checks = [_python(), *_torch(), *_projectors(), *_decoders(), _priors(), *_validators(), _tomosipo()]
    return [*checks, *_extras()]


def _python() -> Check:
    return Check("Python", sys.version_info >= (3, 11), platform.python_version(), "use Python 3.11 or later")


def _torch() -> Iterator[Check]:
    import torch

    yield Check("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")
    cuda = torch.cuda.is_available()
    found = torch.cuda.get_device_name() if cuda else "no CUDA device; --device cpu"
    remedy = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"
    yield Check("torch on CUDA", cuda, found, remedy)


def _projectors() -> Iterator[Check]:
    installed = _version("astra-toolbox")
    if not installed:
        yield Check("ASTRA", False, "not installed", "pip install 'astra-toolbox>=2.5'")
        return
    yield Check("ASTRA", True, f"{installed}, parallel and fan beams on the CPU")
    cuda = _astra_has_cuda()
    found = "cone beams too" if cuda else "no CUDA device; cone beams run on the CPU, slowly"
    remedy = "install an NVIDIA driver; astra-toolbox brings the rest of CUDA"
    yield Check("ASTRA on CUDA", cuda, found, remedy)
    warp = _version("warp-lang")
    found = f"{warp}, projections on CUDA" if warp else "not installed (optional); CUDA is slower without"
    yield Check("Warp", bool(warp), found, "pip install 'ctflow[gpu]'")


def _astra_has_cuda() -> bool:
    from ctflow.errors import BackendError
    from ctflow.operators._astra import require_cuda

    try:
        require_cuda("cone beams")
    except BackendError:
        return False
    return True


def _decoders() -> Iterator[Check]:
    from ctflow.dicom.reading.decoders import decoder_table

    yield Check("decode: uncompressed, deflated", bool(_version("pydicom")), f"pydicom {_version('pydicom')}")
    for decoder in decoder_table():
        # 12 bits: the plugins for 8 bits call themselves able to read it, and are not.
        twelve = decoder.uid.endswith(".4.51")
        works = bool(_version("pylibjpeg-libjpeg")) if twelve else bool(decoder.plugins)
        found = ", ".join(decoder.plugins) if works else "no decoder"
        yield Check(
            f"decode: {_short(decoder.syntax)} ({decoder.uid[18:]})",
            works,
            found,
            f"pip install '{decoder.package}'",
        )


def _short(syntax: str) -> str:
    """Name of a transfer syntax without the words that all such names share."""
    return syntax.split(" (", maxsplit=1)[0].split(", ", maxsplit=1)[0].replace(" Image Compression", "")


def _priors() -> Check:
    from ctflow.priors.network import shipped_priors

    names = shipped_priors()
    return Check(
        "priors",
        bool(names),
        ", ".join(names) or "none shipped",
        "ctflow train CONFIG.toml --data DIR -o FILE",
    )


def _validators() -> Iterator[Check]:
    for tool in ("dciodvfy", "dcentvfy"):
        path = shutil.which(tool)
        yield Check(f"validate: {tool}", path is not None, path or "not found", "apt-get install dicom3tools")


def _tomosipo() -> Check:
    there = importlib.util.find_spec("tomosipo") is not None
    remedy = "pip install git+https://github.com/ahendriksen/tomosipo   # optional"
    return Check("tomosipo", there, "installed" if there else "not installed (optional)", remedy)


def _extras() -> Iterator[Check]:
    for extra, (package, what) in _EXTRAS.items():
        installed = _version(package)
        found = f"{package} {installed}, {what}" if installed else f"not installed (optional): {what}"
        yield Check(f"extra {extra}", bool(installed), found, f"pip install 'ctflow[{extra}]'")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
