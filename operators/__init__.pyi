# Written by `make generated`.
from ._base import LinearOperator as LinearOperator
from ._interop import wrap as wrap
from .blur import Blur as Blur
from .convolution import Convolution as Convolution
from .downsample import Downsample as Downsample
from .mask import Mask as Mask
from .motion_blur import MotionBlur as MotionBlur
from .radon import Radon as Radon

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
