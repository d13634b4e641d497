"""SNELLA for dense prediction: sparse nonlinear low-rank adaptation of frozen ViT and Swin
backbones inside mmsegmentation (arXiv 2510.24037).

``snella_seg.functional`` is the method as pure functions; ``snella_seg.register`` registers the
backbone wrapper and the hook with mmsegmentation.
"""

from .configs import own, stock
from .recipes import own_data
from .version import __version__

__all__ = ["__version__", "own", "own_data", "stock"]
