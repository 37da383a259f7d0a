"""Sphinx's settings; see CONTRIBUTING.md for the command that builds the documents."""

from pyvmm import __version__

project = "pyvmm"
author = "the pyvmm authors"
copyright = "the pyvmm authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pyvmm {version}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
nitpicky = False
suppress_warnings = ["misc.highlighting_failure"]  # the lexers know no macros
