"""The pages as HTML: templates.

Assembled with templates of our own and not with ``niworkflows.reports``: that one indexes the
whole output with pybids, knows no tables and no word for a figure that is missing, and its
template loads style sheets from the network, which leaves the page bare on a node without one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2

from precondqsm_bids import __version__
from precondqsm_bids.outputs.wording import duration, number, ppm


def render(template: str, **content: Any) -> str:
    """A page from a template of ``precondqsm_bids.data`` and what it shows."""
    return _environment().get_template(template).render(version=__version__, **content)


def compile_report() -> None:
    """Compile the templates of the report, which takes as long as the rest of it."""
    templates = _environment()
    for name in templates.list_templates(extensions=['html', 'css', 'js']):
        if not name.startswith('group'):
            templates.get_template(name)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('precondqsm_bids', 'data'),  # the style sheet is a file
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {'number': number, 'ppm': ppm, 'duration': duration}
    return environment
