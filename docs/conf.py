"""Sphinx: `make html` builds these pages into build/html. Warnings are errors.

Owns: how the pages look. Must not know: what they say. Invariant: a link that works in the
repository works in the build: files beside the pages (tests, examples) are copied into it.
"""

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

from posthouse import __version__

project = "posthouse"
author = "the posthouse developers"
copyright = author  # noqa: A001 - the name is Sphinx's
version = release = __version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["**/*.in.md"]
nitpicky = True
myst_heading_anchors = 5

html_theme = "furo"
html_title = f"posthouse {version}"
html_copy_source = False
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    app.add_lexer("mermaid", TextLexer)  # the table above the diagram says the same
