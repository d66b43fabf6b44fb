"""Linear operators: projections, blur, sampling, masks."""

import os
from functools import partial

import lazy_loader
import torch

# A forked process does not inherit OpenMP's threads and would wait for them for ever in torch's first sum.
os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
