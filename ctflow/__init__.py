"""CT reconstruction from DICOM to DICOM with flow priors, compared with filtered backprojection."""

from pathlib import Path

import lazy_loader

# operators/, datasets/ and protocols/ lie beside this folder and are linked into it; where a checkout has no
# links (Git on Windows by default) they are found where they lie.
if not Path(__file__).with_name("operators").is_dir():
    __path__.append(str(Path(__file__).resolve().parents[1]))

_part, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """A part, imported when it is first asked for; the release, looked up then."""
    if name == "__version__":
        from ctflow.system.version import release

        return release()
    return _part(name)
