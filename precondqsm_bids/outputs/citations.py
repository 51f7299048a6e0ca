"""Citations of a methods text: written out, and as BibTeX."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import NamedTuple

_CITED = re.compile(r'\[@[^\]]*\]')
_KEY = re.compile(r'@(\w+)')


class Methods(NamedTuple):
    """A methods text as it is shown and pasted."""

    paragraphs: list[str]
    """With citations of the kind (Liu 2011)."""
    references: list[str]
    """What they cite, sorted."""
    bibtex: str
    """The same for a reference manager."""


@cache
def entries() -> dict[str, dict[str, str]]:
    """The bibliography of the package: key -> fields, ``type`` among them.

    >>> entries()['nipype']['journal']
    'Front Neuroinform'
    """
    text = resources.files('precondqsm_bids.data').joinpath('boilerplate.bib').read_text('utf-8')
    return {
        key: {'type': kind} | dict(re.findall(r'(\w+) = \{((?:[^{}]|\{[^{}]*\})*)\}', fields))
        for kind, key, fields in re.findall(r'^@(\w+)\{(\w+), (.*)\}$', text, re.MULTILINE)
    }


def cited(text: str) -> list[str]:
    """Keys that a text cites in the form of Pandoc, each once, in their order.

    >>> cited('Fitted [@liu2013; @wu2012], again [@liu2013].')
    ['liu2013', 'wu2012']
    """
    keys = (key for found in _CITED.findall(text) for key in _KEY.findall(found))
    return list(dict.fromkeys(keys))


def write_out(text: str) -> Methods:
    """A text with its citations written out; a key that is not known stays as it is.

    >>> write_out('Fitted [@wu2012].').paragraphs
    ['Fitted (Wu 2012).']
    """
    known = entries()

    def cite(match: re.Match[str]) -> str:
        names = [_short(known[key]) if key in known else key for key in _KEY.findall(match[0])]
        return f'({"; ".join(names)})'

    plain = re.sub(r'\*(precondqsm_bids|Nipype)\*', r'\1', text.strip())
    return Methods(
        [_CITED.sub(cite, part) for part in re.split(r'\n\s*\n', plain) if part],
        sorted(_long(known[key]) for key in cited(text) if key in known),
        bibliography(text),
    )


def bibliography(text: str) -> str:
    """BibTeX of what a text cites.

    >>> print(bibliography('[@rudin1992]').splitlines()[0])
    @article{rudin1992,
    """
    known = entries()
    parts = []
    for key in cited(text):
        if key not in known:
            continue
        (_, kind), *rest = known[key].items()
        fields = [f'  {name} = {{{value}}}' for name, value in rest if name != 'shorttitle']
        parts.append(f'@{kind}{{{key},\n' + ',\n'.join(fields) + '\n}\n')
    return '\n'.join(parts)


def _authors(entry: dict[str, str]) -> str:
    """Authors as journals of the field write them: Liu T, et al."""
    names = entry.get('author', '').strip('{}').split(' and ')
    return ', '.join('et al.' if name == 'others' else name.replace(', ', ' ') for name in names)


def _short(entry: dict[str, str]) -> str:
    if 'author' not in entry:
        return entry['shorttitle']
    first = entry['author'].strip('{}').split(',')[0]
    return f'{first} {entry["year"]}'


def _long(entry: dict[str, str]) -> str:
    if 'author' not in entry:
        return f'{entry["title"]}. {entry["howpublished"]}.'
    where = f'{entry["volume"]}:{entry["pages"]}' if 'volume' in entry else entry['doi']
    authors = _authors(entry).rstrip('.')
    return f'{authors}. {entry["title"]}. {entry["journal"]} {entry["year"]};{where}.'
