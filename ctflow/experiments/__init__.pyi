# Written by `make generated`.
from .run import run_one as run_one
from .run import run_study as run_study
from .study import Study as Study

__all__ = [
    "Study",
    "run_one",
    "run_study",
]
