"""The page of the group: every run with its lights, who is missing or lies outside, distributions.

It is one file: style and figures are inside it.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from precondqsm_bids.outputs.files import natural
from precondqsm_bids.outputs.group.outliers import LEAST_VALUES, LIMIT, Distribution
from precondqsm_bids.outputs.group.reading import STATUS
from precondqsm_bids.outputs.group.runs import table_of_runs
from precondqsm_bids.outputs.group.tables import (
    COMPARED,
    LIMIT_WORDS,
    Gathered,
    GroupResult,
    Key,
    Outlier,
)
from precondqsm_bids.outputs.maps import MAPS
from precondqsm_bids.outputs.page import render
from precondqsm_bids.outputs.record import COEFFICIENTS, COLUMNS
from precondqsm_bids.terms import short, term

STYLE: dict[Any, Any] = {'font.size': 8, 'axes.titlesize': 9, 'text.parse_math': False}
BLUE, RED = '#1f6fb4', '#c0392b'
SHOWN_ROWS = 60
"""Regions or coefficients in one figure; the tables have all."""

SHOWN_POINTS = 2000
"""Points of a strip: more take memory and show nothing more. Outliers come on top."""

UNITS = {measure.name: measure.unit for measure in COLUMNS}

NAMED = 2
"""Outliers that a figure names per measure; the page names all of them below."""


class Strip(NamedTuple):
    """One measure as a strip of points."""

    key: Key
    values: np.ndarray
    distribution: Distribution
    outliers: list[Outlier]
    n_outliers: int

    @property
    def name(self) -> str:
        """Column, name of the region, or term and name of the coefficient."""
        return _of_term(*self.key[:-1]) if self.key[-1] == 'coefficient' else self.key[0]

    @property
    def units(self) -> str:
        """Of a coefficient."""
        return term(self.key[0]).unit


def compose_report(
    output_dir: Path,
    *,
    summary: GroupResult,
    gathered: Mapping[str, Gathered],
    columns: Sequence[str],
    command: str,
) -> str:
    """The page as text.

    ``gathered`` is what the tables ``rois``, ``quality`` and ``coefficients`` hold, ``columns``
    those of the values per region; the derivatives are for links to the participants' reports.
    """
    order = [*(measure.name for measure in COLUMNS), 'n_warnings']
    quality = sorted(_strips(gathered['quality']), key=lambda strip: order.index(strip.name))
    maps = [column for column in COMPARED if column in columns]
    regions = {
        column: [strip for strip in _strips(gathered['rois']) if strip.key[1] == column]
        for column in maps
    }
    coefficients = sorted(
        _strips(gathered['coefficients']), key=lambda strip: (strip.key[0], natural(strip.key[1]))
    )
    outliers: Counter[str] = Counter()
    for part in gathered.values():
        outliers += part.by_run
    return render(
        'group.html',
        command=command,
        summary=summary,
        statuses=[(name, summary.runs[name], text) for name, text in STATUS.items()],
        runs=sum(summary.runs.values()),
        links=_with_report(output_dir, summary, gathered),
        outlying=_by_run(gathered),
        found=sum(sum(part.counts.values()) for part in gathered.values()),
        named=sum(len(part.outliers) for part in gathered.values()),
        limit=LIMIT,
        limit_words=LIMIT_WORDS,
        **table_of_runs(output_dir, summary, outliers),
        least=LEAST_VALUES,
        figures=_figures(quality, regions, coefficients),
        quality=[(strip, UNITS.get(strip.name, '')) for strip in quality],
        descriptions={measure.name: measure.meaning for measure in COLUMNS}
        | {'n_warnings': 'Number of warnings that the stages left'},
        regions=[strip for column in maps for strip in regions[column]],
        coefficients=coefficients,
        coefficient_description=COEFFICIENTS['coefficient'][1],
        shown_rows=SHOWN_ROWS,
        shown_points=SHOWN_POINTS,
    )


def _with_report(
    output_dir: Path, summary: GroupResult, gathered: Mapping[str, Gathered]
) -> set[str]:
    """Subjects that the page names and that have a report."""
    named = {item.subject for item in summary.listed}
    named |= {item.subject for part in gathered.values() for item in part.outliers}
    return {name for name in named if (output_dir / f'sub-{name}.html').is_file()}


def _figures(
    quality: Sequence[Strip], regions: Mapping[str, Sequence[Strip]], coefficients: Sequence[Strip]
) -> dict[str, str]:
    """Figure of each table, empty where no measure has values enough."""
    # A measure that is the same in every run needs no picture.
    varying = [s for s in quality if s.distribution.maximum > s.distribution.minimum]
    measures, numbered = _enough(varying), _enough(coefficients)
    drawn = {column: _enough(strips) for column, strips in regions.items()}
    with mpl.rc_context(STYLE):
        return {
            'quality': _draw_measures(measures) if measures else '',
            'rois': _draw_regions(drawn) if any(drawn.values()) else '',
            'coefficients': _draw_coefficients(numbered) if numbered else '',
        }


def _strips(gathered: Gathered) -> list[Strip]:
    """The measures of one table, each with its values and outliers."""
    return [
        Strip(
            key,
            np.frombuffer(gathered.values[key], dtype=float),
            known,
            [outlier for outlier in gathered.outliers if outlier.key == key],
            gathered.counts[key],
        )
        for key, known in gathered.distributions.items()
    ]


def _of_term(word: str, name: str) -> str:
    """A coefficient by its term and name, of a given map only the name of its file."""
    return f'{short(word)} {name}'


def _enough(strips: Sequence[Strip]) -> list[Strip]:
    """Those of runs enough to be drawn."""
    return [strip for strip in strips if strip.distribution.n >= LEAST_VALUES]


def _by_run(gathered: Mapping[str, Gathered]) -> list[dict[str, Any]]:
    """Outliers of each run, the run with the farthest one first."""
    runs: dict[str, dict[str, Any]] = {}
    everything = [
        (outlier, part.distributions[outlier.key].median)
        for part in gathered.values()
        for outlier in part.outliers
    ]
    for outlier, median in sorted(everything, key=lambda item: (-item[0].size, item[0].run)):
        run = runs.setdefault(
            outlier.run, {'run': outlier.run, 'subject': outlier.subject, 'outliers': []}
        )
        *where, column = outlier.key
        name = f'{" ".join(where)}: {column}' if where else column
        if column == 'coefficient':
            name = f'coefficient of {_of_term(*where)}'
        run['outliers'].append(
            {'name': name, 'value': outlier.value, 'median': median, 'z': outlier.z}
        )
    return list(runs.values())


def _draw_measures(measures: Sequence[Strip]) -> str:
    """Small multiples, one per measure."""
    across = 3
    down = -(-len(measures) // across)
    figure = Figure(figsize=(10, 0.95 * down + 0.2), layout='constrained')
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(measures) :]:
        axes.set_axis_off()
    for axes, strip in zip(grid, measures, strict=False):
        unit = UNITS.get(strip.name)
        axes.set_title(f'{strip.name} ({unit})' if unit else strip.name, loc='left', pad=10)
        if strip.distribution.maximum > 10 * strip.distribution.minimum > 0:
            axes.set_xscale('log')
            axes.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
        _draw_strip(axes, strip, 0)
        axes.set(yticks=[], ylim=(-0.6, 0.75))
        axes.spines[['top', 'left', 'right']].set_visible(False)
    return _inline(figure)


def _draw_regions(regions: Mapping[str, Sequence[Strip]]) -> str:
    """One row per region, one column per map (a column of the table)."""
    names = list(dict.fromkeys(s.name for strips in regions.values() for s in strips))[:SHOWN_ROWS]
    figure = Figure(figsize=(10, 0.42 * len(names) + 0.9), layout='constrained')
    grid = figure.subplots(1, len(regions), sharey=True, squeeze=False)[0]
    for axes, (column, strips) in zip(grid, regions.items(), strict=True):
        for strip in strips:
            if strip.name in names:
                _draw_strip(axes, strip, names.index(strip.name))
        shown = MAPS[column.removesuffix('_mean')]
        axes.set_xlabel(f'{shown.words} ({shown.unit})')
        _rows(axes, names)
    return _inline(figure)


def _draw_coefficients(coefficients: Sequence[Strip]) -> str:
    """One row per coefficient of the prior; susceptibilities below factors."""
    shown = coefficients[:SHOWN_ROWS]
    groups = [
        (label, strips)
        for units, label in (('1', 'factor'), ('ppm', 'susceptibility (ppm)'))
        if (strips := [strip for strip in shown if strip.units == units])
    ]
    figure = Figure(figsize=(10, 0.42 * len(shown) + 0.9 * len(groups)), layout='constrained')
    sizes = [len(strips) + 1 for _, strips in groups]
    grid = figure.subplots(len(groups), 1, squeeze=False, height_ratios=sizes)[:, 0]
    for axes, (label, strips) in zip(grid, groups, strict=True):
        for i, strip in enumerate(strips):
            _draw_strip(axes, strip, i)
        axes.set_xlabel(label)
        _rows(axes, [strip.name for strip in strips])
    return _inline(figure)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis='x', alpha=0.25, linewidth=0.5)
    axes.spines[['top', 'left', 'right']].set_visible(False)


def _draw_strip(axes: Axes, strip: Strip, row: int) -> None:
    """Points, a bar over the middle half, a line at the median, outliers with their names."""
    known = strip.distribution
    values = strip.values[:: -(-len(strip.values) // SHOWN_POINTS)]
    n = len(values)
    # The golden section spreads the points evenly, and alike in every run of the program.
    jitter = (np.arange(n) * 0.6180339887 % 1 - 0.5) * 0.45
    axes.plot(
        values, row + jitter, '.', color=BLUE, markersize=4 if n > 100 else 7, markeredgewidth=0,
        alpha=float(np.clip(20 / np.sqrt(n) / 2, 0.08, 0.7)), rasterized=True,
    )  # fmt: skip
    axes.plot([known.quartile, known.upper_quartile], [row, row], color='#111111', linewidth=3,
              alpha=0.55, solid_capstyle='butt')  # fmt: skip
    axes.plot([known.median] * 2, [row - 0.3, row + 0.3], color='#111111', linewidth=1.2)
    axes.plot(
        [outlier.value for outlier in strip.outliers], [row] * len(strip.outliers), 'o',
        color=RED, markersize=4, fillstyle='none',
    )  # fmt: skip
    for i, outlier in enumerate(strip.outliers[:NAMED]):
        beyond = outlier.value > known.median
        axes.annotate(
            outlier.run.removeprefix('sub-'), (outlier.value, row),
            xytext=(2 if beyond else -2, 5 if i == 0 else -10),
            textcoords='offset points', ha='right' if beyond else 'left', fontsize=7, color=RED,
            path_effects=[withStroke(linewidth=2, foreground='white')],
        )  # fmt: skip


def _inline(figure: Figure) -> str:
    """The figure as a data URI."""
    stream = io.BytesIO()
    figure.savefig(stream, format='png', dpi=130, metadata={'Software': None})
    return 'data:image/png;base64,' + base64.b64encode(stream.getvalue()).decode('ascii')
