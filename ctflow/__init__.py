"""CT reconstruction from DICOM to DICOM with flow priors, compared with filtered backprojection."""

from pathlib import Path

import lazy_loader

__version__ = "0.1.0"

# operators/, datasets/ and protocols/ lie beside this folder and are linked into it; where a checkout has no
# links (Git on Windows by default) they are found where they lie.
if not Path(__file__).with_name("operators").is_dir():
    __path__.append(str(Path(__file__).resolve().parents[1]))

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
