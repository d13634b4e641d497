"""The documentation, by Sphinx: ``sphinx-build -W --keep-going docs docs/_build``."""

from importlib.metadata import version as installed

project = "snella_seg"
author = "the snella_seg authors"
release = version = installed("snella_seg")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"snella_seg {release}"
