"""Import this to register everything of snella_seg with mmengine and mmsegmentation.

In a config: ``custom_imports = dict(imports=['snella_seg.register'])``
"""

from ._require import require_mmseg

require_mmseg()

from . import hooks, models, optim  # noqa: E402, F401
