"""Sphinx's settings for the site of the results; `docs/build.py` calls it on the pages that it gathers."""

import re
import warnings

project = "eMIGM, reproduced"
html_title = project
copyright = "the authors of this reproduction, MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# Notebooks are shown as the pipeline executed them; the code is folded. Nothing is fetched from another host.
nb_execution_mode = "off"
nb_code_prompt_show = "Show code"
nb_code_prompt_hide = "Hide code"
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"  # links of tables and readings lead to pages
myst_enable_extensions = ["attrs_inline", "colon_fence", "html_image"]
myst_heading_anchors = 4
suppress_warnings = ["toc.not_included"]  # pages that others link to, without a place in the menu

default_role = "code"  # docstrings mark code by single backticks
add_module_names = False
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
warnings.filterwarnings("ignore", module="torch")

html_theme = "pydata_sphinx_theme"
html_static_path = ["site.css", "site.js"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "auto"}
html_sidebars = {page: [] for page in ("index", "ledger", "README")}
html_theme_options = {
    "logo": {"text": project},
    "navigation_with_keys": False,
    "show_prev_next": False,
    "show_toc_level": 2,
    "footer_start": [],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}


def plain(app, what, name, item, options, lines):
    """Docstrings are no reStructuredText: |x| outside code is an absolute value, and a colon in an attribute's first
    line does not set its type apart."""
    for i, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)
        lines[i] = "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)
    if what in ("attribute", "data"):
        lines.insert(0, "")


def setup(app):
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon
