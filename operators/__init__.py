"""Linear operators: projections, blur, sampling, masks."""

from ctflow.operators._base import LinearOperator
from ctflow.operators._interop import wrap
from ctflow.operators.blur import Blur
from ctflow.operators.convolution import Convolution
from ctflow.operators.downsample import Downsample
from ctflow.operators.mask import Mask
from ctflow.operators.motion_blur import MotionBlur
from ctflow.operators.radon import Radon

__all__ = [
    "Blur",
    "Convolution",
    "Downsample",
    "LinearOperator",
    "Mask",
    "MotionBlur",
    "Radon",
    "wrap",
]
