"""Settings of the documentation, which ``make docs`` builds."""

import inspect
import os
import sys
from importlib.metadata import distribution
from pathlib import Path

# Importing the workflows must not unpack templates into the home folder of whoever builds this.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from precondqsm_bids import __version__
from precondqsm_bids.cli.environment import repair_environment

repair_environment()
os.environ['MPLBACKEND'] = 'agg'

project = 'precondqsm_bids'
author = 'The precondqsm_bids developers'
project_copyright = author
version = release = __version__

extensions = [
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.viewcode',
    'matplotlib.sphinxext.plot_directive',
    'numpydoc',
    'myst_parser',
]
exclude_patterns = ['_build']
templates_path = []
html_theme = 'alabaster'
html_theme_options = {
    'description': 'Preconditioned quantitative susceptibility mapping',
    'fixed_sidebar': True,
    'body_max_width': '800px',
    'page_width': '1060px',  # below it the sidebar goes to the top
    'sidebar_width': '230px',
}
# MathJax is one file of a package, copied beside the pages: formulas need no network. Of its forms
# this one holds its glyphs itself (SVG); the others load fonts.
MATHJAX = 'sphinx-mathjax-offline/static/mathjax/tex-svg.js'
html_static_path = [str(distribution('sphinx-mathjax-offline').locate_file(MATHJAX)), 'style.css']
html_css_files = ['style.css']
mathjax_path = Path(MATHJAX).name
highlight_language = 'text'  # listings of files and commands; examples name their language

myst_enable_extensions = ['amsmath', 'deflist', 'dollarmath']
myst_heading_anchors = 3

plot_include_source = True
plot_html_show_source_link = plot_html_show_formats = False
plot_formats = [('png', 110)]
plot_rcparams = {'font.size': 9, 'axes.titlesize': 9, 'image.cmap': 'gray'}
plot_apply_rcparams = True

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # numpydoc has them, with shapes and units
numpydoc_show_class_members = False


def document_ports(app, what, name, obj, options, lines):
    """Append a node's inputs and outputs to its docstring: name, default, description."""
    if what != 'class' or not inspect.isclass(obj):
        return
    for title, attribute in (('Inputs', 'input_spec'), ('Outputs', 'output_spec')):
        spec = getattr(obj, attribute, None)
        if spec is None:
            return
        traits = spec().traits(transient=None)
        lines += ['', f'.. rubric:: {title}', '']
        for port in spec().copyable_trait_names():
            trait = traits[port]
            note = 'mandatory' if trait.mandatory else ''
            if trait.usedefault:
                note = f'default {trait.default!r}'
            lines.append(f'* ``{port}``{f" ({note})" if note else ""}: {trait.desc}')
        lines.append('')


def setup(app):
    """Connect the hook."""
    # Before numpydoc, which would not know the rubric's place.
    app.connect('autodoc-process-docstring', document_ports, priority=600)
