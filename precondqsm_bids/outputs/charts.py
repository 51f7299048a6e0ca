"""Figures of the report that are not slices: L-curves, values, histograms, phase of each echo.

They are drawn straight with matplotlib, without pyplot, so that no display and no global state is
involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from precondqsm_bids.numerics.field_quality import LARGE_ECHO_PHASE
from precondqsm_bids.numerics.prior.verdict import COUNTED, DROPPED
from precondqsm_bids.outputs.tables import refer_prior

STYLE: dict[Any, Any] = {
    'font.size': 9,
    'axes.titlesize': 10,
    'svg.hashsalt': 'precondqsm_bids',  # same bytes on every run
}
COLOURS = {
    'conventional': '#c44e52',
    'conventional_risk': '#e3a5a7',
    'consensus': '#5a9a5a',
    'prior': '#8c8c8c',
    'precond': '#1f6fb4',
    'residual': '#b8860b',
    'reference': '#111111',
}
ARMS = {
    'conventional': 'conventional',
    'conventional_risk': 'conventional, least expected error',
    'consensus': 'consensus',
    'prior': 'prior',
    'precond': 'preconditioned',
}
"""Maps whose values per label are shown: first part of their columns, and what they are called."""

BINS = 160
"""Of a histogram."""

LEAST_INSIDE = 0.5
"""Share of a label that the region of interest must hold for its value to be drawn."""


def draw_l_curves(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw L-curves by the name of their arm (``precond``, ``conventional``)."""
    # Of fixed margins: to fit them, matplotlib lays out every tick of the logarithmic axes.
    figure = Figure(figsize=(9, 3.8))
    left, right = figure.subplots(
        1, 2, gridspec_kw={'left': 0.09, 'right': 0.99, 'bottom': 0.13, 'top': 0.86}
    )
    for name, curve in curves.items():
        _draw_l_curve(left, right, curve, ARMS.get(name, name), COLOURS[name])
    left.set(
        xlabel='data term  ‖D χ − f‖  (ppm √voxels)',
        ylabel='regularisation term  ‖∇χ‖  (ppm/mm √voxels)',
    )
    right.set(xlabel='regularisation weight λ (mm)', ylabel='curvature of the L-curve')
    right.set_xscale('log')
    low, high = left.get_xlim()
    if curves and high < 300 * low:  # two decades or less: powers of ten alone would label nothing
        left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    left.xaxis.set_minor_formatter(NullFormatter())
    for axes in (left, right):
        _plain(axes, columns=1)
        axes.grid(alpha=0.25, linewidth=0.5)
    if not curves:
        figure.suptitle('No L-curve was computed')
    return figure


def _draw_l_curve(
    left: Axes, right: Axes, curve: Mapping[str, Any], name: str, colour: str
) -> None:
    """One curve, with a ring at the weight in use and a cross at the corner."""
    weights = np.asarray(curve.get('reg_weights', ()), dtype=float)
    chosen, corner = float(curve['reg_weight']), curve.get('corner')
    label = f'{name}, λ = {chosen:.3g} mm'
    if weights.size < 2:
        right.axvline(chosen, color=colour, linestyle='--', label=f'{label} (given)')
        return
    x, y = np.asarray(curve['consistency'], float), np.asarray(curve['regularization'], float)
    order = np.argsort(weights)

    def at(weight: float) -> list[float]:
        """Place of a weight on the curve."""
        return [
            float(np.exp(np.interp(np.log(weight), np.log(weights[order]), np.log(v[order]))))
            for v in (x, y)
        ]

    if corner is not None:
        label += ' (corner)' if np.isclose(corner, chosen) else f', corner {corner:.3g} mm'
        left.plot(*at(corner), 'x', color=colour, markersize=7)
    left.loglog(x, y, '.-', color=colour, label=label, markersize=3, linewidth=1)
    left.plot(*at(chosen), 'o', color=colour, markersize=9, fillstyle='none')
    curvature = np.asarray(curve['curvature'], float)
    n = min(len(curvature), len(weights))
    trimmed = (len(weights) - n) // 2
    right.semilogx(weights[trimmed : trimmed + n], curvature[:n], color=colour, linewidth=1)
    right.axvline(chosen, color=colour, linestyle='--', linewidth=1)


def draw_roi_values(
    rows: Sequence[dict[str, Any]], reference: str = '', prior_mean: float | None = 0.0
) -> Figure:
    """Bars per label and map, black marks where a cylinder has a reference value.

    ``reference`` is what the maps are relative to, for labels that none surrounds, and
    ``prior_mean`` the mean of the prior there, ppm, which has no reference; None leaves it out.
    """
    rows = refer_prior(rows, prior_mean)
    relative = any(row.get('precond_chi_minus_medium') is not None for row in rows)
    key = 'minus_medium' if relative else 'mean'
    against = reference
    if relative:
        # The medium itself is zero by construction.
        medium = [row for row in rows if row['precond_chi_minus_medium'] == 0]
        against = str(medium[0]['name']) if medium else 'surroundings'
        rows = [row for row in rows if row['precond_chi_minus_medium'] != 0]
    rows = [row for row in rows if _inside(row)]
    arms = [arm for arm in ARMS if any(row.get(f'{arm}_chi_{key}') is not None for row in rows)]
    figure = Figure(figsize=(9, 1.1 + 0.5 * len(rows)), layout='constrained')
    axes = figure.subplots()
    positions = np.arange(len(rows))
    height = 0.8 / max(1, len(arms))
    for i, arm in enumerate(arms):
        axes.barh(
            positions + (i - (len(arms) - 1) / 2) * height,
            _column(rows, f'{arm}_chi_{key}'),
            0.92 * height,
            xerr=_column(rows, f'{arm}_chi_sd'),
            color=COLOURS[arm],
            error_kw={'elinewidth': 0.8, 'ecolor': '#555555'},
            label=ARMS.get(arm, arm),
        )
    if relative:
        _mark_reference(axes, _column(rows, 'cylinder_reference'))
    axes.axvline(0, color='#888888', linewidth=0.6)
    names = [shorten(str(row['name'])) for row in rows]
    axes.set_yticks(positions, names, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(
        f'susceptibility − {shorten(against)} (ppm)' if against else 'susceptibility (ppm)',
        parse_math=False,
    )
    _plain(axes, columns=4)
    return figure


def prior_mean(
    reference: str, rows: Sequence[Mapping[str, Any]], prior: np.ndarray
) -> float | None:
    """Mean of the prior over a reference by its name; ``prior``: its values in the region (V,).

    None where the rows of the table do not hold the label.
    """
    if reference in ('none', ''):
        return 0.0
    if reference == 'roi-mean':
        return float(prior.mean(dtype=np.float64))
    found = [row for row in rows if row['name'] == reference and row.get('prior_chi_n')]
    if not found:
        return None
    return float(
        np.average(_column(found, 'prior_chi_mean'), weights=_column(found, 'prior_chi_n'))
    )


def shorten(name: str) -> str:
    """A long name without its middle.

    >>> shorten('left_' + 40 * 'x' + '_gyrus')
    'left_xxxxxxxxxx…xxxxxxxxx_gyrus'
    """
    return name if len(name) <= 31 else f'{name[:15]}…{name[-15:]}'


def _mark_reference(axes: Axes, values: np.ndarray) -> None:
    """Black marks across the bars of each label with a reference value."""
    if np.isfinite(values).any():
        positions = np.arange(len(values))
        axes.vlines(
            values, positions - 0.45, positions + 0.45, color=COLOURS['reference'],
            linewidth=1.8, label='reference (bulk field)',
        )  # fmt: skip


def _inside(row: Mapping[str, Any]) -> bool:
    """Whether enough of a label is in the region of interest."""
    found = row.get('precond_chi_n')
    if row.get('precond_chi_mean') is None:
        return False
    return found is None or found >= LEAST_INSIDE * row['n_voxels']


def draw_histograms(inside: Mapping[str, np.ndarray]) -> Figure:
    """Share of the region at each value, of the maps of some arms: arm -> values (V,), ppm.

    Prior and residual, which have no reference, are drawn about their mean.
    """
    figure = Figure(figsize=(9, 3.4))
    axes = figure.subplots(gridspec_kw={'left': 0.09, 'right': 0.99, 'bottom': 0.15, 'top': 0.84})
    shown = {
        arm: values - (values.mean() if arm in ('prior', 'residual') and values.size else 0)
        for arm, values in inside.items()
    }
    # So that a few voxels at the border do not make all the rest one line.
    ends = [np.percentile(v, [0.05, 99.95]) for v in shown.values() if v.size]
    low, high = (float(np.min(ends)), float(np.max(ends))) if ends else (0.0, 0.0)
    margin = 0.05 * (high - low) or 1e-6
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    for arm, values in shown.items():
        share = np.histogram(values, edges)[0] / max(values.size, 1)
        axes.stairs(
            np.where(share > 0, share, np.nan), edges, color=COLOURS.get(arm, '#7a5aa8'),
            label=ARMS.get(arm, arm), linewidth=1.1,
        )  # fmt: skip
    axes.set(xlabel='susceptibility (ppm)', ylabel='share of the region', yscale='log')
    axes.axvline(0, color='#888888', linewidth=0.6)
    _plain(axes, columns=5)
    return figure


def draw_explained(fit: Mapping[str, Any], comparison: Mapping[str, Any]) -> Figure | None:
    """What the prior explains of the local field beside its null, and what both maps do by scale.

    ``fit`` and ``comparison`` as in the record; None if neither was measured.
    """
    judged, scales = fit.get('judged'), comparison.get('explained_by_scale')
    if not (judged or scales):
        return None
    figure = Figure(figsize=(9, 2.8))
    margins = {'left': 0.09, 'right': 0.99, 'bottom': 0.18, 'top': 0.84, 'wspace': 0.25}
    left, right = figure.subplots(1, 2, gridspec_kw=margins, width_ratios=(1, 2))
    if judged:
        null = max(judged['null'], 0)
        bars = left.bar((0, 1), (judged['explained'], null), 0.6)
        for bar, arm in zip(bars, ('precond', 'prior'), strict=True):
            bar.set_color(COLOURS[arm])
        for beyond, style, what in (
            (COUNTED, '--', 'in full above'),
            (DROPPED, ':', 'dropped below'),
        ):
            left.axhline(null + beyond, color='#444444', linestyle=style, linewidth=1, label=what)
        left.set_xticks((0, 1), ('prior', 'prior turned'))
        left.set_ylabel('share of the local field')
        _plain(left, columns=2)
    else:
        left.set_axis_off()
    if scales:
        # The longest of the first shell is that of all that is longer.
        lengths = [np.sqrt(2) * scale['shortest'] for scale in scales]
        for colour, key in (('conventional', 'conventional'), ('precond', 'preconditioned')):
            shares = [scale[key] for scale in scales]
            right.semilogx(lengths, shares, 'o-', color=COLOURS[colour], label=f'{key} map')
        right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
        right.xaxis.set_minor_formatter(NullFormatter())
        right.invert_xaxis()
        right.axhline(0, color='#888888', linewidth=0.6)
        right.set(xlabel='wavelength (mm)', ylabel="share of the field's power")
        _plain(right, columns=2)
    else:
        right.set_axis_off()
    return figure


def draw_echo_phase(found: Mapping[str, Any], echo_times: Sequence[float]) -> Figure:
    """Size and constant of the phase that was taken off each echo; ``found`` as in the record."""
    figure = Figure(figsize=(9, 2.8))
    axes = figure.subplots(gridspec_kw={'left': 0.09, 'right': 0.99, 'bottom': 0.2, 'top': 0.87})
    positions = np.arange(1, len(echo_times) + 1)
    axes.bar(positions, found['size'], 0.6, color=COLOURS['precond'], label='root mean square')
    axes.plot(
        positions,
        found['constant'],
        'o',
        color=COLOURS['conventional'],
        label='constant',
        clip_on=False,
    )
    axes.axhline(0, color='#888888', linewidth=0.6)
    axes.axhline(
        LARGE_ECHO_PHASE,
        color='#444444',
        linestyle='--',
        linewidth=1,
        label='limit of the warning',
    )
    times = [f'{i}\n{1e3 * time:.4g} ms' for i, time in enumerate(echo_times, 1)]
    axes.set_xticks(positions[:: 1 + len(times) // 16], times[:: 1 + len(times) // 16])
    axes.set(xlabel='echo', ylabel='phase (rad)')
    if not any(found['size']):
        words = 'nothing was taken off: every echo agrees with the others'
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha='center')
    _plain(axes)
    return figure


def _plain(axes: Axes, columns: int = 3) -> None:
    """No frame above and at the right; above, a legend where something has a name."""
    axes.spines[['top', 'right']].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc='lower left', bbox_to_anchor=(0, 1), ncols=columns)


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=float)
