"""The pages as HTML: templates, and the methods text with its citations.

Assembled with templates of our own and not with ``niworkflows.reports``: that one indexes the
whole output with pybids, knows no tables and no word for a figure that is missing, and its
template loads style sheets from the network, which leaves the page bare on a node without one.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import jinja2

from precondqsm_bids import __version__
from precondqsm_bids.outputs.wording import duration, number, ppm


def render(template: str, **content: Any) -> str:
    """A page from a template of ``precondqsm_bids.data`` and what it shows."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('precondqsm_bids', 'data'),  # the style sheet is a file
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {'number': number, 'ppm': ppm, 'duration': duration}
    return environment.get_template(template).render(version=__version__, **content)


def methods(boilerplate: str) -> tuple[list[str], list[str]]:
    """Paragraphs with ``[@key; @key]`` written out, and the references that they cite."""
    text = resources.files('precondqsm_bids.data').joinpath('boilerplate.bib').read_text('utf-8')
    entries = {
        key: dict(re.findall(r'(\w+) = \{([^}]*)\}', fields))
        for key, fields in re.findall(r'^@\w+\{(\w+), (.*)\}$', text, re.MULTILINE)
    }
    cited: dict[str, str] = {}

    def cite(match: re.Match[str]) -> str:
        names = []
        for key in re.findall(r'@(\w+)', match[0]):
            if key not in entries:
                names.append(key)
                continue
            entry = entries[key]
            where = f'{entry["volume"]}:{entry["pages"]}' if 'volume' in entry else entry['doi']
            cited[key] = (
                f'{entry["author"].rstrip(".")}. {entry["title"]}. '
                f'{entry["journal"]} {entry["year"]};{where}.'
            )
            names.append(f'{entry["author"].split(" ")[0]} {entry["year"]}')
        return f'({"; ".join(names)})'

    paragraphs = [
        re.sub(r'\[@[^\]]*\]', cite, paragraph)
        for paragraph in re.split(r'\n\s*\n', boilerplate.strip())
        if paragraph
    ]
    return paragraphs, sorted(cited.values())
