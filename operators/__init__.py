"""Linear operators: projections, blur, sampling, masks."""

import os
from functools import partial

import torch

from ctflow.operators._base import LinearOperator
from ctflow.operators._interop import wrap
from ctflow.operators.blur import Blur
from ctflow.operators.convolution import Convolution
from ctflow.operators.downsample import Downsample
from ctflow.operators.mask import Mask
from ctflow.operators.motion_blur import MotionBlur
from ctflow.operators.radon import Radon

# A forked process inherits no threads of OpenMP and would wait for them for ever, in torch's first sum.
os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))

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
