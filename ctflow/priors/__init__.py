"""Flow priors: closed forms, networks, and the checkpoints of other toolkits."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
