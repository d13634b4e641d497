"""Import this to register everything of snella_seg with mmengine and mmsegmentation.

In a config: ``custom_imports = dict(imports=['snella_seg.register'])``
"""

from . import hooks, models, optim  # noqa: F401
from .artifacts import adapter_loading  # noqa: F401  mmengine then reads adapter files
from .lab import shifts  # noqa: F401
from .models.inference import allow_logged_values

allow_logged_values()  # mmseg's own tools, too, then resume and test on torch 2.6 and later
