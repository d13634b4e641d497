"""Other forms of the method, each tried on the proving grounds; docs/results.md says how they did.

Import this to have them by name, ``custom_imports = dict(imports=['snella_seg.lab.candidates'])``.
"""

from . import centred, hybrid, normalised, small_start  # noqa: F401
