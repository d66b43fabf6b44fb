# Written by `make generated`.
from .cgls import CGLS as CGLS
from .fbp import FBP as FBP
from .fdk import FDK as FDK
from .sirt import SIRT as SIRT
from .tv import TV as TV
from .wfbp import WFBP as WFBP

__all__ = [
    "CGLS",
    "FBP",
    "FDK",
    "SIRT",
    "TV",
    "WFBP",
]
