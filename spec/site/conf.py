"""Settings of the site: python -m sphinx -W -c spec/site . build/site

The pages are the repository's own Markdown; what is computed for a chapter is in chapter_pages.py. The site needs no
network: fonts are the reader's own, formulas are text.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

project = html_title = "refembed"
root_doc = "README"
extensions = ["myst_parser", "site_build"]
include_patterns = ["README.md", "CHANGELOG.md", "*/README.md", "spec/**.md", "refembed/default_model/README.md"]
include_patterns += ["tests/bench/LOG.md"]
exclude_patterns = ["build", ".*", "runs", "spec/ablations"]
myst_heading_anchors = 4  # as GitHub makes them
myst_url_schemes = ["http", "https", "repo"]  # repo: is repository.py's
suppress_warnings = ["myst.header"]  # a chapter's requirements stand right below its title
html_theme = "furo"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = html_show_copyright = html_show_sphinx = html_use_index = False
