"""Settings of the documentation site: Markdown pages by MyST, one theme, no address outside."""

project = "clinpeft"
author = "The clinpeft authors"
copyright = author  # noqa: A001  (the name that Sphinx reads)
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_title = "clinpeft"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
nitpicky = True
suppress_warnings = ["myst.xref_missing"]
