import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "pvopt"
author = "The pvopt authors"
copyright = "The pvopt authors, Apache-2.0"
version = release = importlib.metadata.version("pvopt")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "accessibility",
    "api_pages",
    "gallery",
    "math_font",
    "mathml",
    "papers",
    "pictures",
    "results",
    "site_checks",
]
# What is generated is included by pages, or was written by an earlier edition.
exclude_patterns = ["_build", "_ext", "generated", "api/generated"]
suppress_warnings: list[str] = []  # every warning counts

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 3

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

# Copied are the commands, neither their prompts nor what they print.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"pvopt {release}"
html_logo = "_static/logo.svg"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_search_scorer = str(Path(__file__).parent / "_ext" / "scorer.js")
html_css_files = ["pvopt.css"]
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5394", "color-brand-content": "#0b5394"},
    "dark_css_variables": {"color-brand-primary": "#7cc0f5", "color-brand-content": "#7cc0f5"},
}
pygments_dark_style = "github-dark"
html_math_renderer = "mathml"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False

# Names of other projects: no inventory of theirs is fetched. Broken references to our own count.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|np|numpy|nn|scipy|transformers|tqdm|collections|contextlib|pathlib|argparse)\..*",
    ),
    ("py:.*", r"(WeightMetric|Tensor|Path|PreTrainedModel|PreTrainedTokenizerBase|abc\.ABC)"),
    ("py:class", r"pvopt\.([a-z_]+\.)+_\w+"),  # private base classes
    # Shared bases, and what only the library constructs: no pages of their own.
    ("py:class", r"pvopt\.engine\.bindings\.Binding"),
    ("py:class", r"pvopt\.engine\.code_steps\.CodeStep"),
    ("py:class", r"pvopt\.engine\.dense_start\.DenseStart"),
    ("py:class", r"pvopt\.engine\.merged_state\.MergedState"),
    ("py:class", r"pvopt\.engine\.moves\.Moves"),
    ("py:class", r"pvopt\.engine\.placement\.Placement"),
    ("py:class", r"pvopt\.engine\.exchange\.Channel"),
    ("py:class", r"Placement|Channel"),
    ("py:class", r"pvopt\.formats\.contract\.Format"),
    ("py:class", r"pvopt\.metrics\.diagonal\.SeparableCosts"),
    ("py:class", r"pvopt\.metrics\.row\.ColumnCosts"),
    ("py:class", r"pvopt\.parametrizations\.sparse_support\.OnSupport"),
    ("py:class", r"pvopt\.parametrizations\.codebooks\.Codebooks"),
    ("py:class", r"pvopt\.parametrizations\.scalar_grid\.ScalarGrid"),
    ("py:class", r"pvopt\.parametrizations\.zero_point_grid\.ZeroPointGrid"),
    ("py:class", r"pvopt\.parametrizations\.offset_grid\.OffsetGrid"),
    ("py:class", r"pvopt\.parametrizations\.sparse_support\.SparseSupport"),
    ("py:class", r"pvopt\.rules\.subspace\.Farthest"),
    ("py:class", r"pvopt\.starts\.obs\.OBS"),
    ("py:class", r"pvopt\.calibration\.capture\.BlockCall"),
]
